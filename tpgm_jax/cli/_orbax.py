"""Orbax: a directory with a tree of arrays, compressed in chunks.

Each restore reads the metadata of the whole tree, so small leaves are restored in batches.
"""

import logging
import math
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tpgm_jax._core.names import leaf_names
from tpgm_jax.cli._checkpoint import (
    DTYPES,
    Entry,
    Replacement,
    bytes_of,
    check_expansion,
    collect,
)
from tpgm_jax.cli._errors import CommandError, import_optional, translate_read_errors
from tpgm_jax.cli._orbax_copy import Copy
from tpgm_jax.cli._text import printable

KIND = "an Orbax checkpoint"
# Bytes restored at once, unless a single leaf is larger.
BATCH = 2**25
_STRUCTURE = "_METADATA"


def open_orbax(path: Path) -> "Orbax":
    ocp = import_optional("orbax.checkpoint")
    item = _find_item(path)
    with translate_read_errors(path, KIND), _silence():
        return Orbax(path, item, ocp)


def _find_item(path: Path) -> Path:
    """The directory of the tree: `path`, or a subdirectory such as `default` of a step."""
    if (path / _STRUCTURE).is_file():
        return path.resolve()
    items = sorted(child for child in path.iterdir() if (child / _STRUCTURE).is_file())
    if len(items) == 1:
        return items[0].resolve()
    if items:
        names = ", ".join(repr(printable(child.name)) for child in items[:10])
        raise CommandError(
            f"{path} cannot be read, because it holds several Orbax checkpoints: name one of "
            f"{names}."
        )
    files = sorted(x for x in path.iterdir() if x.suffix in (".safetensors", ".msgpack", ".npz"))
    raise CommandError(
        f"{path} is not an Orbax checkpoint, because neither it nor a directory in it has a file "
        f"{_STRUCTURE}: name the "
        + (f"file, such as {printable(str(files[0]))}." if files else f"step, such as {path}/1000.")
    )


class Orbax:
    kind = KIND

    def __init__(self, path: Path, item: Path, ocp: Any):
        self.path, self._item, self._ocp = path, item, ocp
        self._checkpointer = ocp.PyTreeCheckpointer()
        metadata = self._checkpointer.metadata(item).item_metadata
        if metadata is None:
            raise ValueError("the metadata of its arrays is missing or damaged")
        tree = metadata.tree
        self._leaves, self._treedef = jax.tree.flatten(tree, is_leaf=_has_shape)
        self._positions: dict[str, int] = {}
        stored = sum(x.stat().st_size for x in item.rglob("*") if x.is_file())
        entries = []
        for i, (name, leaf) in enumerate(zip(_names(tree), self._leaves, strict=True)):
            entries.append(_entry(path, name, leaf, stored))
            self._positions[name] = i
        self.entries = collect(path, entries)
        self._order = list(self.entries)
        self._batch: dict[str, Any] = {}

    def close(self) -> None:
        self._checkpointer.close()

    def expect(self, names: Sequence[str]) -> None:
        self._order = list(names)

    def read(self, name: str) -> np.ndarray:
        entry = self.entries[name]
        with translate_read_errors(self.path, KIND), _silence():
            if entry.dtype is None:
                (value,) = self._restore([name])
                if hasattr(value, "dtype"):
                    data = np.asarray(value).tobytes()
                else:
                    data = repr(value).encode(errors="surrogateescape")
                return np.frombuffer(data, np.uint8)
            if name not in self._batch:
                names = self._batch_from(name)
                self._batch.clear()
                self._batch.update(zip(names, self._restore(names), strict=True))
            array = np.asarray(self._batch.pop(name))
            if array.shape != entry.shape or array.dtype != entry.dtype:
                raise CommandError(
                    f"{self.path}: {printable(name)!r} cannot be read, because its shape or dtype "
                    "differs from the metadata: fetch or save the checkpoint again."
                )
        return array

    def _batch_from(self, name: str) -> list[str]:
        """`name`, and the names to be read after it that fit into a batch."""
        names, size = [name], self.entries[name].size
        start = self._order.index(name) + 1 if name in self._order else len(self._order)
        for following in self._order[start:]:
            entry = self.entries[following]
            size += entry.size
            if size > BATCH:
                break
            if entry.dtype is not None:
                names.append(following)
        return names

    def _restore(self, names: Sequence[str]) -> list[Any]:
        ocp = self._ocp
        item = [ocp.PLACEHOLDER] * len(self._leaves)
        args = [ocp.RestoreArgs() for _ in self._leaves]
        for name in names:
            i = self._positions[name]
            item[i] = self._leaves[i]
            kind = None if self.entries[name].dtype is None else np.ndarray
            args[i] = ocp.RestoreArgs(restore_type=kind)
        tree = self._checkpointer.restore(
            self._item,
            args=ocp.args.PyTreeRestore(
                item=self._treedef.unflatten(item), restore_args=self._treedef.unflatten(args)
            ),
        )
        leaves = jax.tree.leaves(tree, is_leaf=lambda x: x is ocp.PLACEHOLDER)
        return [leaves[self._positions[name]] for name in names]

    def save(self, target: Path, replacement: Replacement) -> None:
        leaves = {name: self._leaves[i] for name, i in self._positions.items()}
        # Only arrays have keys in the store; other leaves are in separate files.
        keys = {name: x.name for name, x in leaves.items() if getattr(x, "dtype", None) is not None}
        copy = Copy(self._item, target, list(keys.values()), KIND)
        for name, entry in self.entries.items():
            new = replacement(entry)
            if name in keys:
                copy.put(keys[name], new)
        copy.commit()


def _names(tree: Any) -> list[str]:
    # Map to plain objects, because Orbax's metadata classes are not pytrees.
    return leaf_names(jax.tree.map(lambda _: 0, tree, is_leaf=_has_shape))


def _has_shape(node: Any) -> bool:
    return hasattr(node, "shape")


def _entry(path: Path, name: str, leaf: Any, stored: int) -> Entry:
    dtype = getattr(leaf, "dtype", None)
    shape = getattr(leaf, "shape", None)
    if dtype is None or shape is None:
        return Entry(name, (), None, type(leaf).__name__.removesuffix("Metadata").lower(), 0)
    shape, dtype = tuple(shape), np.dtype(dtype)
    size = bytes_of(shape, dtype)
    # A chunk is decompressed whole, even if the tensor uses little of it.
    chunk = getattr(getattr(leaf, "storage", None), "chunk_shape", None) or ()
    largest = max(size, math.prod(chunk) * dtype.itemsize)
    check_expansion(path, name, largest, stored)
    return Entry(name, shape, DTYPES.get(dtype.name), dtype.name, size)


@contextmanager
def _silence() -> Iterator[None]:
    """Silences Orbax's logs and warnings about shardings and restore arguments.

    If one array of a batch cannot be read, Orbax also closes the event loop of the others, whose
    threads then report unraisable exceptions. The error itself still reaches the caller.
    """
    logger = logging.getLogger("absl")
    level, hook = logger.level, sys.unraisablehook
    logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda unraisable: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception:
        time.sleep(0.2)  # until the other threads have ended
        raise
    finally:
        logger.setLevel(level)
        sys.unraisablehook = hook
