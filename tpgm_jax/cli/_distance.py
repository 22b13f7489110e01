"""Distance between two tensors, in both norms.

In NumPy and float64, not with `tpgm_jax._core.ball.norms`, because JAX compiles once per shape and
a checkpoint may have hundreds. The results agree to float32 precision.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tpgm_jax._core.axes import Tensor

# Entries per block, so that float64 copies stay small.
BLOCK = 2**20


class Distance(NamedTuple):
    """Distance of a tensor `W` from its anchor `W0`, with `d = W - W0`.

    Attributes:
        mars_largest: largest sum of `|d|` over a row. A projection with at least this radius, in
            the norm "mars", does not change `W`.
        mars_mean: mean over rows of the sum of `|d|`.
        l2_largest: largest `sqrt(sum of d^2)` over a layer; a tensor is one layer unless it stacks
            several.
        l2_mean: mean over layers of `sqrt(sum of d^2)`.
        squares: sum of `d^2`.
        anchor_squares: sum of `W0^2`.
        not_finite: number of entries of `d` that are NaN or infinite.
    """

    mars_largest: float
    mars_mean: float
    l2_largest: float
    l2_mean: float
    squares: float
    anchor_squares: float
    not_finite: int

    @property
    def relative(self) -> float:
        """`||W - W0|| / ||W0||` in the l2 norm; NaN if the anchor is zero."""
        return relative(self.squares, self.anchor_squares)


def relative(squares: float, anchor_squares: float) -> float:
    return math.sqrt(squares / anchor_squares) if anchor_squares > 0 else math.nan


def distance(params: np.ndarray, anchor: np.ndarray, tensor: Tensor) -> Distance:
    """Measures one tensor, a block at a time.

    Args:
        params: the fine-tuned tensor.
        anchor: the pre-trained tensor, of the same shape.
        tensor: rows and layers of the tensor.
    """
    shape = tensor.shape
    per_row = [1 if axis in tensor.inputs else n for axis, n in enumerate(shape)]
    sums, squares = np.zeros(per_row), np.zeros(per_row)
    anchor_squares, not_finite = 0.0, 0
    # Non-finite entries are counted; the sums may be NaN.
    with np.errstate(all="ignore"):
        for block in _blocks(shape):
            w0 = anchor[block].astype(np.float64)
            d = params[block].astype(np.float64) - w0
            # A row may span several blocks along its inputs.
            rows = tuple(
                slice(None) if axis in tensor.inputs else x for axis, x in enumerate(block)
            )
            sums[rows] += np.sum(np.abs(d), axis=tensor.inputs, keepdims=True)
            squares[rows] += np.sum(d * d, axis=tensor.inputs, keepdims=True)
            anchor_squares += float(np.vdot(w0, w0))
            not_finite += int(d.size - np.count_nonzero(np.isfinite(d)))
        lengths = np.sqrt(np.sum(squares, axis=tensor.rows))
        return Distance(
            mars_largest=float(np.max(sums)),
            mars_mean=float(np.mean(sums)),
            l2_largest=float(np.max(lengths)),
            l2_mean=float(np.mean(lengths)),
            squares=float(np.sum(squares)),
            anchor_squares=anchor_squares,
            not_finite=not_finite,
        )


def _blocks(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Slices along the longest axis of an array, of about `BLOCK` entries each."""
    if not shape:
        yield ()
        return
    axis = int(np.argmax(shape))
    step = max(1, BLOCK * shape[axis] // math.prod(shape))
    for start in range(0, shape[axis], step):
        yield tuple(
            slice(start, min(start + step, n)) if i == axis else slice(0, n)
            for i, n in enumerate(shape)
        )
