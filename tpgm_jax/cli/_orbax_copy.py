"""A copy of an Orbax directory in which some arrays are others, a few of them in memory at a time.

Orbax saves whole trees. What it has written is a store of keys and values, of which each array has
a few, its description and its chunks; and files beside it that say what the tree is. So the
files are copied, and the store key by key, but for arrays that are written anew.
"""

import json
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tpgm_jax.cli._errors import CommandError, optional, reading
from tpgm_jax.cli._text import printable

# What is written at one stroke, in bytes, unless a single array is larger: each stroke writes the
# index of all keys again.
BATCH = 2**25
_STORE = ("manifest.ocdbt", "d")
# What describes an array, and who reads it.
_DRIVERS = {".zarray": "zarr", "zarr.json": "zarr3"}


class Copy:
    """The copy of `item` at `target`, which is to be new; whole after `commit`.

    Args:
        item: the directory of the tree.
        target: where the copy goes.
        arrays: by what the store calls them.
        kind: what `item` is said to be if it can not be read.
    """

    def __init__(self, item: Path, target: Path, arrays: Collection[str], kind: str):
        self._item, self._target, self._kind = item, target, kind
        self._ts = optional("tensorstore")
        self._database = (item / _STORE[0]).exists()
        with self._writing():
            # Without a database, each array is a directory.
            store = _STORE if self._database else {array.split("/")[0] for array in arrays}
            shutil.copytree(item, target, ignore=_beside(item, store))
            for directory in (target, *(x for x in target.rglob("*") if x.is_dir())):
                directory.chmod(directory.stat().st_mode | 0o700)  # a read-only one, else
        with reading(item, kind):
            self._from = self._open(item)
            self._keys = _by_array(item, self._from.list().result(), arrays)
        with self._writing():
            self._to = self._open(target)
        self._begin()

    def put(self, array: str, new: np.ndarray | None) -> None:
        """Writes `new`, of the array's shape and dtype, or what `item` has if that is `None`."""
        keys, store = self._keys[array], self._from
        if new is not None:
            with reading(self._item, self._kind):  # which says how
                store = self._encoded(array, new)
            keys = [key.decode() for key in store.list().result()]
        for key in keys:
            with reading(self._item, self._kind):
                value = store.read(key).result().value
            with self._writing():
                self._stroke[key] = value
            self._size += len(value)
        if self._size >= BATCH:
            self.commit()

    def commit(self) -> None:
        """Writes what was put."""
        with self._writing():
            self._stroke.transaction.commit_sync()
        self._begin()

    def _begin(self) -> None:
        self._stroke, self._size = self._to.with_transaction(self._ts.Transaction()), 0

    def _open(self, directory: Path) -> Any:
        where = {"driver": "file", "path": f"{directory.resolve()}/"}
        if self._database:
            where = {"driver": "ocdbt", "base": where}
        return self._ts.KvStore.open(where).result()

    def _encoded(self, array: str, new: np.ndarray) -> Any:
        """A store in memory, with an array in it that is stored as this one was.

        By way of it, as arrays that go straight into a database have it write its index again for
        each key, even in one transaction: 70000 files for 400 small arrays.
        """
        (key,) = (x for x in self._keys[array] if x.rpartition("/")[2] in _DRIVERS)
        context = self._ts.Context()
        spec = {
            "driver": _DRIVERS[key.rpartition("/")[2]],
            "kvstore": {"driver": "memory", "path": f"{array}/"},
            "metadata": json.loads(self._from[key]),
            # As Orbax does: it takes chunks that are not there for damage.
            "store_data_equal_to_fill_value": True,
        }
        self._ts.open(spec, create=True, context=context).result().write(new).result()
        return self._ts.KvStore.open({"driver": "memory"}, context=context).result()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """The library has exceptions of its own for a full disk, and `shutil` another."""
        try:
            yield
        except (ValueError, shutil.Error) as error:
            reason = printable(f"{error}", limit=300)
            raise CommandError(f"{self._target} can not be written, because {reason}.") from error


def _beside(item: Path, store: Collection[str]) -> Any:
    """For `shutil.copytree`: what is in the store and not beside it."""

    def ignored(directory: str, names: list[str]) -> list[str]:
        if Path(directory) != item:
            return []
        return [x for x in names if x in store or x.startswith("ocdbt.process_")]

    return ignored


def _by_array(item: Path, keys: list[bytes], arrays: Collection[str]) -> dict[str, list[str]]:
    """The keys of each array."""
    found: dict[str, list[str]] = {array: [] for array in arrays}
    for key in (raw.decode() for raw in keys):
        parts = key.split("/")
        owners = [x for i in range(len(parts)) if (x := "/".join(parts[:i])) in found]
        if len(owners) > 1:
            raise CommandError(
                f"{item} has an array {printable(owners[0])!r} and in its place one called "
                f"{printable(owners[1])!r}, so that what is stored of them can not be told apart: "
                "rename one."
            )
        if owners:
            found[owners[0]].append(key)
    return found
