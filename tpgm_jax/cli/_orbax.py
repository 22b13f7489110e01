"""Orbax: a directory with a tree of arrays, compressed in chunks.

Arrays are restored one by one. If one of several cannot be read, Orbax closes the event loop of the
others, whose threads then print tracebacks. A copy is written by Orbax from the whole tree.
"""

import asyncio
import copy
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tpgm_jax.cli._checkpoint import Checkpoint, Entry, Replacement, bytes_of, check_expansion
from tpgm_jax.cli._errors import import_optional, quote, reading, translate_errors, unreadable

_STRUCTURE, _DATABASE = "_METADATA", "manifest.ocdbt"


def find_item(path: Path) -> Path | None:
    """The directory of the tree: `path`, or a subdirectory such as `default` of a step."""
    if (path / _STRUCTURE).is_file():
        return path.resolve()
    items = sorted(child for child in path.iterdir() if (child / _STRUCTURE).is_file())
    if len(items) > 1:
        because = "it contains several Orbax checkpoints"
        names = ", ".join(quote(child.name) for child in items[:10])
        raise unreadable(path, because, f"name one of {names}")
    return items[0].resolve() if items else None


class Orbax(Checkpoint):
    """The tree in the directory `item`; `path` is the path to show."""

    kind = "an Orbax checkpoint"

    def __init__(self, path: Path, item: Path):
        self._item, self._ocp = item, import_optional("orbax.checkpoint")
        # Orbax computes on JAX's devices; another program may use the accelerator.
        jax.config.update("jax_platforms", "cpu")
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax's logger
        with reading(path, self.kind):
            types = self._ocp.type_handlers
            handlers = {x: types.get_type_handler(x) for x in types.supported_types()}
            registry = types.create_type_handler_registry(
                *((x, _returning_errors(handler)) for x, handler in handlers.items())
            )
            handler = self._ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
            self._checkpointer = self._ocp.Checkpointer(handler)
            self._metadata = self._checkpointer.metadata(item)
            if self._metadata.item_metadata is None:
                raise ValueError("the metadata of its arrays is missing or damaged")
            tree = self._metadata.item_metadata.tree
            pairs, self._structure = jax.tree.flatten_with_path(tree)
            for _, leaf in pairs:
                if isinstance(leaf, BaseException):  # drop TensorStore's JSON
                    raise ValueError(str(leaf).partition(" [tensorstore_spec")[0])
            stored = sum(x.stat().st_size for x in item.rglob("*") if x.is_file())
            check_expansion(path, sum(_size(leaf) for _, leaf in pairs), stored)
            super().__init__(path, (_entry(i, *pair) for i, pair in enumerate(pairs)))

    def close(self) -> None:
        self._checkpointer.close()

    def _read(self, entry: Entry) -> np.ndarray:
        value = self._restore(entry)
        if entry.dtype is None:
            data = value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
            return np.frombuffer(data, np.uint8)
        array = np.asarray(value)
        if array.shape != entry.shape or array.dtype != entry.dtype:
            raise ValueError(f"the shape or dtype of {entry.name!r} differs from the metadata")
        return array

    def _restore(self, entry: Entry) -> Any:
        ocp, (index, leaf) = self._ocp, entry.source
        items: list[Any] = [ocp.PLACEHOLDER] * self._structure.num_leaves
        args = [ocp.RestoreArgs()] * self._structure.num_leaves
        items[index] = leaf
        args[index] = ocp.RestoreArgs(restore_type=np.ndarray if _is_array(leaf) else None)
        item, restore_args = map(self._structure.unflatten, (items, args))
        with reading(self.path, self.kind):
            tree = self._checkpointer.restore(
                self._item, args=ocp.args.PyTreeRestore(item=item, restore_args=restore_args)
            )
        return jax.tree.leaves(tree)[index]

    def save(self, target: Path, replacement: Replacement) -> list[str]:
        values = [self._new_value(entry, replacement) for entry in self.entries.values()]
        handler = self._ocp.PyTreeCheckpointHandler(
            use_ocdbt=(self._item / _DATABASE).exists(),
            use_zarr3=getattr(self._metadata.item_metadata, "use_zarr3", False),
        )
        tree, metadata = self._structure.unflatten(values), self._metadata.custom_metadata
        remedy = "free some space, or name another place"
        with (
            translate_errors(f"{target} cannot be written", remedy),
            self._ocp.Checkpointer(handler) as writer,
        ):
            writer.save(target, tree, custom_metadata=metadata)
        return []

    def _new_value(self, entry: Entry, replacement: Replacement) -> Any:
        (_, leaf), value = entry.source, replacement(entry)
        if value is None:
            value = self._restore(entry)
        elif not _is_array(leaf):
            value = value.item()
        if getattr(leaf, "sharding", None) is None:
            return value
        with jax.enable_x64(True):  # what was a `jax.Array` is restored as one
            return jax.numpy.asarray(value)


def _entry(index: int, path: Any, leaf: Any) -> Entry:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    dtype, shape = getattr(leaf, "dtype", None), getattr(leaf, "shape", None)
    if dtype is None or shape is None:
        label = type(leaf).__name__.removesuffix("Metadata").lower()
        return Entry(name, (), label, 0, (index, leaf))
    dtype = np.dtype(dtype)
    return Entry(name, tuple(shape), dtype.name, bytes_of(shape, dtype), (index, leaf))


def _is_array(leaf: Any) -> bool:
    """Whether a leaf is an array, and not a number or text of Python."""
    return getattr(leaf, "storage", None) is not None


def _size(leaf: Any) -> int:
    """Bytes that reading a leaf takes. A chunk is decompressed whole, even if little is used."""
    chunk = getattr(getattr(leaf, "storage", None), "chunk_shape", None) or ()
    itemsize = np.dtype(getattr(leaf, "dtype", None) or np.uint8).itemsize
    return itemsize * max(math.prod(getattr(leaf, "shape", None) or ()), math.prod(chunk))


def _returning_errors(handler: Any) -> Any:
    """A handler of Orbax whose descriptions of arrays may be errors.

    It opens all arrays at once. An error that is raised would close the event loop of the others.
    """

    async def metadata(infos: Sequence[Any]) -> list[Any]:
        each = (handler.metadata([info]) for info in infos)
        found = await asyncio.gather(*each, return_exceptions=True)
        return [x if isinstance(x, BaseException) else x[0] for x in found]

    copied = copy.copy(handler)
    copied.metadata = metadata
    return copied
