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
    kind = "msgpack"

    def __init__(self, path: Path):
        self._msgpack = import_optional("msgpack")
        with reading(path, self.kind):
            self._tree = _unpack(path, self._msgpack)
            super().__init__(path, _entries("", self._tree, 0))

    def _read(self, entry: Entry) -> np.ndarray:
        if not isinstance(entry.source, list):
            return np.frombuffer(repr(entry.source).encode(errors="replace"), np.uint8)
        return entry.array(np.frombuffer(b"".join(x.data for x in entry.source), np.uint8))

    def save(self, target: Path, replacement: Replacement) -> list[str]:
        for entry in self.entries.values():
            new = replacement(entry)
            if new is not None:
                data = memoryview(new.tobytes())
                for array in entry.source:
                    size = len(array.data)
                    array.data, data = bytes(data[:size]), data[size:]

        def pack(array: _Array) -> Any:
            packed = self._msgpack.packb((array.shape, array.label, array.data))
            return self._msgpack.ExtType(array.code, packed)

        def write(node: Any) -> None:
            if not isinstance(node, dict):
                out.write(packer.pack(node))
                return
            out.write(packer.pack_map_header(len(node)))
            for key, child in node.items():
                out.write(packer.pack(key))
                write(child)

        packer = self._msgpack.Packer(default=pack)
        with target.open("xb") as out:
            write(self._tree)
        return []


def _entries(name: str, node: Any, depth: int) -> Iterator[Entry]:
    """The leaves below `node`. The source of an array is a list, with its chunks if it has any."""
    if depth > DEEPEST or len(name) > LONGEST_NAME:
        raise ValueError("it is nested too deep, or a name is too long")
    if isinstance(node, dict) and _CHUNKED in node:
        shape, chunks = (
            [node[key][str(i)] for i in range(len(node[key]))] for key in ("shape", "chunks")
        )
        if len({x.label for x in chunks if isinstance(x, _Array)}) != 1:
            raise ValueError(f"the chunks of {name!r} do not form an array")
        yield _array_entry(name, shape, chunks)
    elif isinstance(node, dict | list):
        above = f"{name}/" if depth else ""
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _entries(f"{above}{key}", child, depth + 1)
    elif isinstance(node, _Array):
        yield _array_entry(name, node.shape, [node])
    elif node is not None:
        yield Entry(name, (), type(node).__name__, 0, node)


def _array_entry(name: str, shape: Any, arrays: list[_Array]) -> Entry:
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"{name!r} has an invalid shape")
    entry = Entry(name, tuple(shape), arrays[0].label, sum(len(x.data) for x in arrays), arrays)
    expected = entry.size if entry.dtype is None else bytes_of(shape, entry.dtype)
    if entry.size != expected:
        because = f"has {entry.size} bytes, and shape {shape} with dtype {entry.label}"
        raise ValueError(f"{name!r} {because} takes {expected}")
    return entry


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
        return tree

    def to_array(code: int, packed: bytes) -> Any:
        if code not in (_ARRAY, _SCALAR):
            return msgpack.ExtType(code, packed)
        shape, label, data = msgpack.unpackb(packed, max_array_len=MOST_AXES)
        if not isinstance(label, str) or not isinstance(data, bytes):
            raise ValueError("an array does not consist of shape, dtype and bytes")
        return _Array(code, shape, label, data)

    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as contents:
        tree = msgpack.unpackb(
            contents,
            max_map_len=MOST_ENTRIES,
            max_array_len=MOST_ENTRIES,
            object_pairs_hook=to_dict,
            list_hook=check_count,
            ext_hook=to_array,
            strict_map_key=False,
        )
    if not isinstance(tree, dict):
        raise ValueError("it contains no map of parameters")
    return tree
