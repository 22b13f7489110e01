"""CSV files that grow row by row, and that a kill leaves whole but for the last line."""

import csv
import fcntl
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.study.cells import Cell


class Records:
    """Rows on disk, of which one process at a time adds to.

    Args:
        path: of the CSV file, made if it is not there.
        columns: its header, as it must be.
    """

    def __init__(self, path: Path, columns: Sequence[str]):
        self.columns = list(columns)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("a+b")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.file.close()
            raise SystemExit(
                f"{path} is being written by another run: wait for it, or name another --output."
            ) from None
        self._drop_unfinished_line()
        if self.file.tell() == 0:
            self._write([dict(zip(columns, columns, strict=True))])
        try:
            self.rows = read(path, columns)
        except SystemExit:
            self.file.close()
            raise

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds rows, on disk when this returns."""
        new = [{k: text(row[k]) for k in self.columns} for row in rows]
        self._write(new)
        self.rows += new

    def missing(
        self, wanted: Iterable[Mapping[str, Any]], keys: Sequence[str]
    ) -> list[Mapping[str, Any]]:
        """Those of `wanted` whose `keys` no row has yet."""
        done = {tuple(row[key] for key in keys) for row in self.rows}
        return [one for one in wanted if tuple(text(one[key]) for key in keys) not in done]

    def close(self) -> None:
        self.file.close()

    def _write(self, rows: list[dict[str, str]]) -> None:
        made = io.StringIO()
        csv.DictWriter(made, self.columns, lineterminator="\n").writerows(rows)
        self.file.write(made.getvalue().encode())
        self.file.flush()
        os.fsync(self.file.fileno())

    def _drop_unfinished_line(self) -> None:
        """What a kill left of a line."""
        self.file.seek(0)
        whole = self.file.read()
        self.file.truncate(whole.rfind(b"\n") + 1)
        self.file.seek(0, os.SEEK_END)


def read(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """All rows, whose header must be `columns`."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if list(reader.fieldnames or ()) != list(columns):
            raise SystemExit(
                f"{path} has other columns than this version of the study writes, so that its rows "
                "can not be gone on from. Move it away, or name another --output.\n"
                f"expected: {','.join(columns)}\nreceived: {','.join(reader.fieldnames or ())}"
            )
        return list(reader)


def cell(row: Mapping[str, str]) -> Cell:
    """Which cell a row answers."""
    return Cell(
        *(row["model"], row["head"], row["method"], float(row["learning_rate"]), row["setting"]),
        *(int(row["pretrain_seed"]), int(row["seed"])),
    )


def text(value: Any) -> str:
    """Six digits of a number: a whole number of images in a thousand can be told from it."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
