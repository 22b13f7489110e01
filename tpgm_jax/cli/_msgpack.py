"""Flax's msgpack: nested maps, with arrays as extensions that hold shape, dtype and bytes.

The library parses scalars and headers. The containers are walked here, so that no objects are built
for them, depth is bounded, and one array is in memory at a time. The library reads the bytes before
it allocates an object, so a claimed length of 4 GiB fails at the end of the file.
"""

from pathlib import Path
from typing import Any, NamedTuple

from tpgm_jax.cli._checkpoint import DTYPES, Entry, Ranges, bytes_of, collect
from tpgm_jax.cli._errors import CommandError, import_optional, translate_read_errors
from tpgm_jax.cli._text import printable

KIND = "msgpack"
DEEPEST = 100
# Flax's extension types, and its key for an array of more than 1 GiB, which it saves in chunks.
_ARRAY, _SCALAR = 1, 3
_CHUNKED = "__msgpack_chunked_array__"


class _Array(NamedTuple):
    shape: tuple[int, ...]
    dtype: str
    size: int


class _Leaf(NamedTuple):
    value: Any
    start: int
    stop: int


def open_msgpack(path: Path) -> Ranges:
    msgpack = import_optional("msgpack")
    with translate_read_errors(path, KIND):
        leaves = _walk(path, msgpack)
        return _to_ranges(path, leaves)


def _walk(path: Path, msgpack: Any) -> dict[tuple[str, ...], _Leaf]:
    """All leaves by path. An explicit stack, so that deep nesting cannot exhaust Python's."""
    size = path.stat().st_size
    leaves: dict[tuple[str, ...], _Leaf] = {}
    with path.open("rb") as file, path.open("rb") as ahead:
        unpacker = msgpack.Unpacker(
            file,
            read_size=min(2**20, size),
            max_buffer_size=size,
            ext_hook=lambda code, data: _array(msgpack, code, data),
            strict_map_key=False,
        )

        def read_value(path: tuple[str, ...]) -> None:
            start = unpacker.tell()
            ahead.seek(start)
            first = ahead.read(1)
            if first and (0x80 <= first[0] <= 0x8F or first in b"\xde\xdf"):
                stack.append((path, unpacker.read_map_header(), None))
            elif first and (0x90 <= first[0] <= 0x9F or first in b"\xdc\xdd"):
                stack.append((path, unpacker.read_array_header(), 0))
            else:
                value = unpacker.unpack()
                if path in leaves:
                    raise ValueError(f"the key {'/'.join(path)!r} is there twice")
                leaves[path] = _Leaf(value, start, unpacker.tell())

        # For each open container: path, number of items left, and the next index of a list.
        stack: list[tuple[tuple[str, ...], int, int | None]] = []
        read_value(())
        if not stack:
            raise ValueError("it holds no map of parameters")
        while stack:
            above, remaining, index = stack.pop()
            if not remaining:
                continue
            if len(stack) > DEEPEST:
                raise ValueError(f"it is nested more than {DEEPEST} deep")
            key = unpacker.unpack() if index is None else index
            if not isinstance(key, str | int):
                raise ValueError(f"a key is a {type(key).__name__}")
            stack.append((above, remaining - 1, None if index is None else index + 1))
            read_value((*above, str(key)))
        if unpacker.tell() != size:
            raise ValueError(f"{size - unpacker.tell()} bytes follow its end")
    return leaves


def _array(msgpack: Any, code: int, data: bytes) -> Any:
    """Shape, dtype and byte size of an array, whose bytes end at the end of `data`."""
    if code not in (_ARRAY, _SCALAR):
        return f"extension {code}"
    # The header is short; 64 is NumPy's largest rank.
    head = msgpack.Unpacker(None)
    head.feed(data[:4096])
    if head.read_array_header() != 3 or (rank := head.read_array_header()) > 64:
        raise ValueError("an array does not consist of shape, dtype and bytes")
    shape = tuple(head.unpack() for _ in range(rank))
    dtype = head.unpack()
    if not isinstance(dtype, str) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("an array has an invalid shape or dtype")
    start = head.tell()
    width = {0xC4: 1, 0xC5: 2, 0xC6: 4}.get(data[start] if start < len(data) else 0)
    if width is None:
        raise ValueError("an array has no bytes")
    size = int.from_bytes(data[start + 1 : start + 1 + width], "big")
    if start + 1 + width + size != len(data):
        raise ValueError(f"an array claims {size} bytes but does not have them")
    return _Array(shape, dtype, size)


def _to_ranges(path: Path, leaves: dict[tuple[str, ...], _Leaf]) -> Ranges:
    entries, ranges = [], {}
    chunked = {keys[:-1] for keys in leaves if keys[-1] == _CHUNKED}
    for keys in chunked:
        entry, chunks = _join_chunks(keys, leaves)
        entries.append(entry)
        ranges[entry.name] = chunks
    for keys, (value, start, stop) in leaves.items():
        if value is None or any(keys[:depth] in chunked for depth in range(len(keys))):
            continue
        if isinstance(value, _Array):
            entry = _entry("/".join(keys), value.shape, value.dtype, value.size)
            start = stop - value.size
        else:
            entry = Entry("/".join(keys), (), None, type(value).__name__, stop - start)
        entries.append(entry)
        ranges[entry.name] = [(start, stop)]
    entries.sort(key=lambda entry: ranges[entry.name])
    return Ranges(path, KIND, collect(path, entries), ranges)


def _entry(name: str, shape: tuple[int, ...], label: str, size: int) -> Entry:
    dtype = DTYPES.get(label)
    if dtype is not None and bytes_of(shape, dtype) != size:
        raise CommandError(
            f"{printable(name)!r} cannot be read, because it has {size} bytes, and shape {shape} "
            f"with dtype {label} takes {bytes_of(shape, dtype)}: fetch or save the file again."
        )
    return Entry(name, shape, dtype, label, size)


def _join_chunks(
    keys: tuple[str, ...], leaves: dict[tuple[str, ...], _Leaf]
) -> tuple[Entry, list[tuple[int, int]]]:
    """Entry and byte ranges of an array that was saved in chunks."""

    def items(key: str) -> list[_Leaf]:
        by_index = {x[-1]: leaf for x, leaf in leaves.items() if x[:-1] == (*keys, key)}
        return [by_index[str(i)] for i in range(len(by_index))]

    shape = tuple(leaf.value for leaf in items("shape"))
    chunks = items("chunks")
    labels = {leaf.value.dtype for leaf in chunks if isinstance(leaf.value, _Array)}
    if len(labels) != 1 or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"the chunks of {'/'.join(keys)!r} do not form an array")
    sizes = [leaf.value.size for leaf in chunks]
    entry = _entry("/".join(keys), shape, labels.pop(), sum(sizes))
    return entry, [(x.stop - size, x.stop) for x, size in zip(chunks, sizes, strict=True)]
