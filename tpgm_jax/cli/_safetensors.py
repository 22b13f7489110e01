"""Safetensors: a header in JSON, and the tensors one behind the other.

The library reads and checks the header: that it lies within the file, that the ranges have no
holes and do not overlap, that shapes and dtypes fit them, and that they end where the file does.
Numbers are read from the file at those ranges, and not through the library's map of it, as pages
of a map count as memory of the process until the whole file is in it. Its writer wants all tensors
at once; ours leaves the header as it is, metadata and all.
"""

import math
from pathlib import Path

import ml_dtypes
import numpy as np

from tpgm_jax.cli._checkpoint import Entry, Ranges, collect
from tpgm_jax.cli._errors import CommandError, optional, reading

KIND = "safetensors"

_DTYPES = {
    "BOOL": np.dtype(bool),
    **{
        f"{letter}{8 * n}": np.dtype(f"{letter.lower()}{n}")
        for letter in "IU"
        for n in (1, 2, 4, 8)
    },
    **{f"F{8 * n}": np.dtype(f"f{n}") for n in (2, 4, 8)},
    "C64": np.dtype(np.complex64),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
}
# Several numbers to a byte: copied, and not looked into.
_PACKED_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


def open_safetensors(path: Path) -> Ranges:
    safetensors = optional("safetensors")
    entries, ranges = [], {}
    size = path.stat().st_size
    with path.open("rb") as file:
        claimed = int.from_bytes(file.read(8), "little")
    if claimed > size - 8:
        raise CommandError(
            f"{path} is no whole safetensors file, because it claims a header of {claimed} bytes "
            f"and has {size} in all: fetch it again."
        )
    start = 8 + claimed
    with reading(path, KIND), safetensors.safe_open(path, framework="numpy") as file:
        for name in file.offset_keys():
            header = file.get_slice(name)
            shape, label = tuple(header.get_shape()), header.get_dtype()
            dtype = _DTYPES.get(label)
            bits = _PACKED_BITS.get(label) if dtype is None else 8 * dtype.itemsize
            if bits is None:
                raise CommandError(f"{path} has a tensor of the unknown dtype {label}.")
            length = math.prod(shape) * bits // 8
            entries.append(
                Entry(name, shape, dtype, label if dtype is None else dtype.name, length)
            )
            ranges[name] = [(start, start + length)]
            start += length
    if start != size:
        raise CommandError(f"{path} has {size} bytes, and its header accounts for {start}.")
    return Ranges(path, KIND, collect(path, entries), ranges)
