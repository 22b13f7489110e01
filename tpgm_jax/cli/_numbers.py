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
Block = tuple[Any, ...]


def distance(params: np.ndarray, anchor: np.ndarray, tensor: Tensor) -> dict[str, Any]:
    """The distance of a tensor `W` from its anchor `W0`, with `d = W - W0`, in float64.

    Returns:
        `mars`: over rows, the largest and the mean sum of `|d|`. `l2`: likewise over layers, of
        `sqrt(sum of d^2)`. `norm` and `anchor_norm`: `sqrt(sum of d^2)` of the whole tensor, and of
        its anchor. `relative`: their ratio, NaN if the anchor is zero. `not_finite`: how many
        entries of `d` are NaN or infinite.
    """
    anchor_squares, not_finite = 0.0, 0

    def displacement(block: Block) -> np.ndarray:
        nonlocal anchor_squares, not_finite
        w0 = anchor[block].astype(np.float64)
        d = _displacement(params[block], w0)
        if not np.isfinite(d.sum()):
            not_finite += int(d.size - np.count_nonzero(np.isfinite(d)))
        # Not `vdot`, which waits for threads on a busy machine.
        anchor_squares += float(np.square(w0, out=w0).sum())
        return d

    with np.errstate(all="ignore"):  # non-finite entries are counted; the sums may be NaN
        sums, squares = _row_sums(displacement, tensor, (1, 2))
        lengths = np.sqrt(np.sum(squares, axis=tensor.rows))
        norm, anchor_norm = math.sqrt(np.sum(squares)), math.sqrt(anchor_squares)
        return {
            "mars": {"largest": float(np.max(sums)), "mean": float(np.mean(sums))},
            "l2": {"largest": float(np.max(lengths)), "mean": float(np.mean(lengths))},
            "norm": norm,
            "anchor_norm": anchor_norm,
            "relative": norm / anchor_norm if anchor_norm > 0 else math.nan,
            "not_finite": not_finite,
        }


def together(distances: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """`norm` and `relative` of several tensors together."""
    norm, anchor_norm = (
        math.hypot(*(x[key] for x in distances)) for key in ("norm", "anchor_norm")
    )
    return norm, norm / anchor_norm if anchor_norm > 0 else math.nan


def _displacement(w: np.ndarray, w0: np.ndarray) -> np.ndarray:
    """`W - W0`, in the dtype of `w0`. Equal infinities, such as in an attention mask, give 0."""
    w = w.astype(w0.dtype, copy=False)
    d = np.asarray(w - w0)  # also of scalars
    if not np.isfinite(d.sum()):
        d[w == w0] = 0
    return d


def _row_sums(
    read: Callable[[Block], np.ndarray], tensor: Tensor, powers: Sequence[int]
) -> list[np.ndarray]:
    """Sums of `|x|` (power 1) or `x^2` (power 2) over each row of what `read` returns by block."""
    per_row = [1 if axis in tensor.inputs else n for axis, n in enumerate(tensor.shape)]
    totals = [np.zeros(per_row) for _ in powers]
    for block in _blocks(tensor.shape):
        x = read(block)
        # A row may span several blocks along its inputs.
        rows = tuple(slice(None) if axis in tensor.inputs else k for axis, k in enumerate(block))
        for total, power in zip(totals, powers, strict=True):
            (np.abs if power == 1 else np.square)(x, out=x)
            total[rows] += np.add.reduce(x, tensor.inputs, dtype=np.float64, keepdims=True)
    return totals


def projection_ratio(
    params: np.ndarray, anchor: np.ndarray, tensor: Tensor, radius: np.ndarray, norm: str
) -> np.ndarray:
    """`min(1, r / n)`, as `tpgm_jax.project_to_anchor` computes it, for radii of `radius_shape`."""
    dtype = _wide(params.dtype)

    def displacement(block: Block) -> np.ndarray:
        return _displacement(params[block], anchor[block].astype(dtype, copy=False))

    with np.errstate(all="ignore"):
        (n,) = _row_sums(displacement, tensor, (1,) if norm == "mars" else (2,))
        if norm == "l2":
            n = np.sqrt(n.sum(axis=tensor.rows, keepdims=True))
        n = np.minimum(n, np.finfo(dtype).max) + EPSILON
        return np.where(radius > n, n, radius) / n


def move_tensor(
    params: np.ndarray, anchor: np.ndarray, ratio: np.ndarray | float
) -> tuple[np.ndarray, bool]:
    """`W0 + ratio * (W - W0)`, and whether its bytes differ from `W`.

    At ratios of 0 and 1 it is the anchor and `params`, bit for bit. `params` is overwritten if it
    can be.
    """
    dtype, changed = _wide(params.dtype), False
    ratio = np.asarray(ratio, np.finfo(dtype).dtype)
    if np.all(ratio == 1):
        return params, False
    new, ratios = _writable(params), np.broadcast_to(ratio, params.shape)
    with np.errstate(all="ignore"):
        for block in _blocks(params.shape):
            old, r = params[block], ratios[block]
            w0 = anchor[block].astype(dtype, copy=False)
            mixed = _between(old.astype(dtype, copy=False), w0, r)
            mixed = np.where(r == 0, w0, mixed)  # `0 * inf` is NaN
            moved = np.where(r == 1, old, mixed.astype(params.dtype))
            # Bytes, because NaN != NaN.
            changed = changed or moved.tobytes() != old.tobytes()
            new[block] = moved
    return new, changed


def _between(w: np.ndarray, w0: np.ndarray, a: np.ndarray) -> np.ndarray:
    """`W0 + a * (W - W0)`, in the dtype of `w0`. Equal numbers stay as they are."""
    mixed = np.asarray(w0 + a * (w - w0))
    if not np.isfinite(mixed.sum()):  # `W - W0` may overflow
        mixed = np.where(np.isfinite(w - w0), mixed, (1 - a) * w0 + a * w)
    return np.where(w == w0, w0, mixed)  # `-0.0 + 0.0` is `0.0`


def all_finite(array: np.ndarray) -> bool:
    return all(bool(np.all(np.isfinite(array[block]))) for block in _blocks(array.shape))


def anchor_sums(anchor: np.ndarray, tensor: Tensor, norm: str) -> np.ndarray:
    """The sum of `|W0|`, or of its square for "l2", over each group: `radius_shape`."""
    powers = (1,) if norm == "mars" else (2,)
    (sums,) = _row_sums(lambda block: anchor[block].astype(np.float64), tensor, powers)
    return np.sum(sums, axis=tensor.rows, keepdims=True)


def unit_sizes(
    sums: Mapping[str, np.ndarray], tensors: Mapping[str, Tensor], norm: str
) -> dict[str, np.ndarray]:
    """The unit "anchor" of each group, of `radius_shape`, from the `anchor_sums` of each tensor."""
    layout = Layout(tuple(tensors.values()))
    largest = np.finfo(np.float32).max  # of what JAX computes with
    arrays = [jnp.asarray(np.minimum(sums[name], largest), jnp.float32) for name in tensors]
    units = np.asarray(unit_from_sums(arrays, layout, norm, jnp.dtype(jnp.float32)), np.float64)
    parts = np.split(units, np.cumsum([tensor.groups for tensor in tensors.values()])[:-1])
    pairs = zip(tensors.items(), parts, strict=True)
    return {name: part.reshape(tensor.radius_shape) for (name, tensor), part in pairs}


def _wide(dtype: np.dtype) -> np.dtype:
    """The dtype to compute in: float32 for narrower floats, otherwise the same."""
    return dtype if dtype.kind == "c" or dtype.itemsize > 4 else np.dtype(np.float32)


def _writable(array: np.ndarray) -> np.ndarray:
    return array if array.flags.writeable else array.copy()


def _blocks(shape: tuple[int, ...]) -> Iterator[Block]:
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
