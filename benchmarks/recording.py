"""The machine that numbers were measured on, and the CSV files that hold them."""

import csv
import io
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from examples.digits.storage import write_whole


def machine() -> str:
    device = jax.devices()[0].device_kind
    return f"{platform.machine()}, {os.cpu_count()} cores" if device == "cpu" else device


def write(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], path: Path) -> None:
    """Writes a CSV file. If the process is killed meanwhile, the old file stays complete."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, lambda file: file.write(text.getvalue().encode()))
