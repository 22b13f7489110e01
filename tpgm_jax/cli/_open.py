"""Detection of the format, by content first and by name second."""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tpgm_jax.cli._checkpoint import Checkpoint
from tpgm_jax.cli._errors import CommandError
from tpgm_jax.cli._msgpack import open_msgpack
from tpgm_jax.cli._npz import open_npz, pickle_message
from tpgm_jax.cli._orbax import open_orbax
from tpgm_jax.cli._safetensors import open_safetensors

SUFFIXES = {".safetensors": open_safetensors, ".msgpack": open_msgpack, ".npz": open_npz}
FORMATS = "safetensors, flax msgpack, npz, or an Orbax directory"


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
        return open_orbax(path)
    if not stat.S_ISREG(mode):
        raise CommandError(
            f"{path} cannot be read, because it is neither a file nor a directory: pass {FORMATS}."
        )
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise CommandError(f"{path} cannot be read, because it is empty: fetch or save it again.")
    if head.startswith(b"version https://git-lfs"):
        raise CommandError(
            f"{path} cannot be read, because it is a Git LFS pointer, not the file: run "
            "`git lfs pull`."
        )
    # In msgpack, 0x80 is an empty map, which nothing can follow in a file.
    is_pickle = head[0] == 0x80 and head[1:2] in (b"\2", b"\3", b"\4", b"\5")
    if is_pickle or path.suffix in (".pkl", ".pickle", ".joblib"):
        raise CommandError(pickle_message(path))
    if head.startswith(b"PK\3\4"):
        return open_npz(path)
    if path.suffix in SUFFIXES:
        return SUFFIXES[path.suffix](path)
    if head[8:9] == b"{":
        return open_safetensors(path)
    if 0x80 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF):
        return open_msgpack(path)
    raise CommandError(f"{path} cannot be read, because its format is unknown: pass {FORMATS}.")
