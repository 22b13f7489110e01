"""Detection of the format, by content first and by name second."""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tpgm_jax.cli._checkpoint import Checkpoint
from tpgm_jax.cli._errors import CommandError
from tpgm_jax.cli._folder import INDEX, find_weights, open_folder
from tpgm_jax.cli._msgpack import open_msgpack
from tpgm_jax.cli._npz import open_npz, pickle_message
from tpgm_jax.cli._orbax import find_item, open_orbax
from tpgm_jax.cli._safetensors import Safetensors
from tpgm_jax.cli._text import printable

SUFFIXES = (".safetensors", ".msgpack", ".npz")
FORMATS = (
    "safetensors (a file, a Hugging Face folder or its index), flax msgpack, npz, or an Orbax "
    "directory"
)
# How files of other formats begin.
OTHERS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file: run `git lfs pull`",
    b"\x89HDF\r\n\x1a\n": "HDF5 (Keras): load it with Keras or h5py and save safetensors",
    b"GGUF": "GGUF (llama.cpp), which is quantized: use the safetensors that it was made of",
    b"\x93NUMPY": "a single array (.npy): save it with `numpy.savez`",
    b"\x1f\x8b": "compressed with gzip: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it first",
    b"BZh": "compressed with bzip2: unpack it first",
    b"\xfd7zXZ": "compressed with xz: unpack it first",
    b"<": "a web page (HTML or XML): fetch the file itself",
    b"\x08": "ONNX or another protocol buffer: export the weights with safetensors",
    b"{": f"JSON, and not named *{INDEX}: pass the folder or the weights",
}


@contextmanager
def open_checkpoint(path: Path) -> Iterator[Checkpoint]:
    """Opens a checkpoint of any supported format.

    Raises:
        CommandError: the checkpoint is missing, damaged, or a pickle.
    """
    try:
        checkpoint = _open(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CommandError(
            f"{path} cannot be opened, because the system reports {reason!r}: check the path and "
            "its permissions."
        ) from error
    try:
        yield checkpoint
    finally:
        checkpoint.close()


def _open(path: Path) -> Checkpoint:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        return _open_directory(path)
    if not stat.S_ISREG(mode):
        raise CommandError(
            f"{path} cannot be read, because it is neither a file nor a directory: pass {FORMATS}."
        )
    if path.name.endswith(INDEX):
        return open_folder(path, path)
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise CommandError(f"{path} cannot be read, because it is empty: fetch or save it again.")
    # In msgpack, 0x80 is an empty map, which nothing can follow in a file.
    is_pickle = head[0] == 0x80 and head[1:2] in (b"\2", b"\3", b"\4", b"\5")
    if is_pickle or path.suffix in (".pkl", ".pickle", ".joblib") or head[257:262] == b"ustar":
        raise CommandError(pickle_message(path))
    if head.startswith(b"PK\3\4"):
        return open_npz(path)
    # The first eight bytes of safetensors are a length, which may look like anything.
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        if head.startswith(b"version https://git-lfs"):
            raise _other(path, OTHERS[b"version https://git-lfs"])
        return Safetensors(path, [path])
    for magic, what in OTHERS.items():
        if head.startswith(magic):
            raise _other(path, what)
    if head[4:8] == b"TFL3":
        raise _other(path, "TensorFlow Lite: use the model that it was made of")
    if path.suffix == ".npz":
        return open_npz(path)
    if path.suffix == ".msgpack" or 0x80 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF):
        return open_msgpack(path)
    raise CommandError(f"{path} cannot be read, because its format is unknown: pass {FORMATS}.")


def _other(path: Path, what: str) -> CommandError:
    return CommandError(f"{path} cannot be read, because it is {what}.")


def _open_directory(path: Path) -> Checkpoint:
    item = find_item(path)
    if item is not None:
        return open_orbax(path, item)
    weights = find_weights(path)
    if weights is not None:
        return open_folder(path, weights)
    if (path / "saved_model.pb").exists() or any(path.glob("*.index")):
        raise _other(path, "a TensorFlow checkpoint: load it with TensorFlow and save safetensors")
    if (path / ".zgroup").exists() or (path / "zarr.json").exists():
        raise _other(path, "a zarr group: restore it with the library that wrote it")
    files = sorted(x for x in path.iterdir() if x.suffix in (".msgpack", ".npz", ".bin", ".h5"))
    raise CommandError(
        f"{path} is not a checkpoint, because neither it nor a directory in it has safetensors or "
        "Orbax's file _METADATA: name the "
        + (f"file, such as {printable(str(files[0]))}." if files else f"step, such as {path}/1000.")
    )
