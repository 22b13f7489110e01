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

from tpgm_jax.cli._checkpoint import (
    DTYPES,
    Checkpoint,
    Entry,
    Replacement,
    bytes_of,
    check_expansion,
)
from tpgm_jax.cli._errors import CommandError, import_optional, translate_read_errors
from tpgm_jax.cli._text import printable

KIND = "an Orbax checkpoint"
_STRUCTURE, _DATABASE = "_METADATA", "manifest.ocdbt"


def find_item(path: Path) -> Path | None:
    """The directory of the tree: `path`, or a subdirectory such as `default` of a step."""
    if (path / _STRUCTURE).is_file():
        return path.resolve()
    items = sorted(child for child in path.iterdir() if (child / _STRUCTURE).is_file())
    if len(items) > 1:
        names = ", ".join(repr(printable(child.name)) for child in items[:10])
        raise CommandError(
            f"{path} cannot be read, because it holds several Orbax checkpoints: name one of "
            f"{names}."
        )
    return items[0].resolve() if items else None


def open_orbax(path: Path, item: Path) -> "Orbax":
    ocp = import_optional("orbax.checkpoint")
    with translate_read_errors(path, KIND), _quiet():
        # Orbax computes on JAX's devices; another program may use the accelerator.
        jax.config.update("jax_platforms", "cpu")
        _check_arrays(item)
        return Orbax(path, item, ocp)


class Orbax(Checkpoint):
    kind = KIND

    def __init__(self, path: Path, item: Path, ocp: Any):
        self._item, self._ocp = item, ocp
        self._checkpointer = ocp.PyTreeCheckpointer()
        self._metadata = self._checkpointer.metadata(item)
        if self._metadata.item_metadata is None:
            raise ValueError("the metadata of its arrays is missing or damaged")
        leaves, self._treedef = jax.tree.flatten_with_path(
            self._metadata.item_metadata.tree, is_leaf=_has_shape
        )
        self._leaves = [leaf for _, leaf in leaves]
        stored = sum(x.stat().st_size for x in item.rglob("*") if x.is_file())
        names = [jax.tree_util.keystr(keys, simple=True, separator="/") for keys, _ in leaves]
        entries = [
            _entry(path, name, leaf, stored) for name, leaf in zip(names, self._leaves, strict=True)
        ]
        super().__init__(path, entries)
        self._positions = {name: i for i, name in enumerate(names)}

    def close(self) -> None:
        self._checkpointer.close()

    def read(self, name: str) -> np.ndarray:
        entry = self.entries[name]
        value = self._restore(name)
        if entry.dtype is None:
            data = value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
            return np.frombuffer(data, np.uint8)
        array = np.asarray(value)
        if array.shape != entry.shape or array.dtype != entry.dtype:
            raise CommandError(
                f"{self.path}: {printable(name)!r} cannot be read, because its shape or dtype "
                "differs from the metadata: fetch or save the checkpoint again."
            )
        return array

    def _restore(self, name: str) -> Any:
        ocp, position = self._ocp, self._positions[name]
        item = [ocp.PLACEHOLDER] * len(self._leaves)
        args = [ocp.RestoreArgs()] * len(self._leaves)
        item[position] = leaf = self._leaves[position]
        if getattr(leaf, "storage", None) is not None:
            args[position] = ocp.RestoreArgs(restore_type=np.ndarray)
        with translate_read_errors(self.path, KIND), _quiet():
            tree = self._checkpointer.restore(
                self._item,
                args=ocp.args.PyTreeRestore(
                    item=self._treedef.unflatten(item), restore_args=self._treedef.unflatten(args)
                ),
            )
        return jax.tree.leaves(tree, is_leaf=lambda x: x is ocp.PLACEHOLDER)[position]

    def save(self, target: Path, replacement: Replacement) -> list[str]:
        leaves: list[Any] = []
        for name, entry in self.entries.items():
            new, old = replacement(entry), self._leaves[self._positions[name]]
            if new is None:
                leaves.append(self._restore(name))
            elif getattr(old, "storage", None) is None:  # Python's numbers stay so
                leaves.append(new.item())
            else:
                leaves.append(new)
        # What was a `jax.Array` is restored as one.
        with jax.enable_x64(True):
            leaves = [
                jax.numpy.asarray(new) if getattr(old, "sharding", None) is not None else new
                for new, old in zip(leaves, self._leaves, strict=True)
            ]
        zarr3 = getattr(self._metadata.item_metadata, "use_zarr3", False)
        handler = self._ocp.PyTreeCheckpointHandler(
            use_ocdbt=(self._item / _DATABASE).exists(), use_zarr3=zarr3
        )
        with _translate_write_errors(target), _quiet(), self._ocp.Checkpointer(handler) as writer:
            writer.save(
                target,
                self._treedef.unflatten(leaves),
                custom_metadata=self._metadata.custom_metadata,
            )
        return []


def _has_shape(node: Any) -> bool:
    return hasattr(node, "shape")


def _entry(path: Path, name: str, leaf: Any, stored: int) -> Entry:
    dtype, shape = getattr(leaf, "dtype", None), getattr(leaf, "shape", None)
    if dtype is None or shape is None:
        return Entry(name, (), None, type(leaf).__name__.removesuffix("Metadata").lower(), 0)
    shape, dtype = tuple(shape), np.dtype(dtype)
    size = bytes_of(shape, dtype)
    # A chunk is decompressed whole, even if the tensor uses little of it.
    chunk = getattr(getattr(leaf, "storage", None), "chunk_shape", None) or ()
    check_expansion(path, name, max(size, math.prod(chunk) * dtype.itemsize), stored)
    return Entry(name, shape, DTYPES.get(dtype.name), dtype.name, size)


def _check_arrays(item: Path) -> None:
    """Opens each array. Orbax opens all at once, with the same tracebacks if one is damaged."""
    ts, path = import_optional("tensorstore"), f"{item}/"
    store: dict[str, Any] = {"driver": "file", "path": path}
    if (item / _DATABASE).exists():
        store = {"driver": "ocdbt", "base": store}
    for key in ts.KvStore.open(store).result().list().result():
        folder, _, file = key.decode().rpartition("/")
        driver = {".zarray": "zarr", "zarr.json": "zarr3"}.get(file)
        if driver:
            at = {"path": f"{folder}/"} if "base" in store else {"path": f"{path}{folder}/"}
            ts.open({"driver": driver, "kvstore": {**store, **at}}).result()


@contextmanager
def _translate_write_errors(target: Path) -> Iterator[None]:
    """Turns exceptions of TensorStore, such as on a full disk, into ours."""
    try:
        yield
    except ValueError as error:
        raise CommandError(
            f"{target} cannot be written, because {printable(str(error), limit=300)}: free some "
            "space, or name another place."
        ) from error


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
