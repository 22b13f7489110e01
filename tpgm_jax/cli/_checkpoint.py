"""What a checkpoint is to the commands: entries by name, of which one is read at a time."""

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

# The dtypes of which we read numbers. A name out of a file is looked up here and never handed to
# `numpy.dtype`, which understands "O", "V999999999" and "(9999,)f4" too.
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

# A compressed file may unfold to a hundred times its size, and small ones to this many bytes.
# Weights compress by a half; what exceeds both is a bomb, or nothing but zeros.
EXPANSION, FREE = 100, 64 * 2**20


class Entry(NamedTuple):
    """One leaf of a checkpoint.

    Attributes:
        name: its path, joined by slashes where the format nests.
        shape: its shape.
        dtype: of its numbers, or `None` for what is copied and not looked into.
        label: what its type is called.
        size: its bytes in memory.
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


# What an entry becomes; `None`: it stays as it is.
Replacement = Callable[[Entry], np.ndarray | None]


class Checkpoint(Protocol):
    """A file or directory that is open for reading. Its numbers stay on disk.

    Attributes:
        path: where it is.
        kind: the name of its format.
        entries: by name, in the order of the file.
    """

    @property
    def path(self) -> Path: ...

    @property
    def kind(self) -> str: ...

    @property
    def entries(self) -> Mapping[str, Entry]: ...

    def expect(self, names: Sequence[str]) -> None:
        """In which order entries will be read, for formats that gain by knowing."""
        ...

    def read(self, name: str) -> np.ndarray:
        """One entry's numbers; of an entry without a dtype its bytes."""
        ...

    def save(self, target: Path, replacement: Replacement) -> None:
        """Writes this checkpoint to `target`, new, with entries replaced one at a time.

        Names, order, shapes, dtypes and metadata stay.
        """
        ...

    def close(self) -> None: ...


class Ranges:
    """A checkpoint whose entries lie in a file as they lie in memory.

    A new one is then the same file with these bytes exchanged, and whatever else is in it stays
    without our understanding it.
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
        del names  # any order is as good

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
                    raise CommandError(f"{self.path} became shorter while it was read.")
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
                raise CommandError(f"{self.path} became shorter while it was read.")
            out.write(data)
            start += len(data)


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
                f"{path} has two parameters called {printable(entry.name)!r}, so that no name "
                "tells them apart: rename one, such as a key with a slash in it."
            )
        by_name[entry.name] = entry
    return by_name


def check_expansion(path: Path, name: str, size: int, stored: int) -> None:
    """A size that a compressed file claims, before memory is set aside for it."""
    if size > FREE + EXPANSION * stored:
        raise CommandError(
            f"{path}: {printable(name)!r} claims {size} bytes, more than {EXPANSION} times the "
            f"{stored} that there are: it is damaged or a bomb. Save it without compression if "
            "it is neither."
        )
