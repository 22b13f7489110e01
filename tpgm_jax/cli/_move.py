"""Moves one tensor towards its anchor, with the library's own functions.

Element-wise functions run on NumPy arrays, or on flat blocks of few sizes, because JAX compiles
once per shape. Norms are computed on the whole tensor: another order of summation would round
differently, and the results equal the library's bit for bit.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

import tpgm_jax
from tpgm_jax._core.axes import Tensor
from tpgm_jax._core.ball import EPSILON, displacement, norms, scaled_update, shrinkage

BLOCK = 2**20


def interpolate_tensor(params: np.ndarray, anchor: np.ndarray, alpha: float) -> np.ndarray:
    """`(1 - alpha) * W0 + alpha * W`, computed by `tpgm_jax.interpolate`."""

    def mix(w0, w):
        return tpgm_jax.interpolate({"w": w}, {"w": w0}, alpha)["w"]

    return _blockwise(mix, widen_float8(anchor), widen_float8(params)).astype(params.dtype)


def project_tensor(
    params: np.ndarray, anchor: np.ndarray, tensor: Tensor, radius: np.ndarray, norm: str
) -> tuple[np.ndarray, bool]:
    """`W0 + min(1, r / n) * (W - W0)`, equal to the result of `tpgm_jax.project_to_anchor`.

    Args:
        params: the fine-tuned tensor.
        anchor: the pre-trained tensor.
        tensor: rows and layers of the tensor.
        radius: radii, of shape `tensor.radius_shape`.
        norm: "mars" or "l2".

    Returns:
        The projected tensor, and whether any part of it was outside its ball.
    """
    w: Any = widen_float8(params)  # `Any`, because the functions are typed for `jax.Array`
    w0: Any = widen_float8(anchor)
    with np.errstate(all="ignore"):
        d = displacement(w, w0)
        n = np.asarray(norms(jnp.asarray(d), tensor, norm)) + EPSILON
        r = np.broadcast_to(radius.astype(d.dtype), n.shape)
        ratio: Any = _blockwise(shrinkage, r, n)
        # Add in the dtype of the parameters, like `optax.apply_updates`.
        result = w + scaled_update(w, w0, d, ratio)
        return result.astype(params.dtype), bool(np.any(ratio < 1))


def widen_float8(array: np.ndarray) -> np.ndarray:
    """Casts 8-bit floats to float32, because JAX does not promote them."""
    narrow = array.dtype.itemsize == 1 and jnp.issubdtype(array.dtype, jnp.floating)
    return array.astype(np.float32) if narrow else array


def _blockwise(f: Callable[..., object], *arrays: np.ndarray) -> np.ndarray:
    """Applies an element-wise `f` to arrays of one shape, compiled for few sizes."""
    flat = [array.reshape(-1) for array in arrays]
    count, results = flat[0].size, []
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        # Pad to a power of 4, for at most 11 sizes; with ones, because `f` may divide.
        padded = min(BLOCK, 4 ** max(0, (size - 1).bit_length() + 1 >> 1))
        blocks = [np.ones(padded, x.dtype) for x in flat]
        for block, x in zip(blocks, flat, strict=True):
            block[:size] = x[start : start + size]
        results.append(np.asarray(f(*blocks))[:size])
    return np.concatenate(results).reshape(arrays[0].shape) if results else arrays[-1]
