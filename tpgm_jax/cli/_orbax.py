"""Orbax: a directory with a tree of arrays, compressed in chunks.

Each restore reads the description of the whole tree, so that several small leaves are restored at
once, and a large one alone.
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

from tpgm_jax._names import leaf_names
from tpgm_jax.cli._checkpoint import (
    DTYPES,
    Entry,
    Replacement,
    bytes_of,
    check_expansion,
    collect,
)
from tpgm_jax.cli._errors import CommandError, optional, reading
from tpgm_jax.cli._orbax_copy import Copy
from tpgm_jax.cli._text import printable

KIND = "an Orbax checkpoint"
# What is restored at once, in bytes, unless a single leaf is larger.
BATCH = 2**25
_STRUCTURE = "_METADATA"


def open_orbax(path: Path) -> "Orbax":
    ocp = optional("orbax.checkpoint")
    item = _item(path)
    with reading(path, KIND), _quiet():
        return Orbax(path, item, ocp)


def _item(path: Path) -> Path:
    """The directory of the tree itself: a step of a `CheckpointManager` has it in `default`."""
    if (path / _STRUCTURE).is_file():
        return path.resolve()
    below = sorted(child for child in path.iterdir() if (child / _STRUCTURE).is_file())
    if len(below) == 1:
        return below[0].resolve()
    if below:
        names = ", ".join(repr(printable(child.name)) for child in below[:10])
        raise CommandError(f"{path} holds several Orbax checkpoints: name one of {names}.")
    files = sorted(x for x in path.iterdir() if x.suffix in (".safetensors", ".msgpack", ".npz"))
    raise CommandError(
        f"{path} is a directory and no Orbax checkpoint, because neither it nor a directory in it "
        f"has a file {_STRUCTURE}: name the "
        + (f"file, such as {printable(str(files[0]))}." if files else f"step, such as {path}/1000.")
    )


class Orbax:
    kind = KIND

    def __init__(self, path: Path, item: Path, ocp: Any):
        self.path, self._item, self._ocp = path, item, ocp
        self._checkpointer = ocp.PyTreeCheckpointer()
        described = self._checkpointer.metadata(item).item_metadata
        if described is None:
            raise ValueError("what describes its arrays is missing or damaged")
        found = described.tree
        is_leaf = _has_shape
        self._leaves, self._treedef = jax.tree.flatten(found, is_leaf=is_leaf)
        self._positions: dict[str, int] = {}
        stored = sum(x.stat().st_size for x in item.rglob("*") if x.is_file())
        entries = []
        for i, (name, leaf) in enumerate(zip(_names(found), self._leaves, strict=True)):
            entries.append(_entry(path, name, leaf, stored))
            self._positions[name] = i
        self.entries = collect(path, entries)
        self._order = list(self.entries)
        self._ready: dict[str, Any] = {}

    def close(self) -> None:
        self._checkpointer.close()

    def expect(self, names: Sequence[str]) -> None:
        self._order = list(names)

    def read(self, name: str) -> np.ndarray:
        entry = self.entries[name]
        with reading(self.path, KIND), _quiet():
            if entry.dtype is None:
                (found,) = self._restored([name])
                whole = repr(found).encode(errors="surrogateescape")  # which it is not of an array
                if hasattr(found, "dtype"):
                    whole = np.asarray(found).tobytes()
                return np.frombuffer(whole, np.uint8)
            if name not in self._ready:
                names = self._following(name)
                self._ready.clear()
                self._ready.update(zip(names, self._restored(names), strict=True))
            array = np.asarray(self._ready.pop(name))
            if array.shape != entry.shape or array.dtype != entry.dtype:
                raise CommandError(
                    f"{self.path}: {printable(name)!r} is not of the shape or dtype announced."
                )
        return array

    def _following(self, name: str) -> list[str]:
        """`name`, and what will be read after it, as far as it fits into a batch."""
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

    def _restored(self, names: Sequence[str]) -> list[Any]:
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
        found = jax.tree.leaves(tree, is_leaf=lambda x: x is ocp.PLACEHOLDER)
        return [found[self._positions[name]] for name in names]

    def save(self, target: Path, replacement: Replacement) -> None:
        leaves = {name: self._leaves[i] for name, i in self._positions.items()}
        # Others are no arrays, and stored elsewhere.
        keys = {name: x.name for name, x in leaves.items() if getattr(x, "dtype", None) is not None}
        copy = Copy(self._item, target, list(keys.values()), KIND)
        for name, entry in self.entries.items():
            new = replacement(entry)
            if name in keys:
                copy.put(keys[name], new)
        copy.commit()


def _names(tree: Any) -> list[str]:
    # Through plain objects, as Orbax's descriptions of leaves are trees to nobody.
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
    # A chunk is unfolded whole, however little of it the tensor uses.
    chunk = getattr(getattr(leaf, "storage", None), "chunk_shape", None) or ()
    largest = max(size, math.prod(chunk) * dtype.itemsize)
    check_expansion(path, name, largest, stored)
    return Entry(name, shape, DTYPES.get(dtype.name), dtype.name, size)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Orbax logs of shardings and restore arguments, which we know.

    And where one of several arrays can not be read, it closes its event loop on the others, whose
    threads then complain. Errors come to the caller by another way.
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
        time.sleep(0.2)  # until the others are done
        raise
    finally:
        logger.setLevel(level)
        sys.unraisablehook = hook
