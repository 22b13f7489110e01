"""Safetensors, in one file or in the shards of a Hugging Face folder.

The library checks each header: it must fit in the file, and its ranges must cover the rest of the
file without gaps or overlaps and match shapes and dtypes. The bytes are then read at these ranges,
not through the library's memory map, because mapped pages count as memory of the process. The
library can only write all tensors at once, so a copy is the old header followed by the bytes of the
tensors.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tpgm_jax.cli._checkpoint import MOST_ENTRIES, Checkpoint, Entry, Replacement
from tpgm_jax.cli._errors import import_optional, reading, unreadable

KIND = "safetensors"
GIT_LFS = b"version https://git-lfs"  # how a file begins that `git clone` left to be fetched
# NumPy's names of the dtypes. NumPy has no dtypes of less than 8 bits, such as F4.
_NAMES = {
    **{"BOOL": "bool", "BF16": "bfloat16", "C64": "complex64"},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"},
    **{"F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz"},
}


class Safetensors(Checkpoint):
    """One or more safetensors files; `path` is the path to show."""

    kind = KIND

    def __init__(self, path: Path, files: Sequence[Path]):
        # The entries of each file, in its order; and where their bytes are.
        self.files: dict[Path, list[Entry]] = {file: [] for file in files}
        self._starts: dict[str, tuple[Path, int]] = {}
        super().__init__(path, self._entries())

    def _entries(self) -> Iterator[Entry]:
        for file, entries in self.files.items():
            start, tensors = _read_header(file)
            for name, tensor in tensors:
                begin, end = tensor["data_offsets"]
                label = _NAMES.get(tensor["dtype"]) or tensor["dtype"]
                entry = Entry(name, tuple(tensor["shape"]), label, end - begin)
                self._starts[name] = (file, start + begin)
                entries.append(entry)
                yield entry

    def read(self, name: str) -> np.ndarray:
        (file, start), entry = self._starts[name], self.entries[name]
        data = np.fromfile(file, np.uint8, entry.size, offset=start)
        if data.size < entry.size:
            remedy = "run this again when no other program writes to it"
            raise unreadable(file, "it became shorter meanwhile", remedy)
        return data if entry.dtype is None else data.view(entry.dtype).reshape(entry.shape)

    def save(self, target: Path, replacement: Replacement) -> list[str]:
        (file,) = self.files
        self.write(file, target, replacement)
        return []

    def write(self, file: Path, target: Path, replacement: Replacement) -> None:
        """Writes a copy of one of the files."""
        with file.open("rb") as old, target.open("xb") as out:
            length = old.read(8)
            out.write(length + old.read(int.from_bytes(length, "little")))
            for entry in self.files[file]:
                new = replacement(entry)
                new = self.read(entry.name) if new is None else new
                out.write(np.ascontiguousarray(new).reshape(-1).view(np.uint8).data)
                del new  # before the next one is read


def _read_header(path: Path) -> tuple[int, list[tuple[str, Any]]]:
    """Where the data start, and the name and description of each tensor, in their order there."""
    safetensors = import_optional("safetensors")
    with path.open("rb") as file:
        if file.read(len(GIT_LFS)) == GIT_LFS:
            raise unreadable(path, "it is a Git LFS pointer, not the file", "run `git lfs pull`")
    with reading(path, KIND):
        with safetensors.safe_open(path, framework="numpy") as checked:
            if len(checked.offset_keys()) > MOST_ENTRIES:
                raise ValueError(f"it has more than {MOST_ENTRIES} tensors")
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return 8 + length, sorted(header.items(), key=lambda item: item[1]["data_offsets"])
