"""One tensor back towards its anchor, by the library's own functions.

Those that work element by element are called with NumPy arrays, or on flat blocks of few sizes, as
JAX compiles for each shape. The norms are computed on the tensor as it is, since another order of
summation would round otherwise, and results are to equal the library's bit for bit.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

import tpgm_jax
from tpgm_jax._axes import Tensor
from tpgm_jax._projection import EPSILON, displacement, norms, scaled_update, shrinkage

BLOCK = 2**20


def interpolated(params: np.ndarray, anchor: np.ndarray, alpha: float) -> np.ndarray:
    """`(1 - alpha) * W0 + alpha * W`, as `tpgm_jax.interpolate` has it."""

    def mixed(w0, w):
        return tpgm_jax.interpolate({"w": w0}, {"w": w}, alpha)["w"]

    return _blockwise(mixed, known(anchor), known(params)).astype(params.dtype)


def projected(
    params: np.ndarray, anchor: np.ndarray, tensor: Tensor, radius: np.ndarray, norm: str
) -> tuple[np.ndarray, bool]:
    """`W0 + min(1, r / n) * (W - W0)`, as `tpgm_jax.project_to_anchor` has it.

    Args:
        params: the fine-tuned tensor.
        anchor: the pre-trained one.
        tensor: its rows and layers.
        radius: of the tensor's `radius_shape`.
        norm: "mars" or "l2".

    Returns:
        The tensor, and whether any of it was outside the ball.
    """
    w: Any = known(params)  # untyped, as these functions are declared for JAX's arrays
    w0: Any = known(anchor)
    with np.errstate(all="ignore"):
        d = displacement(w, w0)
        n = np.asarray(norms(jnp.asarray(d), tensor, norm)) + EPSILON
        r = np.broadcast_to(radius.astype(d.dtype), n.shape)
        ratio: Any = _blockwise(shrinkage, r, n)
        # As `optax.apply_updates` adds them, in the dtype of the parameters.
        moved = w + scaled_update(w, w0, d, ratio)
        return moved.astype(params.dtype), bool(np.any(ratio < 1))


def known(array: np.ndarray) -> np.ndarray:
    """In float32 what has 8 bits, which JAX promotes to nothing."""
    narrow = array.dtype.itemsize == 1 and jnp.issubdtype(array.dtype, jnp.floating)
    return array.astype(np.float32) if narrow else array


def _blockwise(f: Callable[..., object], *arrays: np.ndarray) -> np.ndarray:
    """`f` of arrays of the same shape, element by element, compiled for few sizes."""
    flat = [array.reshape(-1) for array in arrays]
    count, found = flat[0].size, []
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        # The next power of 4 makes at most 11 sizes; ones, as zeros would be divided by.
        padded = min(BLOCK, 4 ** max(0, (size - 1).bit_length() + 1 >> 1))
        blocks = [np.ones(padded, x.dtype) for x in flat]
        for block, x in zip(blocks, flat, strict=True):
            block[:size] = x[start : start + size]
        found.append(np.asarray(f(*blocks))[:size])
    return np.concatenate(found).reshape(arrays[0].shape) if found else arrays[-1]
