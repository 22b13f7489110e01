"""How far one tensor is from another, in both norms.

In NumPy and float64, and not by `tpgm_jax._projection.norms`: JAX compiles for each shape, and a
checkpoint may have hundreds. The numbers agree to what float32 can hold.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tpgm_jax._axes import Tensor

# Numbers that are worked on at once, so that float64 copies are of no account.
BLOCK = 2**20


class Distance(NamedTuple):
    """How far a tensor `W` is from its anchor `W0`, with `d = W - W0`.

    Attributes:
        mars_largest: over rows, the largest sum of `|d|`: the smallest radius, in the norm "mars",
            that would leave `W` as it is.
        mars_mean: the mean over rows.
        l2_largest: over layers, the largest `sqrt(sum of d^2)`; a tensor is one layer unless it
            stacks several.
        l2_mean: the mean over layers.
        squares: the sum of `d^2`.
        anchor_squares: the sum of `W0^2`.
        not_finite: how many entries of `d` are NaN or infinite.
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
        """`||W - W0|| / ||W0||`, under the l2 norm; NaN where the anchor is zero."""
        return relative(self.squares, self.anchor_squares)


def relative(squares: float, anchor_squares: float) -> float:
    return math.sqrt(squares / anchor_squares) if anchor_squares > 0 else math.nan


def distance(params: np.ndarray, anchor: np.ndarray, tensor: Tensor) -> Distance:
    """Measures one tensor, a block at a time.

    Args:
        params: the fine-tuned one.
        anchor: of the same shape.
        tensor: its rows and layers.
    """
    shape = tensor.shape
    per_row = [1 if axis in tensor.inputs else n for axis, n in enumerate(shape)]
    sums, squares = np.zeros(per_row), np.zeros(per_row)
    anchor_squares, not_finite = 0.0, 0
    # What is not finite is counted, and may show as such in the sums.
    with np.errstate(all="ignore"):
        for block in _blocks(shape):
            w0 = anchor[block].astype(np.float64)
            d = params[block].astype(np.float64) - w0
            # Along its inputs a row is added up from several blocks.
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
    """Slices of an array along its longest axis, of about `BLOCK` numbers each."""
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
