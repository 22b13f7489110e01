"""The interface of a checkpoint: entries by name, read one at a time."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import jax.numpy as jnp
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
    def floating(self) -> bool:
        return self.dtype is not None and bool(jnp.issubdtype(self.dtype, jnp.floating))

    @property
    def inexact(self) -> bool:
        return self.dtype is not None and bool(jnp.issubdtype(self.dtype, jnp.inexact))


# Returns the new array of an entry, or `None` to keep the old one.
Replacement = Callable[[Entry], np.ndarray | None]


class Checkpoint(Protocol):
    """A file or directory that is open for reading. Arrays stay on disk until they are read.

    Attributes:
        path: the file or directory.
        kind: name of the format.
        entries: entries by name, in the order of the file.
    """

    @property
    def path(self) -> Path: ...

    @property
    def kind(self) -> str: ...

    @property
    def entries(self) -> Mapping[str, Entry]: ...

    def expect(self, names: Sequence[str]) -> None:
        """Announces the order of reads, so that a format can read ahead."""
        ...

    def read(self, name: str) -> np.ndarray:
        """The array of one entry; its bytes if the entry has no dtype."""
        ...

    def save(self, target: Path, replacement: Replacement) -> None:
        """Writes a copy to the new path `target`, with entries replaced one at a time.

        Names, order, shapes, dtypes and metadata do not change.
        """
        ...

    def close(self) -> None: ...


class Ranges:
    """A checkpoint that stores raw array bytes at known ranges of a file.

    Saving copies the file and replaces the bytes of changed arrays; everything else is copied
    unread.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        entries: Mapping[str, Entry],
        ranges: Mapping[str, Sequence[tuple[int, int]]],
    ):
        self.path, self.kind, self.entries, self._ranges = path, kind, entries, ranges
        self._file = path.open("rb", buffering=0)

    def close(self) -> None:
        self._file.close()

    def expect(self, names: Sequence[str]) -> None:
        del names  # entries are read independently

    def read(self, name: str) -> np.ndarray:
        ranges, entry = self._ranges[name], self.entries[name]
        data = np.empty(sum(stop - start for start, stop in ranges), np.uint8)
        view, done = data.data, 0
        for start, stop in ranges:
            self._file.seek(start)
            end = done + stop - start
            while done < end:
                count = self._file.readinto(view[done:end])
                if not count:
                    raise self._size_error()
                done += count
        return data if entry.dtype is None else data.view(entry.dtype).reshape(entry.shape)

    def save(self, target: Path, replacement: Replacement) -> None:
        at = 0
        with target.open("xb") as out:
            for name in sorted(self.entries, key=lambda name: self._ranges[name][0]):
                new = replacement(self.entries[name])
                if new is None:
                    continue
                data, done = np.ascontiguousarray(new).reshape(-1).view(np.uint8).data, 0
                for start, stop in self._ranges[name]:
                    self._copy(out, at, start)
                    out.write(data[done : done + stop - start])
                    at, done = stop, done + stop - start
            self._copy(out, at, os.fstat(self._file.fileno()).st_size)

    def _copy(self, out, start: int, stop: int) -> None:
        self._file.seek(start)
        while start < stop:
            data = self._file.read(min(stop - start, 2**20))
            if not data:
                raise self._size_error()
            out.write(data)
            start += len(data)

    def _size_error(self) -> CommandError:
        return CommandError(
            f"{self.path} cannot be read, because it became shorter meanwhile: run this again when "
            "no other program writes to it."
        )


def bytes_of(shape: Sequence[int], dtype: np.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def collect(path: Path, entries: Sequence[Entry]) -> dict[str, Entry]:
    """Entries by name.

    Raises:
        CommandError: two of them have the same name.
    """
    by_name: dict[str, Entry] = {}
    for entry in entries:
        if entry.name in by_name:
            raise CommandError(
                f"{path} cannot be used, because it has two parameters called "
                f"{printable(entry.name)!r}: rename one, such as a key with a slash in it."
            )
        by_name[entry.name] = entry
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
