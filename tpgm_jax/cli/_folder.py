"""Hugging Face folders: safetensors in one file or in shards with an index, and small files."""

import json
import shutil
from pathlib import Path

from tpgm_jax.cli._checkpoint import Replacement
from tpgm_jax.cli._errors import printable, quoted, reading, unreadable
from tpgm_jax.cli._safetensors import Safetensors

INDEX = ".safetensors.index.json"
# No index and no configuration is larger: the largest models have about 10^5 tensors.
_LARGEST_SMALL_FILE = 2**26
# Files that hold weights. Only the safetensors are written anew; the others are not copied.
_WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".npz", ".ot", ".onnx"),
    *(".gguf", ".ggml", ".tflite", ".pkl", ".onnx_data", ".data", ".mlmodel"),
)


class Folder(Safetensors):
    """A folder with safetensors.

    Args:
        path: the path to show.
        weights: the index, or the only safetensors file.
    """

    def __init__(self, path: Path, weights: Path):
        self._weights = weights
        if not weights.name.endswith(INDEX):
            super().__init__(path, [weights])
            return
        shards = _read_index(weights)
        files = [weights.parent / name for name in dict.fromkeys(shards.values())]
        for file in files:
            if not file.is_file():
                because = f"its shard {quoted(file.name)} is missing"
                raise unreadable(weights, because, "fetch the folder again")
        super().__init__(path, files)
        found = {entry.name: file.name for file, shard in self.files.items() for entry in shard}
        for name, shard in sorted(found.items() ^ shards.items())[:1]:
            because = f"it and the shards disagree about {quoted(name)} in {quoted(shard)}"
            raise unreadable(weights, because, "fetch the folder again")

    def save(self, target: Path, replacement: Replacement) -> list[str]:
        target.mkdir()
        for file in self.files:
            self.write(file, target / file.name, replacement)
        return _copy_rest(self._weights, target)


def find_weights(folder: Path) -> Path | None:
    """The index or the only safetensors file of a folder; `None` if it has no safetensors."""
    for pattern in (f"model{INDEX}", f"*{INDEX}", "model.safetensors", "*.safetensors"):
        files = sorted(file for file in folder.glob(pattern) if file.is_file())
        if len(files) == 1:
            return files[0]
        if files:
            because = "it contains several safetensors files without an index"
            names = ", ".join(quoted(x.name) for x in files[:10])
            raise unreadable(folder, because, f"name one of {names}")
    return None


def _read_index(path: Path) -> dict[str, str]:
    """Name of a tensor to name of its shard."""
    with reading(path, "an index of safetensors"):
        if path.stat().st_size > _LARGEST_SMALL_FILE:
            raise ValueError(f"it has more than {_LARGEST_SMALL_FILE} bytes")
        shards = json.loads(path.read_bytes())["weight_map"]
        if not isinstance(shards, dict) or not shards:
            raise ValueError("its weight_map is no map of names")
        for name in shards.values():
            # A name, not a path: it must not lead out of the folder.
            if not isinstance(name, str) or Path(name).name != name or "\0" in name:
                raise ValueError(f"{name!r} is not the name of a file beside it")
            if not name.endswith(".safetensors"):
                raise ValueError(f"{name!r} is not a safetensors file")
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
