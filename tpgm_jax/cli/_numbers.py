"""The arithmetic of one tensor, in NumPy and block by block: distances and new values.

Not with the library's own functions, because JAX compiles a program for each shape, and a
checkpoint may have hundreds. The results agree with the library's to rounding.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from tpgm_jax._core.axes import Layout, Tensor
from tpgm_jax._core.ball import EPSILON
from tpgm_jax._core.unit import unit_from_sums

# Entries per block, so that copies stay in the processor's cache.
BLOCK = 2**17
_POWER = {"mars": 1, "l2": 2}  # of the entries that a norm sums


def distance(params: np.ndarray, anchor: np.ndarray, tensor: Tensor) -> dict[str, Any]:
    """The distance of a tensor `W` from its anchor `W0`, with `d = W - W0`, in float64.

    Returns:
        `mars`: over rows, the largest and the mean sum of `|d|`. `l2`: likewise over layers, of
        `sqrt(sum of d^2)`. `norm` and `anchor_norm`: `sqrt(sum of d^2)` of the whole tensor, and of
        its anchor. `relative`: their ratio, NaN if the anchor is zero. `not_finite`: how many
        entries of `d` are NaN or infinite.
    """
    sums, squares = _row_sums(params, anchor, tensor, (1, 2))
    (anchor_squares,) = _row_sums(anchor, None, tensor, (2,))
    lengths = np.sqrt(np.sum(squares, axis=tensor.rows))
    norm, anchor_norm = (math.sqrt(np.sum(x)) for x in (squares, anchor_squares))
    not_finite = 0
    if not np.all(np.isfinite(sums)):
        differences = (_difference(params[x], anchor[x]) for x in _blocks(tensor.shape))
        not_finite = sum(int(np.sum(~np.isfinite(d))) for d in differences)
    return {
        "mars": {"largest": float(np.max(sums)), "mean": float(np.mean(sums))},
        "l2": {"largest": float(np.max(lengths)), "mean": float(np.mean(lengths))},
        "norm": norm,
        "anchor_norm": anchor_norm,
        "relative": norm / anchor_norm if anchor_norm > 0 else math.nan,
        "not_finite": not_finite,
    }


def total_distance(distances: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """`norm` and `relative` of several tensors together."""
    norm, anchor_norm = (
        math.hypot(*(x[key] for x in distances)) for key in ("norm", "anchor_norm")
    )
    return norm, norm / anchor_norm if anchor_norm > 0 else math.nan


def _difference(w: np.ndarray, w0: np.ndarray) -> np.ndarray:
    """`W - W0` in float64. Equal infinities, such as in an attention mask, give 0."""
    w, w0 = (x.astype(np.float64, copy=False) for x in (w, w0))
    d = np.asarray(w - w0)  # also of scalars
    if not np.isfinite(d.sum()):
        d[w == w0] = 0
    return d


def _row_sums(
    w: np.ndarray, w0: np.ndarray | None, tensor: Tensor, powers: Sequence[int]
) -> list[np.ndarray]:
    """Sums of `|W - W0|` (power 1) or of its square (power 2) over each row. Default: no `W0`."""
    per_row = [1 if axis in tensor.inputs else n for axis, n in enumerate(tensor.shape)]
    totals = [np.zeros(per_row) for _ in powers]
    for block in _blocks(tensor.shape):
        d = w[block].astype(np.float64) if w0 is None else _difference(w[block], w0[block])
        # A row may span several blocks along its inputs.
        rows = tuple(slice(None) if axis in tensor.inputs else k for axis, k in enumerate(block))
        for total, power in zip(totals, powers, strict=True):
            (np.abs if power == 1 else np.square)(d, out=d)
            total[rows] += np.add.reduce(d, tensor.inputs, keepdims=True)
    return totals


def anchor_radii(
    radius: float, norm: str, tensors: Mapping[str, Tensor], read: Callable[[str], np.ndarray]
) -> dict[str, np.ndarray]:
    """A radius in units of the anchor, in the norm, for each group of each tensor.

    `read` returns the anchor of a tensor.
    """
    layout = Layout(tuple(tensors.values()))
    dtype, sums = jnp.dtype(jnp.float32), []
    for name, tensor in tensors.items():
        (row_sums,) = _row_sums(read(name), None, tensor, (_POWER[norm],))
        total = np.sum(row_sums, axis=tensor.rows, keepdims=True)
        sums.append(jnp.asarray(np.minimum(total, np.finfo(dtype).max), dtype))
    units = np.asarray(unit_from_sums(sums, layout, norm, dtype), np.float64)
    parts = np.split(units, np.cumsum([tensor.groups for tensor in layout.tensors])[:-1])
    pairs = zip(tensors.items(), parts, strict=True)
    return {name: radius * part.reshape(tensor.radius_shape) for (name, tensor), part in pairs}


def projection_ratio(
    params: np.ndarray, anchor: np.ndarray, tensor: Tensor, radius: np.ndarray | float, norm: str
) -> np.ndarray:
    """`min(1, r / n)`, as `tpgm_jax.project_to_anchor` computes it, for radii of `radius_shape`."""
    (n,) = _row_sums(params, anchor, tensor, (_POWER[norm],))
    if norm == "l2":
        n = np.sqrt(n.sum(axis=tensor.rows, keepdims=True))
    return np.minimum(1, radius / (n + EPSILON))


def move_tensor(
    params: np.ndarray, anchor: np.ndarray, ratio: np.ndarray | float
) -> tuple[np.ndarray, bool, bool]:
    """`W0 + ratio * (W - W0)`, whether its bytes differ from `W`, and whether it is finite.

    At ratios of 0 and 1 it is the anchor and `params`, bit for bit. `params` is overwritten if it
    can be.
    """
    # Compute narrower floats in float32.
    wide = params.dtype.kind == "c" or params.dtype.itemsize > 4
    dtype = params.dtype if wide else np.dtype(np.float32)
    ratios = np.broadcast_to(np.asarray(ratio, np.finfo(dtype).dtype), params.shape)
    new = params if params.flags.writeable else params.copy()
    changed, finite = False, True
    for block in _blocks(params.shape):
        old, r = params[block], ratios[block]
        w, w0 = (x[block].astype(dtype, copy=False) for x in (params, anchor))
        mixed = np.where(r == 0, w0, _interpolate(w, w0, r))  # `0 * inf` is NaN
        moved = np.where(r == 1, old, mixed.astype(params.dtype))
        # Bytes, because NaN != NaN.
        changed = changed or moved.tobytes() != old.tobytes()
        finite = finite and bool(np.all(np.isfinite(moved)))
        new[block] = moved
    return new, changed, finite


def _interpolate(w: np.ndarray, w0: np.ndarray, a: np.ndarray) -> np.ndarray:
    """`W0 + a * (W - W0)`, in the dtype of `w0`. Equal numbers stay as they are."""
    mixed = np.asarray(w0 + a * (w - w0))
    if not np.isfinite(mixed.sum()):  # `W - W0` may overflow
        mixed = np.where(np.isfinite(w - w0), mixed, (1 - a) * w0 + a * w)
    return np.where(w == w0, w0, mixed)  # `-0.0 + 0.0` is `0.0`


def _blocks(shape: tuple[int, ...]) -> Iterator[tuple[Any, ...]]:
    """Slices along one axis of an array, of about `BLOCK` entries each."""
    size = math.prod(shape)
    if size <= BLOCK:
        yield (slice(None),) * len(shape) or (...,)
        return
    # The first axis if it divides finely enough, because its slices are contiguous.
    axis = 0 if size // shape[0] <= BLOCK else int(np.argmax(shape))
    step = max(1, BLOCK * shape[axis] // size)
    for start in range(0, shape[axis], step):
        part = slice(start, start + step)
        yield tuple(part if i == axis else slice(None) for i in range(len(shape)))
