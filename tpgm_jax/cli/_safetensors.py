"""Safetensors: a JSON header, followed by the bytes of the tensors.

The library reads and checks the header: it must fit in the file, and its ranges must cover the rest
of the file without gaps or overlaps and match shapes and dtypes. Arrays are read from the file at
these ranges, not through the library's memory map, because mapped pages count as memory of the
process. The library can only write all tensors at once; `Ranges.save` copies the header unchanged.
"""

import math
from pathlib import Path

import ml_dtypes
import numpy as np

from tpgm_jax.cli._checkpoint import Entry, Ranges, collect
from tpgm_jax.cli._errors import CommandError, import_optional, translate_read_errors

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
# Dtypes of less than 8 bits: copied unread.
_PACKED_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


def open_safetensors(path: Path) -> Ranges:
    safetensors = import_optional("safetensors")
    entries, ranges = [], {}
    size = path.stat().st_size
    with path.open("rb") as file:
        claimed = int.from_bytes(file.read(8), "little")
    if claimed > size - 8:
        raise CommandError(
            f"{path} is not a complete safetensors file, because it claims a header of {claimed} "
            f"bytes and has {size} in total: fetch it again."
        )
    start = 8 + claimed
    with translate_read_errors(path, KIND), safetensors.safe_open(path, framework="numpy") as file:
        for name in file.offset_keys():
            header = file.get_slice(name)
            shape, label = tuple(header.get_shape()), header.get_dtype()
            dtype = _DTYPES.get(label)
            bits = _PACKED_BITS.get(label) if dtype is None else 8 * dtype.itemsize
            if bits is None:
                raise CommandError(
                    f"{path} cannot be read, because it has a tensor of the unknown dtype {label}: "
                    "save it with another dtype."
                )
            length = math.prod(shape) * bits // 8
            entries.append(
                Entry(name, shape, dtype, label if dtype is None else dtype.name, length)
            )
            ranges[name] = [(start, start + length)]
            start += length
    if start != size:
        raise CommandError(
            f"{path} cannot be read, because it has {size} bytes and its header describes {start}: "
            "fetch or save it again."
        )
    return Ranges(path, KIND, collect(path, entries), ranges)
