"""Which format a path is, by its contents first and its name second."""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tpgm_jax.cli._checkpoint import Checkpoint
from tpgm_jax.cli._errors import CommandError
from tpgm_jax.cli._msgpack import open_msgpack
from tpgm_jax.cli._npz import open_npz, pickle_refused
from tpgm_jax.cli._orbax import open_orbax
from tpgm_jax.cli._safetensors import open_safetensors

SUFFIXES = {".safetensors": open_safetensors, ".msgpack": open_msgpack, ".npz": open_npz}
FORMATS = "safetensors, flax msgpack, npz, or an Orbax directory"


@contextmanager
def checkpoint(path: Path) -> Iterator[Checkpoint]:
    """Opens a checkpoint of any format that we know.

    Raises:
        CommandError: there is none, or it is damaged, or a pickle.
    """
    try:
        found = _open(path)
    except OSError as error:
        raise CommandError(f"{path} can not be opened: {error.strerror or error}.") from error
    try:
        yield found
    finally:
        found.close()


def _open(path: Path) -> Checkpoint:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        return open_orbax(path)
    if not stat.S_ISREG(mode):
        raise CommandError(f"{path} is neither a file nor a directory: pass {FORMATS}.")
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise CommandError(f"{path} is empty: fetch or save it again.")
    if head.startswith(b"version https://git-lfs"):
        raise CommandError(
            f"{path} is a pointer of Git LFS and not the file itself: run `git lfs pull`."
        )
    # Pickle's first byte begins an empty map in msgpack, behind which nothing can follow.
    pickled = head[0] == 0x80 and head[1:2] in (b"\2", b"\3", b"\4", b"\5")
    if pickled or path.suffix in (".pkl", ".pickle", ".joblib"):
        raise CommandError(pickle_refused(path))
    if head.startswith(b"PK\3\4"):
        return open_npz(path)
    if path.suffix in SUFFIXES:
        return SUFFIXES[path.suffix](path)
    if head[8:9] == b"{":
        return open_safetensors(path)
    if 0x80 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF):
        return open_msgpack(path)
    raise CommandError(f"{path} is of no format that this reads: pass {FORMATS}.")
