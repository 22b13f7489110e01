"""Where numbers were measured, and how they are put on disk."""

import csv
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax


def machine() -> str:
    device = jax.devices()[0].device_kind
    return f"{platform.machine()}, {os.cpu_count()} cores" if device == "cpu" else device


def write(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], path: Path) -> None:
    """As CSV; beside and renamed, so that a kill leaves the old results whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    with beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    beside.replace(path)
