"""Orbax: a directory with a tree of arrays, compressed in chunks.

Arrays are restored one by one. If one of several cannot be read, Orbax closes the event loop of the
others, whose threads then print tracebacks. A copy is written by Orbax from the whole tree.
"""

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tpgm_jax.cli._checkpoint import Checkpoint, Entry, Replacement, bytes_of, check_expansion
from tpgm_jax.cli._errors import import_optional, quoted, reading, translate_errors, unreadable

KIND = "an Orbax checkpoint"
_STRUCTURE, _DATABASE = "_METADATA", "manifest.ocdbt"


def find_item(path: Path) -> Path | None:
    """The directory of the tree: `path`, or a subdirectory such as `default` of a step."""
    if (path / _STRUCTURE).is_file():
        return path.resolve()
    items = sorted(child for child in path.iterdir() if (child / _STRUCTURE).is_file())
    if len(items) > 1:
        because = "it contains several Orbax checkpoints"
        names = ", ".join(quoted(child.name) for child in items[:10])
        raise unreadable(path, because, f"name one of {names}")
    return items[0].resolve() if items else None


class Orbax(Checkpoint):
    """The tree in the directory `item`; `path` is the path to show."""

    kind = KIND

    def __init__(self, path: Path, item: Path):
        self._item, self._ocp = item, import_optional("orbax.checkpoint")
        with reading(path, KIND), _quiet():
            # Orbax computes on JAX's devices; another program may use the accelerator.
            jax.config.update("jax_platforms", "cpu")
            _check_arrays(item)
            self._checkpointer = self._ocp.PyTreeCheckpointer()
            self._metadata = self._checkpointer.metadata(item)
            if self._metadata.item_metadata is None:
                raise ValueError("the metadata of its arrays is missing or damaged")
            pairs, self._structure = jax.tree.flatten_with_path(
                self._metadata.item_metadata.tree, is_leaf=lambda node: hasattr(node, "shape")
            )
            self._leaves = [leaf for _, leaf in pairs]
            names = [jax.tree_util.keystr(x, simple=True, separator="/") for x, _ in pairs]
            stored = sum(x.stat().st_size for x in item.rglob("*") if x.is_file())
            check_expansion(path, sum(map(_size, self._leaves)), stored)
            super().__init__(path, map(_entry, names, self._leaves))
            self._indices = {name: i for i, name in enumerate(names)}

    def close(self) -> None:
        self._checkpointer.close()

    def read(self, name: str) -> np.ndarray:
        entry, value = self.entries[name], self._restore(self._indices[name])
        if entry.dtype is None:
            data = value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
            return np.frombuffer(data, np.uint8)
        array = np.asarray(value)
        with reading(self.path, KIND):
            if array.shape != entry.shape or array.dtype != entry.dtype:
                raise ValueError(f"the shape or dtype of {name!r} differs from the metadata")
        return array

    def _restore(self, index: int) -> Any:
        ocp = self._ocp
        items = [ocp.PLACEHOLDER for _ in self._leaves]
        args = [ocp.RestoreArgs() for _ in self._leaves]
        items[index] = self._leaves[index]
        args[index] = ocp.RestoreArgs(restore_type=np.ndarray if self._is_array(index) else None)
        item, restore_args = map(self._structure.unflatten, (items, args))
        with reading(self.path, KIND), _quiet():
            tree = self._checkpointer.restore(
                self._item, args=ocp.args.PyTreeRestore(item=item, restore_args=restore_args)
            )
        return jax.tree.leaves(tree, is_leaf=lambda x: x is ocp.PLACEHOLDER)[index]

    def _is_array(self, index: int) -> bool:
        """Whether a leaf is an array, and not a number or text of Python."""
        return getattr(self._leaves[index], "storage", None) is not None

    def save(self, target: Path, replacement: Replacement) -> list[str]:
        values = [self._new_value(*x, replacement) for x in enumerate(self.entries.values())]
        handler = self._ocp.PyTreeCheckpointHandler(
            use_ocdbt=(self._item / _DATABASE).exists(),
            use_zarr3=getattr(self._metadata.item_metadata, "use_zarr3", False),
        )
        remedy = "free some space, or name another place"
        writing = translate_errors(f"{target} cannot be written", remedy)
        with writing, _quiet(), self._ocp.Checkpointer(handler) as writer:
            writer.save(
                target,
                self._structure.unflatten(values),
                custom_metadata=self._metadata.custom_metadata,
            )
        return []

    def _new_value(self, index: int, entry: Entry, replacement: Replacement) -> Any:
        value = replacement(entry)
        if value is None:
            value = self._restore(index)
        elif not self._is_array(index):
            value = value.item()
        if getattr(self._leaves[index], "sharding", None) is None:
            return value
        with jax.enable_x64(True):  # what was a `jax.Array` is restored as one
            return jax.numpy.asarray(value)


def _entry(name: str, leaf: Any) -> Entry:
    dtype, shape = getattr(leaf, "dtype", None), getattr(leaf, "shape", None)
    if dtype is None or shape is None:
        return Entry(name, (), type(leaf).__name__.removesuffix("Metadata").lower(), 0)
    return Entry(name, tuple(shape), np.dtype(dtype).name, bytes_of(shape, np.dtype(dtype)))


def _size(leaf: Any) -> int:
    """Bytes that reading a leaf takes. A chunk is decompressed whole, even if little is used."""
    chunk = getattr(getattr(leaf, "storage", None), "chunk_shape", None) or ()
    itemsize = np.dtype(getattr(leaf, "dtype", None) or np.uint8).itemsize
    return itemsize * max(math.prod(getattr(leaf, "shape", None) or ()), math.prod(chunk))


def _check_arrays(item: Path) -> None:
    """Opens each array. Orbax opens all at once, with the same tracebacks if one is damaged."""
    ts = import_optional("tensorstore")
    spec: dict[str, Any] = {"driver": "file", "path": f"{item}/"}
    if (item / _DATABASE).exists():
        spec = {"driver": "ocdbt", "base": spec}
    store = ts.KvStore.open(spec).result()
    for key in store.list().result():
        folder, _, file = key.decode().rpartition("/")
        driver = {".zarray": "zarr", "zarr.json": "zarr3"}.get(file)
        if driver:
            ts.open({"driver": driver, "kvstore": (store / folder).spec().to_json()}).result()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences Orbax's logs and warnings about shardings and restore arguments."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
