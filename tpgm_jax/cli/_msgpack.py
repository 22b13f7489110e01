"""Flax's msgpack: nested maps, with arrays as extensions that contain shape, dtype and bytes.

The msgpack library checks each claimed length against the file, and bounds the depth. It reads the
whole file. A copy is written piece by piece, so that the file is not in memory again.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tpgm_jax.cli._checkpoint import (
    DEEPEST,
    LONGEST_NAME,
    MOST_AXES,
    MOST_ENTRIES,
    Checkpoint,
    Entry,
    Replacement,
    bytes_of,
)
from tpgm_jax.cli._errors import import_optional, reading

KIND = "msgpack"
# Flax's extension types, and its key for an array of more than 1 GiB, which it saves in chunks.
_ARRAY, _SCALAR = 1, 3
_CHUNKED = "__msgpack_chunked_array__"


@dataclass
class _Array:
    """An array as it is stored, under the extension type `code`."""

    code: int
    shape: Any
    label: str
    data: bytes


class Msgpack(Checkpoint):
    kind = KIND

    def __init__(self, path: Path):
        self._msgpack = import_optional("msgpack")
        # The arrays that form an entry: one, or several chunks. Other leaves: the value.
        self._leaves: dict[str, Any] = {}
        with reading(path, KIND):
            self._tree = _unpack(path, self._msgpack)
            super().__init__(path, self._entries("", self._tree, 0))

    def _entries(self, name: str, node: Any, depth: int) -> Iterator[Entry]:
        if depth > DEEPEST:
            raise ValueError("it is nested too deep")
        above = f"{name}/" if depth else ""
        if isinstance(node, dict) and _CHUNKED in node:
            shape, chunks = (
                [node[key][str(i)] for i in range(len(node[key]))] for key in ("shape", "chunks")
            )
            if len({x.label for x in chunks if isinstance(x, _Array)}) != 1:
                raise ValueError(f"the chunks of {name!r} do not form an array")
            yield self._array(name, shape, chunks)
        elif isinstance(node, dict | list):
            for key, child in node.items() if isinstance(node, dict) else enumerate(node):
                yield from self._entries(f"{above}{key}", child, depth + 1)
        elif isinstance(node, _Array):
            yield self._array(name, node.shape, [node])
        elif node is not None:
            self._leaves[name] = node
            size = len(node) if isinstance(node, str | bytes) else 8
            yield Entry(name, (), type(node).__name__, size)

    def _array(self, name: str, shape: Any, arrays: list[_Array]) -> Entry:
        if not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"{name!r} has an invalid shape")
        self._leaves[name] = arrays
        entry = Entry(name, tuple(shape), arrays[0].label, sum(len(x.data) for x in arrays))
        if entry.dtype is not None and bytes_of(shape, entry.dtype) != entry.size:
            raise ValueError(
                f"{name!r} has {entry.size} bytes, and shape {shape} with dtype {entry.label} "
                f"takes {bytes_of(shape, entry.dtype)}"
            )
        return entry

    def read(self, name: str) -> np.ndarray:
        entry, leaf = self.entries[name], self._leaves[name]
        if not isinstance(leaf, list):
            return np.frombuffer(repr(leaf).encode(errors="replace"), np.uint8)
        data = leaf[0].data if len(leaf) == 1 else b"".join(x.data for x in leaf)
        array = np.frombuffer(data, np.uint8)
        return array if entry.dtype is None else array.view(entry.dtype).reshape(entry.shape)

    def save(self, target: Path, replacement: Replacement) -> list[str]:
        for name, entry in self.entries.items():
            new = replacement(entry)
            if new is not None:
                data = memoryview(new.tobytes())
                for array in self._leaves[name]:
                    size = len(array.data)
                    array.data, data = bytes(data[:size]), data[size:]

        def pack(array: _Array) -> Any:
            packed = self._msgpack.packb((array.shape, array.label, array.data))
            return self._msgpack.ExtType(array.code, packed)

        def write(node: Any) -> None:
            if isinstance(node, dict):
                out.write(packer.pack_map_header(len(node)))
                for key, child in node.items():
                    out.write(packer.pack(key))
                    write(child)
            else:
                out.write(packer.pack(node))

        packer = self._msgpack.Packer(default=pack)
        with target.open("xb") as out:
            write(self._tree)
        return []


def _unpack(path: Path, msgpack: Any) -> dict[Any, Any]:
    """The tree of the file, with an `_Array` for each array."""
    count = 0

    def check_count(items: list[Any]) -> list[Any]:
        # Small objects take up to 100 times their size in the file.
        nonlocal count
        count += len(items) + 1
        if count > 2 * MOST_ENTRIES:
            raise ValueError(f"it has more than {2 * MOST_ENTRIES} values")
        return items

    def to_dict(items: list[tuple[Any, Any]]) -> dict[Any, Any]:
        tree = dict(check_count(items))
        if len(tree) < len(items):
            raise ValueError("a key is there twice")
        if not all(isinstance(key, str | int) and len(str(key)) <= LONGEST_NAME for key in tree):
            raise ValueError("a key is neither a short text nor a number")
        return tree

    def to_array(code: int, packed: bytes) -> Any:
        if code not in (_ARRAY, _SCALAR):
            return msgpack.ExtType(code, packed)
        shape, label, data = msgpack.unpackb(packed, max_array_len=MOST_AXES)
        if not isinstance(label, str) or not isinstance(data, bytes):
            raise ValueError("an array does not consist of shape, dtype and bytes")
        return _Array(code, shape, label, data)

    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as contents:
        try:
            tree = msgpack.unpackb(
                contents,
                max_map_len=MOST_ENTRIES,
                max_array_len=MOST_ENTRIES,
                object_pairs_hook=to_dict,
                list_hook=check_count,
                ext_hook=to_array,
                strict_map_key=False,
            )
        except msgpack.StackError as error:
            raise ValueError("it is nested too deep") from error
    if not isinstance(tree, dict):
        raise ValueError("it contains no map of parameters")
    return tree
