"""Detection of the format, by content first and by name second."""

import stat
from pathlib import Path

from tpgm_jax.cli._checkpoint import Checkpoint
from tpgm_jax.cli._errors import CommandError, printable, unreadable
from tpgm_jax.cli._msgpack import Msgpack
from tpgm_jax.cli._npz import Npz, pickle_error
from tpgm_jax.cli._orbax import Orbax, find_item
from tpgm_jax.cli._safetensors import GIT_LFS, INDEX, Safetensors, find_weights

SUFFIXES = (".safetensors", ".msgpack", ".npz")
FORMATS = "safetensors (a file, a Hugging Face folder or its index), flax msgpack, npz, or Orbax"
# How files of other formats begin, and what they are.
_OTHERS = {
    GIT_LFS: ("a Git LFS pointer, not the file", "run `git lfs pull`"),
    b"\x89HDF\r\n\x1a\n": ("HDF5 (Keras)", "load it with Keras or h5py and save safetensors"),
    b"GGUF": ("GGUF, which is quantized", "use the safetensors that it was made of"),
    b"\x93NUMPY": ("a single array (.npy)", "save it with `numpy.savez`"),
    b"\x1f\x8b": ("compressed with gzip", "unpack it first"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "unpack it first"),
    b"<": ("a web page (HTML or XML)", "fetch the file itself"),
    b"\x08": ("ONNX or another protocol buffer", "export the weights with safetensors"),
    b"{": (f"JSON, and not named *{INDEX}", "pass the folder or the weights"),
}


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a checkpoint of any supported format."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        return _open_directory(path)
    if not stat.S_ISREG(mode):
        raise unreadable(path, "it is neither a file nor a directory", f"pass {FORMATS}")
    if path.name.endswith(INDEX):
        return Safetensors(path, path, folder=True)
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise unreadable(path, "it is empty", "fetch or save it again")
    # In msgpack, 0x80 is an empty map, which nothing can follow in a file.
    is_pickle = head[0] == 0x80 and head[1:2] in (b"\2", b"\3", b"\4", b"\5")
    if is_pickle or path.suffix in (".pkl", ".pickle", ".joblib") or head[257:262] == b"ustar":
        raise pickle_error(path)
    if head.startswith(b"PK\3\4"):
        return Npz(path)
    # The first eight bytes of safetensors are a length, which may look like anything.
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return Safetensors(path, path, folder=False)
    for magic, (what, remedy) in _OTHERS.items():
        if head.startswith(magic):
            raise unreadable(path, f"it is {what}", remedy)
    if path.suffix == ".npz":
        return Npz(path)
    if path.suffix == ".msgpack" or 0x80 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF):
        return Msgpack(path)
    raise unreadable(path, "its format is unknown", f"pass {FORMATS}")


def _open_directory(path: Path) -> Checkpoint:
    item = find_item(path)
    if item is not None:
        return Orbax(path, item)
    weights = find_weights(path)
    if weights is not None:
        return Safetensors(path, weights, folder=True)
    if (path / "saved_model.pb").exists() or any(path.glob("*.index")):
        remedy = "load it with TensorFlow and save safetensors"
        raise unreadable(path, "it is a TensorFlow checkpoint", remedy)
    files = sorted(path.iterdir())
    pickles = [x for x in files if x.suffix in (".bin", ".pt", ".pth")]
    files = [x for x in files if x.suffix in (".msgpack", ".npz", ".h5")]
    if pickles and not files:
        raise pickle_error(pickles[0])
    remedy = f"name the step, such as {path}/1000"
    if (path / "config.json").exists():
        remedy = "its weights are missing: fetch them"
    if files:
        remedy = f"name the file, such as {printable(str(files[0]))}"
    raise CommandError(
        f"{path} is not a checkpoint",
        "neither it nor a directory in it has safetensors or Orbax's file _METADATA",
        remedy,
    )
