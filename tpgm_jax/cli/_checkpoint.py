"""The interface of a checkpoint: entries by name, read one at a time; bounds of all formats."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from tpgm_jax.cli._errors import CommandError
from tpgm_jax.cli._text import printable

# Supported dtypes. A name from a file is looked up here and never passed to `numpy.dtype`, which
# also accepts "O", "V999999999" and "(9999,)f4".
DTYPES = {
    np.dtype(x).name: np.dtype(x)
    for x in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
        *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
        *(ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2fnuz, ml_dtypes.float8_e8m0fnu),
        *(ml_dtypes.float8_e4m3, ml_dtypes.float8_e4m3b11fnuz, ml_dtypes.float8_e3m4),
    )
}

# A compressed file may expand to `FREE` bytes plus `EXPANSION` times its size. Weights compress by
# about a half; a file beyond this limit is a bomb, or all zeros.
EXPANSION, FREE = 100, 64 * 2**20
# The largest public models have about 10^5 tensors. NumPy has at most 64 axes.
MOST_ENTRIES, LONGEST_NAME, DEEPEST, MOST_AXES = 500_000, 1000, 100, 64


class Entry(NamedTuple):
    """One leaf of a checkpoint.

    Attributes:
        name: the leaf's path, joined by slashes if the format nests.
        shape: shape of the array.
        dtype: dtype of the array, or `None` for leaves that are copied unread.
        label: name of the type, for output.
        size: bytes in memory.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype | None
    label: str
    size: int

    @property
    def kind(self) -> str:
        """ "float", "complex", "int" or "bool" or "other"."""
        if self.dtype is None:
            return "other"
        if self.dtype.kind == "V":  # the dtypes of ml_dtypes
            return "float"
        return {"f": "float", "c": "complex", "i": "int", "u": "int", "b": "bool"}[self.dtype.kind]

    @property
    def movable(self) -> bool:
        return self.kind in ("float", "complex")


# Returns the new array of an entry, or `None` to keep the old one.
Replacement = Callable[[Entry], np.ndarray | None]


class Checkpoint:
    """A file or directory that is open for reading. Arrays stay on disk until they are read.

    Attributes:
        path: the path to show.
        kind: name of the format.
        entries: entries by name, in the order of the file.
    """

    kind = ""

    def __init__(self, path: Path, entries: Sequence[Entry]):
        self.path, self.entries = path, collect(path, entries)

    def read(self, name: str) -> np.ndarray:
        """The array of one entry; its bytes if the entry has no dtype."""
        raise NotImplementedError

    def save(self, target: Path, replacement: Replacement) -> list[str]:
        """Writes a copy to the new path `target`, with entries replaced one at a time.

        Names, order, shapes, dtypes and metadata do not change. Returns notes for the user.
        """
        raise NotImplementedError

    def close(self) -> None:
        pass


def bytes_of(shape: Sequence[int], dtype: np.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def collect(path: Path, entries: Sequence[Entry]) -> dict[str, Entry]:
    """Entries by name.

    Raises:
        CommandError: two of them have the same name, or one exceeds a bound.
    """
    by_name: dict[str, Entry] = {}
    if len(entries) > MOST_ENTRIES:
        raise CommandError(
            f"{path} cannot be used, because it has {len(entries)} tensors, more than the "
            f"{MOST_ENTRIES} that are allowed: split it."
        )
    for entry in entries:
        name = entry.name
        too_deep = name.count("/") >= DEEPEST or name.count(".") >= DEEPEST
        if len(name) > LONGEST_NAME or too_deep or len(entry.shape) > MOST_AXES:
            raise CommandError(
                f"{path} cannot be used, because {printable(name, 60)!r} has a name of {len(name)} "
                f"characters and {len(entry.shape)} axes, and at most {LONGEST_NAME} characters, "
                f"{DEEPEST} levels and {MOST_AXES} axes are allowed: rename or reshape it."
            )
        if name in by_name:
            raise CommandError(
                f"{path} cannot be used, because it has two parameters called "
                f"{printable(name)!r}: rename one, such as a key with a slash in it."
            )
        by_name[name] = entry
    return by_name


def check_expansion(path: Path, name: str, size: int, stored: int) -> None:
    """Checks the size that a compressed file claims, before memory is allocated for it.

    Raises:
        CommandError: `size` is too large for a file of `stored` bytes.
    """
    if size > FREE + EXPANSION * stored:
        raise CommandError(
            f"{path}: {printable(name)!r} claims {size} bytes, more than {EXPANSION} times the "
            f"{stored} of the file, so it is damaged or a bomb: if it is neither, save it without "
            "compression."
        )
