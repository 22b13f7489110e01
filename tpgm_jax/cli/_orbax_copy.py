"""Copies an Orbax directory with some arrays replaced, a few of them in memory at a time.

Orbax itself can only save whole trees. A checkpoint consists of a key-value store, with a few keys
for each array (its metadata and chunks), and of files that describe the tree. The files are copied
whole, and the store key by key; replaced arrays are encoded anew.
"""

import json
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tpgm_jax.cli._errors import CommandError, import_optional, translate_read_errors
from tpgm_jax.cli._text import printable

# Bytes written in one transaction, unless a single array is larger. Each transaction rewrites the
# index of all keys.
BATCH = 2**25
_STORE = ("manifest.ocdbt", "d")
# Metadata key of an array to TensorStore driver.
_DRIVERS = {".zarray": "zarr", "zarr.json": "zarr3"}


class Copy:
    """A copy of `item` at `target`, complete after `commit`.

    Args:
        item: the directory of the tree.
        target: the new directory.
        arrays: names of the arrays in the store.
        kind: name of the format, for error messages.
    """

    def __init__(self, item: Path, target: Path, arrays: Collection[str], kind: str):
        self._item, self._target, self._kind = item, target, kind
        self._ts = import_optional("tensorstore")
        self._database = (item / _STORE[0]).exists()
        with self._translate_write_errors():
            # Without a database, each array is a directory.
            store = _STORE if self._database else {array.split("/")[0] for array in arrays}
            shutil.copytree(item, target, ignore=_ignore_store(item, store))
            for directory in (target, *(x for x in target.rglob("*") if x.is_dir())):
                directory.chmod(directory.stat().st_mode | 0o700)  # it may be read-only
        with translate_read_errors(item, kind):
            self._from = self._open(item)
            self._keys = _keys_by_array(item, self._from.list().result(), arrays)
        with self._translate_write_errors():
            self._to = self._open(target)
        self._begin()

    def put(self, array: str, new: np.ndarray | None) -> None:
        """Adds `new`, of the array's shape and dtype; `None` adds the old array."""
        keys, store = self._keys[array], self._from
        if new is not None:
            with translate_read_errors(self._item, self._kind):  # the encoding is read from `item`
                store = self._encode(array, new)
            keys = [key.decode() for key in store.list().result()]
        for key in keys:
            with translate_read_errors(self._item, self._kind):
                value = store.read(key).result().value
            with self._translate_write_errors():
                self._batch[key] = value
            self._size += len(value)
        if self._size >= BATCH:
            self.commit()

    def commit(self) -> None:
        """Writes the arrays added since the last commit."""
        with self._translate_write_errors():
            self._batch.transaction.commit_sync()
        self._begin()

    def _begin(self) -> None:
        self._batch, self._size = self._to.with_transaction(self._ts.Transaction()), 0

    def _open(self, directory: Path) -> Any:
        spec = {"driver": "file", "path": f"{directory.resolve()}/"}
        if self._database:
            spec = {"driver": "ocdbt", "base": spec}
        return self._ts.KvStore.open(spec).result()

    def _encode(self, array: str, new: np.ndarray) -> Any:
        """A store in memory that holds `new`, encoded like the old array.

        Encode in memory first: writing arrays directly to OCDBT rewrites its index once per key,
        even in one transaction: 70,000 files for 400 small arrays.
        """
        (key,) = (x for x in self._keys[array] if x.rpartition("/")[2] in _DRIVERS)
        context = self._ts.Context()
        spec = {
            "driver": _DRIVERS[key.rpartition("/")[2]],
            "kvstore": {"driver": "memory", "path": f"{array}/"},
            "metadata": json.loads(self._from[key]),
            # Orbax treats missing chunks as damage.
            "store_data_equal_to_fill_value": True,
        }
        self._ts.open(spec, create=True, context=context).result().write(new).result()
        return self._ts.KvStore.open({"driver": "memory"}, context=context).result()

    @contextmanager
    def _translate_write_errors(self) -> Iterator[None]:
        """Turns exceptions of TensorStore and `shutil`, such as on a full disk, into ours."""
        try:
            yield
        except (ValueError, shutil.Error) as error:
            reason = printable(f"{error}", limit=300)
            raise CommandError(
                f"{self._target} cannot be written, because {reason}: free some space, or name "
                "another place."
            ) from error


def _ignore_store(item: Path, store: Collection[str]) -> Any:
    """The `ignore` argument of `shutil.copytree` that leaves out the store."""

    def ignore(directory: str, names: list[str]) -> list[str]:
        if Path(directory) != item:
            return []
        return [x for x in names if x in store or x.startswith("ocdbt.process_")]

    return ignore


def _keys_by_array(item: Path, keys: list[bytes], arrays: Collection[str]) -> dict[str, list[str]]:
    """The keys of each array in the store."""
    by_array: dict[str, list[str]] = {array: [] for array in arrays}
    for key in (raw.decode() for raw in keys):
        parts = key.split("/")
        owners = [x for i in range(len(parts)) if (x := "/".join(parts[:i])) in by_array]
        if len(owners) > 1:
            raise CommandError(
                f"{item} cannot be copied, because the keys of its arrays {printable(owners[0])!r} "
                f"and {printable(owners[1])!r} are ambiguous: rename one."
            )
        if owners:
            by_array[owners[0]].append(key)
    return by_array
