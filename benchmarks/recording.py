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
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, lambda file: file.write(text.getvalue().encode()))


def append(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], path: Path) -> None:
    """Adds rows to a CSV file, or makes it. Call `read` before the first time."""
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, columns, lineterminator="\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        if file.tell() == 0:
            writer.writeheader()
        writer.writerows({key: text(row[key]) for key in columns} for row in rows)
        file.write(lines.getvalue().encode())


def read(path: Path, columns: Sequence[str] | None = None) -> list[dict[str, str]]:
    """The rows that `append` wrote; none if there is no file.

    A kill can leave an unfinished last line, which is removed. If `columns` are given, raises if
    the file has others.
    """
    if not path.exists():
        return []
    whole = path.read_bytes()
    if not whole.endswith(b"\n"):
        os.truncate(path, whole.rfind(b"\n") + 1)
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows, found = list(reader), list(reader.fieldnames or ())
    if columns and found and found != list(columns):
        raise SystemExit(
            f"{path} has other columns than this program writes, so it cannot be continued. "
            f"Move it away, or name another --output.\nexpected: {','.join(columns)}\n"
            f"received: {','.join(found)}"
        )
    return rows


def text(value: Any) -> str:
    """A float with six digits, which is exact for shares of up to a thousand images."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def setting(name: str, value: float | None) -> str:
    """The text in a column `setting`, such as "weight=0.01"; empty without a value."""
    return "" if value is None else f"{name}={value:g}"


def value(setting: str) -> float:
    """The number in a column `setting`; 0 if it is empty."""
    return float(setting.partition("=")[2] or 0)
