"""Checkpoints on disk, in each format that the command line reads, for its tests."""

import json
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import safetensors
import safetensors.numpy
from flax import serialization, traverse_util

from tpgm_jax.cli import main

# Names as Flax has them: attention with its heads, a scanned stack, a norm.
SHAPES = {
    "block_0/query/kernel": (6, 2, 4),
    "block_0/query/bias": (2, 4),
    "block_2/norm/scale": (6,),
    "block_10/kernel": (6, 5),
    "layers/kernel": (3, 4, 2),
    "gain": (),
}
FLOAT8 = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E8M0": ml_dtypes.float8_e8m0fnu}
FORMATS = {"safetensors": ".safetensors", "msgpack": ".msgpack", "npz": ".npz", "orbax": ""}


def weights(seed: int, dtype: Any = np.float32, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Normal numbers for each of `SHAPES`, by name."""
    rng = np.random.default_rng(seed)
    return {
        name: np.asarray(scale * rng.normal(size=s)).astype(dtype) for name, s in SHAPES.items()
    }


def save(path: Path, flat: dict[str, Any], **metadata: str) -> Path:
    """Writes `flat` in the format of the suffix of `path`, or without a suffix for Orbax."""
    nested = traverse_util.unflatten_dict(flat, sep="/")
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file(flat, path, metadata=metadata or None)
    elif path.suffix == ".npz":
        np.savez(path, **flat)
    elif path.suffix == ".msgpack":
        path.write_bytes(serialization.to_bytes(nested))
    else:
        ocp.PyTreeCheckpointer().save(path.absolute(), nested)
    return path


def save_pair(folder: Path) -> list[Path]:
    """A pre-trained and a fine-tuned checkpoint."""
    return [save(folder / f"{name}.safetensors", weights(i)) for i, name in enumerate(("w0", "w"))]


def load(path: Path) -> dict[str, np.ndarray]:
    """The arrays that the format's own library reads."""
    if path.suffix == ".safetensors":
        # `load_file` cannot read float8.
        arrays = safetensors.deserialize(path.read_bytes())
        return {
            name: np.frombuffer(x["data"], FLOAT8.get(x["dtype"]) or _dtype(x["dtype"])).reshape(
                x["shape"]
            )
            for name, x in arrays
        }
    if path.suffix == ".npz":
        # NumPy writes bfloat16 as two bytes without a name.
        arrays = dict(np.load(path))
        return {k: x.view(ml_dtypes.bfloat16) if x.dtype == "V2" else x for k, x in arrays.items()}
    if path.suffix == ".msgpack":
        tree = serialization.msgpack_restore(path.read_bytes())
    else:
        checkpointer = ocp.PyTreeCheckpointer()
        described: Any = checkpointer.metadata(path.absolute()).item_metadata
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), described.tree)
        tree = checkpointer.restore(path.absolute(), restore_args=args)
    return {k: np.asarray(x) for k, x in traverse_util.flatten_dict(tree, sep="/").items()}


def _dtype(label: str) -> Any:
    special = {"BF16": ml_dtypes.bfloat16, "C64": np.complex64, "BOOL": np.bool_}
    return special.get(label) or f"{label[0].lower()}{int(label[1:]) // 8}"


def command(capsys, *args: Any) -> tuple[int, str, str]:
    """Runs the command line in this process: exit code, stdout, stderr."""
    code = main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return code, out, err


def compared(capsys, *args: Any) -> dict[str, Any]:
    """The result that `compare --json` prints."""
    code, out, err = command(capsys, "compare", *args, "--json")
    found = json.loads(out)
    same = found["same_structure"] and not found["totals"]["not_finite"]
    assert (code, err) == (0 if same else 1, "")
    return found
