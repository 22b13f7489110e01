"""Safetensors, in one file or in the shards of a Hugging Face folder.

The library reads and checks each header: it must fit in the file, and its ranges must cover the
rest of the file without gaps or overlaps and match shapes and dtypes. The bytes are then read at
these ranges, not through the library's memory map, because mapped pages count as memory of the
process. The library can only write all tensors at once, so a copy is the old header followed by the
bytes of the tensors.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from tpgm_jax.cli._checkpoint import Checkpoint, Entry, Replacement
from tpgm_jax.cli._errors import CommandError, import_optional, translate_read_errors

KIND = "safetensors"

_DTYPES = {
    "BOOL": np.dtype(bool),
    **{f"{x}{8 * n}": np.dtype(f"{x.lower()}{n}") for x in "IU" for n in (1, 2, 4, 8)},
    **{f"F{8 * n}": np.dtype(f"f{n}") for n in (2, 4, 8)},
    "C64": np.dtype(np.complex64),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
}
# Dtypes of less than 8 bits: never computed with.
_PACKED_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


class Safetensors(Checkpoint):
    """One or more safetensors files.

    Args:
        path: the path to show.
        files: the files.
        finish: `None` for a single file. Otherwise `save` writes a folder and then calls `finish`
            with it, which adds the other files and returns notes for the user.
    """

    kind = KIND

    def __init__(
        self,
        path: Path,
        files: Sequence[Path],
        finish: Callable[[Path], list[str]] | None = None,
    ):
        self._files, self._finish = files, finish
        self._starts: dict[str, tuple[Path, int]] = {}
        self._shards: dict[Path, list[Entry]] = {}
        for file in files:
            self._shards[file] = shard = []
            for entry, start in _entries(file):
                shard.append(entry)
                self._starts[entry.name] = (file, start)
        super().__init__(path, [x for shard in self._shards.values() for x in shard])

    @property
    def shards(self) -> dict[str, str]:
        """Name of each tensor to name of its file."""
        return {name: file.name for name, (file, _) in self._starts.items()}

    def read(self, name: str) -> np.ndarray:
        (file, start), entry = self._starts[name], self.entries[name]
        data = np.fromfile(file, np.uint8, entry.size, offset=start)
        if data.size < entry.size:
            raise CommandError(
                f"{file} cannot be read, because it became shorter meanwhile: run this again when "
                "no other program writes to it."
            )
        return data if entry.dtype is None else data.view(entry.dtype).reshape(entry.shape)

    def save(self, target: Path, replacement: Replacement) -> list[str]:
        if self._finish is None:
            self._write(self._files[0], target, replacement)
            return []
        target.mkdir()
        for file in self._files:
            self._write(file, target / file.name, replacement)
        return self._finish(target)

    def _write(self, file: Path, target: Path, replacement: Replacement) -> None:
        with file.open("rb") as old, target.open("xb") as out:
            length = old.read(8)
            out.write(length + old.read(int.from_bytes(length, "little")))
            for entry in self._shards[file]:
                new = replacement(entry)
                new = self.read(entry.name) if new is None else new
                out.write(np.ascontiguousarray(new).reshape(-1).view(np.uint8).data)
                del new  # before the next one is read


def _entries(path: Path) -> list[tuple[Entry, int]]:
    """The entries of one file, in its order, and where their bytes start."""
    safetensors = import_optional("safetensors")
    size = path.stat().st_size
    with path.open("rb") as file:
        claimed = int.from_bytes(file.read(8), "little")
    if claimed > size - 8:
        raise CommandError(
            f"{path} is not a complete safetensors file, because it claims a header of {claimed} "
            f"bytes and has {size} in total: fetch it again."
        )
    start, found = 8 + claimed, []
    with translate_read_errors(path, KIND), safetensors.safe_open(path, framework="numpy") as file:
        for name in file.offset_keys():
            header = file.get_slice(name)
            shape, label = tuple(header.get_shape()), header.get_dtype()
            dtype = _DTYPES.get(label)
            bits = _PACKED_BITS.get(label) if dtype is None else 8 * dtype.itemsize
            if bits is None:
                raise CommandError(
                    f"{path} cannot be read, because it has a tensor of the unknown dtype {label}: "
                    "save it with another dtype."
                )
            length = math.prod(shape) * bits // 8
            label = label if dtype is None else dtype.name
            found.append((Entry(name, shape, dtype, label, length), start))
            start += length
    if start != size:
        raise CommandError(
            f"{path} cannot be read, because it has {size} bytes and its header describes {start}: "
            "fetch or save it again."
        )
    return found
