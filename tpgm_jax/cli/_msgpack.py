"""Flax's msgpack: nested maps, with arrays as extensions that hold shape, dtype and numbers.

The library parses; we walk the containers ourselves, so that nothing is built of them, depth is
bounded, and one array is in memory at a time. Every length is met by bytes of the file before
anything is made of it: the library buffers what there is, and a claim of 4 GiB ends where the
file does.
"""

from pathlib import Path
from typing import Any, NamedTuple

from tpgm_jax.cli._checkpoint import DTYPES, Entry, Ranges, bytes_of, collect
from tpgm_jax.cli._errors import CommandError, optional, reading

KIND = "msgpack"
DEEPEST = 100
# Flax's extension types, and how it marks an array of more than 1 GiB, which it saves in pieces.
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
    msgpack = optional("msgpack")
    with reading(path, KIND):
        leaves = _walk(path, msgpack)
        return _collected(path, leaves)


def _walk(path: Path, msgpack: Any) -> dict[tuple[str, ...], _Leaf]:
    """Every leaf by its path. An explicit stack, so that no depth exhausts ours."""
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

        def value(path: tuple[str, ...]) -> None:
            start = unpacker.tell()
            ahead.seek(start)
            first = ahead.read(1)
            if first and (0x80 <= first[0] <= 0x8F or first in b"\xde\xdf"):
                stack.append((path, unpacker.read_map_header(), None))
            elif first and (0x90 <= first[0] <= 0x9F or first in b"\xdc\xdd"):
                stack.append((path, unpacker.read_array_header(), 0))
            else:
                found = unpacker.unpack()
                if path in leaves:
                    raise ValueError(f"the key {'/'.join(path)!r} is there twice")
                leaves[path] = _Leaf(found, start, unpacker.tell())

        # Of each open container its path, how many items are left, and for a list the next index.
        stack: list[tuple[tuple[str, ...], int, int | None]] = []
        value(())
        if not stack:
            raise ValueError("it holds no map of parameters")
        while stack:
            above, left, index = stack.pop()
            if not left:
                continue
            if len(stack) > DEEPEST:
                raise ValueError(f"it is nested more than {DEEPEST} deep")
            key = unpacker.unpack() if index is None else index
            if not isinstance(key, str | int):
                raise ValueError(f"a key is a {type(key).__name__}")
            stack.append((above, left - 1, None if index is None else index + 1))
            value((*above, str(key)))
        if unpacker.tell() != size:
            raise ValueError(f"{size - unpacker.tell()} bytes follow its end")
    return leaves


def _array(msgpack: Any, code: int, data: bytes) -> Any:
    """Shape and dtype of an array, and the size of its numbers, which end where `data` does."""
    if code not in (_ARRAY, _SCALAR):
        return f"extension {code}"
    # What comes before the numbers is short; 64 is NumPy's largest rank.
    head = msgpack.Unpacker(None)
    head.feed(data[:4096])
    if head.read_array_header() != 3 or (rank := head.read_array_header()) > 64:
        raise ValueError("an array is not of shape, dtype and numbers")
    shape = tuple(head.unpack() for _ in range(rank))
    dtype = head.unpack()
    if not isinstance(dtype, str) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("an array has no proper shape and dtype")
    at = head.tell()
    width = {0xC4: 1, 0xC5: 2, 0xC6: 4}.get(data[at] if at < len(data) else 0)
    if width is None:
        raise ValueError("an array has no numbers")
    size = int.from_bytes(data[at + 1 : at + 1 + width], "big")
    if at + 1 + width + size != len(data):
        raise ValueError(f"an array claims {size} bytes and does not have them")
    return _Array(shape, dtype, size)


def _collected(path: Path, leaves: dict[tuple[str, ...], _Leaf]) -> Ranges:
    entries, ranges = [], {}
    chunked = {where[:-1] for where in leaves if where[-1] == _CHUNKED}
    for where in chunked:
        entry, pieces = _joined(where, leaves)
        entries.append(entry)
        ranges[entry.name] = pieces
    for where, (value, start, stop) in leaves.items():
        if value is None or any(where[:depth] in chunked for depth in range(len(where))):
            continue
        if isinstance(value, _Array):
            entry = _entry("/".join(where), value.shape, value.dtype, value.size)
            start = stop - value.size
        else:
            entry = Entry("/".join(where), (), None, type(value).__name__, stop - start)
        entries.append(entry)
        ranges[entry.name] = [(start, stop)]
    entries.sort(key=lambda entry: ranges[entry.name])
    return Ranges(path, KIND, collect(path, entries), ranges)


def _entry(name: str, shape: tuple[int, ...], label: str, size: int) -> Entry:
    dtype = DTYPES.get(label)
    if dtype is not None and bytes_of(shape, dtype) != size:
        raise CommandError(
            f"{name!r} has {size} bytes, and {bytes_of(shape, dtype)} are expected of shape "
            f"{shape} and dtype {label}"
        )
    return Entry(name, shape, dtype, label, size)


def _joined(
    where: tuple[str, ...], leaves: dict[tuple[str, ...], _Leaf]
) -> tuple[Entry, list[tuple[int, int]]]:
    """An array that was saved in pieces."""

    def numbered(key: str) -> list[_Leaf]:
        found = {x[-1]: leaf for x, leaf in leaves.items() if x[:-1] == (*where, key)}
        return [found[str(i)] for i in range(len(found))]

    shape = tuple(leaf.value for leaf in numbered("shape"))
    pieces = numbered("chunks")
    labels = {leaf.value.dtype for leaf in pieces if isinstance(leaf.value, _Array)}
    if len(labels) != 1 or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"the pieces of {'/'.join(where)!r} do not make an array")
    sizes = [leaf.value.size for leaf in pieces]
    entry = _entry("/".join(where), shape, labels.pop(), sum(sizes))
    return entry, [(x.stop - size, x.stop) for x, size in zip(pieces, sizes, strict=True)]
