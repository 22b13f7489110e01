"""Hugging Face folders: safetensors in one file or in shards with an index, and small files."""

import json
import shutil
from pathlib import Path
from typing import Any

from tpgm_jax.cli._errors import CommandError, translate_read_errors
from tpgm_jax.cli._safetensors import Safetensors
from tpgm_jax.cli._text import printable

INDEX = ".safetensors.index.json"
# No index is larger: the largest models have about 10^5 tensors.
LARGEST_INDEX = 2**26
# Files that hold weights. Only the safetensors are written anew; the others are not copied.
_WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".npz", ".ot", ".onnx"),
    *(".gguf", ".ggml", ".tflite", ".pkl", ".onnx_data", ".data", ".mlmodel"),
)
_LARGEST_COPIED = 2**26


def find_weights(folder: Path) -> Path | None:
    """The index or the only safetensors file of a folder; `None` if it has no safetensors.

    Raises:
        CommandError: there are several.
    """
    for pattern in (f"model{INDEX}", f"*{INDEX}", "model.safetensors", "*.safetensors"):
        files = sorted(folder.glob(pattern))
        if len(files) == 1:
            return files[0]
        if files:
            names = ", ".join(repr(printable(x.name)) for x in files[:10])
            raise CommandError(
                f"{folder} cannot be read, because it holds several safetensors files without an "
                f"index: name one of {names}."
            )
    return None


def open_folder(path: Path, weights: Path) -> Safetensors:
    """Opens the folder of `weights`, an index or a single file.

    Args:
        path: the path to show.
        weights: the result of `find_weights`.
    """
    folder = weights.parent
    if not weights.name.endswith(INDEX):
        return Safetensors(path, [weights], lambda target: _copy_rest(folder, target))
    by_name = _read_index(weights)
    files = [folder / name for name in dict.fromkeys(by_name.values())]
    for file in files:
        if not file.is_file():
            raise CommandError(
                f"{weights} cannot be used, because its shard {printable(file.name)!r} is missing: "
                "fetch the folder again."
            )
    checkpoint = Safetensors(path, files, lambda target: _copy_rest(folder, target, weights.name))
    differing = checkpoint.shards.items() ^ by_name.items()
    for name, shard in sorted(differing)[:1]:
        raise CommandError(
            f"{weights} cannot be used, because it and the shards disagree about "
            f"{printable(name)!r} in {printable(shard)!r}: fetch the folder again."
        )
    return checkpoint


def _read_index(path: Path) -> dict[str, str]:
    """Name of a tensor to name of its shard."""
    with translate_read_errors(path, "an index of safetensors"):
        if path.stat().st_size > LARGEST_INDEX:
            raise ValueError(f"it has more than {LARGEST_INDEX} bytes")
        found: Any = json.loads(path.read_bytes())["weight_map"]
        if not isinstance(found, dict) or not found:
            raise ValueError("its weight_map is no map of names")
        for name in found.values():
            # A name, not a path: it must not lead out of the folder.
            if not isinstance(name, str) or Path(name).name != name or "\0" in name:
                raise ValueError(f"{name!r} is not the name of a file beside it")
            if not name.endswith(".safetensors"):
                raise ValueError(f"{name!r} is not a safetensors file")
        return found


def _copy_rest(folder: Path, target: Path, index: str = "") -> list[str]:
    """Copies the small files beside the weights, such as the configuration and the tokenizer."""
    copied, left = [], []
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if hidden or not file.is_file() or (target / name).exists():
            continue
        other_index = file.name.endswith(".index.json") and str(name) != index
        if other_index or file.suffix in _WEIGHTS or file.stat().st_size > _LARGEST_COPIED:
            left.append(str(name))
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / name)
        copied.append(str(name))
    notes = [f"copied beside the weights: {printable(', '.join(copied))}"] if copied else []
    return notes + ([f"not copied: {printable(', '.join(left))}"] if left else [])
