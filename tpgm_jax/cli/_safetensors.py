"""Safetensors: a file, or a Hugging Face folder with one file or with shards and their index.

The library checks each header: it must fit in the file, and its ranges must cover the rest of the
file without gaps or overlaps and match shapes and dtypes. The bytes are then read at these ranges,
not through the library's memory map, because mapped pages count as memory of the process. The
library can only write all tensors at once, so a copy is the old header followed by the bytes of the
tensors.
"""

import json
import shutil
from collections.abc import Iterator
from itertools import chain, groupby
from pathlib import Path

import numpy as np

from tpgm_jax.cli._checkpoint import MOST_ENTRIES, Checkpoint, Entry, Replacement
from tpgm_jax.cli._errors import import_optional, printable, quote, reading, unreadable

INDEX = ".safetensors.index.json"
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
# No index and no configuration is larger: the largest models have about 10^5 tensors.
_LARGEST_SMALL_FILE = 2**26
# Files that hold weights. Only the safetensors are written anew; the others are not copied.
_WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".npz", ".ot", ".onnx"),
    *(".gguf", ".ggml", ".tflite", ".pkl", ".onnx_data", ".data", ".mlmodel"),
)


class Safetensors(Checkpoint):
    """One or more safetensors files. `path` is the path to show, and `weights` a file or an index.

    A copy of a `folder` is a folder, with the small files beside the weights.
    """

    kind = "safetensors"

    def __init__(self, path: Path, weights: Path, folder: bool):
        self._weights, self._folder = weights, folder
        if not weights.name.endswith(INDEX):
            super().__init__(path, _entries(weights))
            return
        with reading(weights, "an index of safetensors"):
            shards = _read_index(weights)
            files = [weights.parent / name for name in dict.fromkeys(shards.values())]
            super().__init__(path, chain.from_iterable(map(_entries, files)))
            found = {name: entry.source[0].name for name, entry in self.entries.items()}
            for name, shard in sorted(found.items() ^ shards.items())[:1]:
                raise ValueError(f"it and the shards disagree about {name!r} in {shard!r}")

    def _read(self, entry: Entry) -> np.ndarray:
        file, start = entry.source
        data = np.fromfile(file, np.uint8, entry.size, offset=start)
        if data.size < entry.size:
            raise ValueError("another program made it shorter meanwhile")
        return entry.array(data)

    def save(self, target: Path, replacement: Replacement) -> list[str]:
        if self._folder:
            target.mkdir()
        for file, entries in groupby(self.entries.values(), lambda entry: entry.source[0]):
            copy = target / file.name if self._folder else target
            with file.open("rb") as old, copy.open("xb") as out:
                length = old.read(8)
                out.write(length + old.read(int.from_bytes(length, "little")))
                for entry in entries:
                    array = replacement(entry)
                    array = self.read(entry.name) if array is None else array
                    out.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
                    del array  # before the next one is read
        return _copy_rest(self._weights, target) if self._folder else []


def _entries(file: Path) -> Iterator[Entry]:
    """The tensors of a file, in the order of their bytes."""
    safetensors = import_optional("safetensors")
    with file.open("rb") as opened, reading(file, Safetensors.kind):
        start = opened.read(len(GIT_LFS))
        if start == GIT_LFS:
            raise unreadable(file, "it is a Git LFS pointer, not the file", "run `git lfs pull`")
        with safetensors.safe_open(file, framework="numpy") as checked:
            if len(checked.offset_keys()) > MOST_ENTRIES:
                raise ValueError(f"it has more than {MOST_ENTRIES} tensors")
        length = int.from_bytes(start[:8], "little")
        opened.seek(8)
        header = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        for name, tensor in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            start, end = tensor["data_offsets"]
            label = _NAMES.get(tensor["dtype"]) or tensor["dtype"]
            source = file, 8 + length + start
            yield Entry(name, tuple(tensor["shape"]), label, end - start, source)


def find_weights(folder: Path) -> Path | None:
    """The index or the only safetensors file of a folder; `None` if it has no safetensors."""
    for pattern in (f"model{INDEX}", f"*{INDEX}", "model.safetensors", "*.safetensors"):
        files = sorted(file for file in folder.glob(pattern) if file.is_file())
        if len(files) == 1:
            return files[0]
        if files:
            because = "it contains several safetensors files without an index"
            names = ", ".join(quote(x.name) for x in files[:10])
            raise unreadable(folder, because, f"name one of {names}")
    return None


def _read_index(path: Path) -> dict[str, str]:
    """Name of a tensor to name of its shard."""
    if path.stat().st_size > _LARGEST_SMALL_FILE:
        raise ValueError(f"it has more than {_LARGEST_SMALL_FILE} bytes")
    shards = json.loads(path.read_bytes())["weight_map"]
    if not isinstance(shards, dict) or not shards:
        raise ValueError("its weight_map is not a map of names")
    for name in set(shards.values()):
        # A name, not a path: it must not lead out of the folder.
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{name!r} is not the name of a file beside it")
        if not (path.parent / name).is_file():
            raise ValueError(f"its shard {name!r} is missing")
    return shards


def _copy_rest(weights: Path, target: Path) -> list[str]:
    """Copies the small files beside the weights, such as the configuration and the tokenizer."""
    left = []
    for file in sorted(weights.parent.rglob("*")):
        name = file.relative_to(weights.parent)
        hidden = any(part.startswith(".") for part in name.parts)
        if hidden or not file.is_file() or (target / name).exists():
            continue
        other_index = file.name.endswith(".index.json") and file != weights
        large = file.stat().st_size > _LARGEST_SMALL_FILE
        if other_index or large or file.suffix in _WEIGHTS:
            left.append(str(name))
        else:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / name)
    return [f"not copied: {printable(', '.join(left))}"] if left else []
