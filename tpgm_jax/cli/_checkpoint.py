"""The interface of a checkpoint: entries by name, read one at a time; bounds of all formats."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from tpgm_jax.cli._errors import quote, reading, unreadable

# Supported dtypes. A name from a file is looked up here and never passed to `numpy.dtype`, which
# also accepts "O", "V999999999" and "(9999,)f4".
_NAMES = (
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 complex64 complex128 "
    "float16 float32 float64 bfloat16 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz "
    "float8_e8m0fnu float8_e4m3 float8_e4m3b11fnuz float8_e3m4"
)
DTYPES = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in _NAMES.split()}
_KINDS = {"f": "float", "V": "float", "c": "complex", "i": "int", "u": "int", "b": "bool"}

# All tensors of a compressed file may expand to `FREE` bytes plus `EXPANSION` times its size.
# Weights compress by about a half; a file beyond this limit is a bomb, or all zeros.
EXPANSION, FREE = 100, 64 * 2**20
# The largest public models have about 10^5 tensors. NumPy has at most 64 axes.
MOST_ENTRIES, LONGEST_NAME, DEEPEST, MOST_AXES = 500_000, 1000, 100, 64
# Levels of all names together; each takes up to 500 bytes while names are sorted.
MOST_LEVELS = 1_000_000


class Entry(NamedTuple):
    """One leaf of a checkpoint."""

    name: str  # its path, joined by slashes if the format nests
    shape: tuple[int, ...]
    label: str  # NumPy's name of the dtype, or the name of another type
    size: int  # bytes in memory
    source: Any  # what the format needs to read it

    @property
    def dtype(self) -> np.dtype | None:
        """`None` for leaves of other types, which are read as bytes."""
        return DTYPES.get(self.label)

    @property
    def kind(self) -> str:
        """ "float", "complex", "int", "bool" or "other"."""
        return "other" if self.dtype is None else _KINDS[self.dtype.kind]

    @property
    def movable(self) -> bool:
        return self.kind in ("float", "complex")

    def array(self, data: np.ndarray) -> np.ndarray:
        """The array from its bytes, or the bytes if there is no dtype."""
        return data if self.dtype is None else data.view(self.dtype).reshape(self.shape)


# Returns the new array of an entry, or `None` to keep the old one.
Replacement = Callable[[Entry], np.ndarray | None]


class Checkpoint:
    """A file or directory that is open for reading. Arrays stay on disk until they are read.

    `entries` are in the order of the file. They are checked one by one, because names that share a
    long beginning can take much more memory than the file.
    """

    kind = ""

    def __init__(self, path: Path, entries: Iterable[Entry]):
        self.path = path
        self.entries: dict[str, Entry] = {}
        total = 0
        for entry in entries:
            name, axes = entry.name, len(entry.shape)
            levels = 1 + max(name.count("/"), name.count("."))
            total += levels
            because = ""
            if len(name) > LONGEST_NAME or levels > DEEPEST or axes > MOST_AXES:
                because = (
                    f"{quote(name, 60)} has a name of {len(name)} characters and {axes} axes, and "
                    f"at most {LONGEST_NAME} characters, {DEEPEST} levels and {MOST_AXES} axes are "
                    "allowed"
                )
            elif name in self.entries:
                because = f"it has two parameters called {quote(name)}"
            elif len(self.entries) == MOST_ENTRIES or total > MOST_LEVELS:
                because = f"it has more than {MOST_ENTRIES} tensors or {MOST_LEVELS} levels"
            if because:
                raise unreadable(path, because, "rename, reshape or split what it has")
            self.entries[name] = entry

    def read(self, name: str) -> np.ndarray:
        """The array of one entry; its bytes if the entry has no dtype."""
        with reading(self.path, self.kind):
            return self._read(self.entries[name])

    def _read(self, entry: Entry) -> np.ndarray:
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


def check_expansion(path: Path, size: int, stored: int) -> None:
    """Checks the size that a compressed file claims, before memory is allocated for it."""
    if size > FREE + EXPANSION * stored:
        because = f"it claims {size} bytes in {stored}, so it is damaged or a bomb"
        raise unreadable(path, because, "if it is neither, save it without compression")
