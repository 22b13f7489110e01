"""Atomic writing of files, and a cache of results between runs."""

import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import numpy as np

Arrays = dict[str, Any]  # name to NumPy array

_CHECKSUM = 16  # bytes

# Cached numbers may depend on these packages as well as on our own code.
_PACKAGES = (
    *("flax", "jax", "jaxlib", "optax"),
    *("matplotlib", "numpy", "pillow", "scikit-learn", "scipy"),
)


def write_whole(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes a temporary file and renames it, so that a kill leaves the old or the new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            write(file)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def cached(
    directory: Path,
    name: str,
    settings: Mapping[str, Any],
    modules: tuple[ModuleType, ...],
    make: Callable[[], Arrays],
) -> Arrays:
    """Arrays from an earlier run, or from `make` if there are none.

    Args:
        directory: folder of the cache.
        name: start of the file's name, which ends with a digest of `settings` and `modules`.
        settings: values that `make` depends on, as JSON.
        modules: modules whose source `make` depends on.
        make: computes the arrays.
    """
    digest = hashlib.blake2b(digest_size=8)
    digest.update(json.dumps(settings, sort_keys=True).encode())
    digest.update(json.dumps([version(package) for package in _PACKAGES]).encode())
    for module in modules:
        digest.update(Path(str(module.__file__)).read_bytes())
    path = directory / f"{name}-{digest.hexdigest()}.cache"
    # A checksum, then an archive of arrays. The archive's own checksum misses some damage.
    if path.exists():
        whole = path.read_bytes()
        checksum, archive = whole[:_CHECKSUM], whole[_CHECKSUM:]
        if checksum == _checksum(archive):
            with np.load(io.BytesIO(archive)) as arrays:
                return {key: arrays[key] for key in arrays.files}
        print(f"{path} is damaged, so it is made again.", file=sys.stderr)
    arrays, buffer = make(), io.BytesIO()
    np.savez(buffer, **arrays)
    archive = buffer.getvalue()
    write_whole(path, lambda file: file.write(_checksum(archive) + archive))
    return arrays


def _checksum(archive: bytes) -> bytes:
    """`_CHECKSUM` bytes."""
    return hashlib.blake2b(archive, digest_size=_CHECKSUM).digest()
