"""Flax's msgpack: nested maps, with arrays as extensions that hold shape, dtype and bytes.

The msgpack library reads and writes the file, whole. It reads bytes before it allocates an object,
so a claimed length of 4 GiB fails at the end of the file, and it bounds the depth.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tpgm_jax.cli._checkpoint import (
    DEEPEST,
    DTYPES,
    LONGEST_NAME,
    MOST_AXES,
    MOST_ENTRIES,
    Checkpoint,
    Entry,
    Replacement,
    bytes_of,
)
from tpgm_jax.cli._errors import import_optional, translate_read_errors

KIND = "msgpack"
# Flax's extension types, and its key for an array of more than 1 GiB, which it saves in chunks.
_ARRAY, _SCALAR = 1, 3
_CHUNKED = "__msgpack_chunked_array__"


class _Array:
    """An array as it is stored."""

    def __init__(self, code: int, packed: bytes, msgpack: Any):
        shape, label, data = msgpack.unpackb(packed, max_array_len=MOST_AXES, use_list=False)
        if not isinstance(label, str) or not isinstance(data, bytes):
            raise ValueError("an array does not consist of shape, dtype and bytes")
        self.code, self.shape, self.label, self.data = code, _shape(shape), label, data


class Msgpack(Checkpoint):
    kind = KIND

    def __init__(self, path: Path, tree: dict[Any, Any], msgpack: Any):
        self._tree, self._msgpack = tree, msgpack
        # The arrays that form an entry: one, or several chunks. Other leaves: the value.
        self._leaves: dict[str, Any] = {}
        super().__init__(path, list(self._entries("", tree, 0)))

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
            yield self._array(name, _shape(shape), chunks)
        elif isinstance(node, dict | list):
            for key, child in node.items() if isinstance(node, dict) else enumerate(node):
                yield from self._entries(f"{above}{key}", child, depth + 1)
        elif isinstance(node, _Array):
            yield self._array(name, node.shape, [node])
        elif node is not None:
            self._leaves[name] = node
            size = len(node) if isinstance(node, str | bytes) else 8
            yield Entry(name, (), None, type(node).__name__, size)

    def _array(self, name: str, shape: tuple[int, ...], arrays: list[_Array]) -> Entry:
        label, size = arrays[0].label, sum(len(x.data) for x in arrays)
        dtype = DTYPES.get(label)
        if dtype is not None and bytes_of(shape, dtype) != size:
            raise ValueError(
                f"{name!r} has {size} bytes, and shape {shape} with dtype {label} takes "
                f"{bytes_of(shape, dtype)}"
            )
        self._leaves[name] = arrays
        return Entry(name, shape, dtype, label, size)

    def read(self, name: str) -> np.ndarray:
        entry = self.entries[name]
        leaf = self._leaves[name]
        if not isinstance(leaf, list):
            return np.frombuffer(repr(leaf).encode(errors="replace"), np.uint8)
        parts = [x.data for x in leaf]
        data = np.frombuffer(parts[0] if len(parts) == 1 else b"".join(parts), np.uint8)
        return data if entry.dtype is None else data.view(entry.dtype).reshape(entry.shape)

    def save(self, target: Path, replacement: Replacement) -> list[str]:
        for name, entry in self.entries.items():
            new = replacement(entry)
            if new is not None:
                data, at = np.ascontiguousarray(new).tobytes(), 0
                for array in self._leaves[name]:
                    array.data, at = data[at : at + len(array.data)], at + len(array.data)

        packer = self._msgpack.Packer()

        def write(node: Any) -> None:  # piece by piece, so that the file is not in memory again
            if isinstance(node, dict):
                out.write(packer.pack_map_header(len(node)))
                for key, child in node.items():
                    out.write(packer.pack(key))
                    write(child)
            elif isinstance(node, list):
                out.write(packer.pack_array_header(len(node)))
                for child in node:
                    write(child)
            elif isinstance(node, _Array):
                packed = self._msgpack.packb((node.shape, node.label, node.data))
                out.write(packer.pack(self._msgpack.ExtType(node.code, packed)))
            else:
                out.write(packer.pack(node))

        with target.open("xb") as out:
            write(self._tree)
        return []


def open_msgpack(path: Path) -> Msgpack:
    msgpack = import_optional("msgpack")
    count = 0

    def check(items: Any) -> Any:
        # Small objects take up to 100 times their size in the file.
        nonlocal count
        count += len(items) + 1
        if count > 2 * MOST_ENTRIES:
            raise ValueError(f"it has more than {2 * MOST_ENTRIES} values")
        return items

    def pairs(items: list[tuple[Any, Any]]) -> dict[Any, Any]:
        tree = dict(check(items))
        if len(tree) < len(items):
            raise ValueError("a key is there twice")
        if not all(isinstance(key, str | int) and len(str(key)) <= LONGEST_NAME for key in tree):
            raise ValueError("a key is neither a short text nor a number")
        return tree

    def extension(code: int, data: bytes) -> Any:
        known = code in (_ARRAY, _SCALAR)
        return _Array(code, data, msgpack) if known else msgpack.ExtType(code, data)

    with translate_read_errors(path, KIND), path.open("rb") as file:
        size = path.stat().st_size
        unpacker = msgpack.Unpacker(
            file,
            read_size=min(2**20, size),
            max_buffer_size=size,
            max_map_len=MOST_ENTRIES,
            max_array_len=MOST_ENTRIES,
            object_pairs_hook=pairs,
            list_hook=check,
            ext_hook=extension,
            strict_map_key=False,
        )
        try:
            tree = unpacker.unpack()
        except msgpack.StackError as error:
            raise ValueError("it is nested too deep") from error
        if unpacker.tell() != size:
            raise ValueError(f"{size - unpacker.tell()} bytes follow its end")
        if not isinstance(tree, dict):
            raise ValueError("it holds no map of parameters")
        return Msgpack(path, tree, msgpack)


def _shape(numbers: Any) -> tuple[int, ...]:
    if not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError("an array has an invalid shape")
    return tuple(numbers)
