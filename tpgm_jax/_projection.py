"""The projection that all methods share.

Writing `W` for the parameters, `u` for the base optimizer's update, `W0` for the anchor
and `r` for the radius, the step ends at

    d  = (W - W0) + u                 the displacement of the candidate W + u
    n  = N(d) + 1e-8                  one for each row ("mars") or each group ("l2")
    W' = W0 + min(1, r / n) * d

Everything here works on one leaf. Norms and radii have the leaf's rank, with size 1 along
the axes that they reduce, and broadcast against it.
"""

import jax
import jax.numpy as jnp

from tpgm_jax._axes import Tensor

# Added to every norm that divides, as the published programs do: their traces need it, and
# a row that has not moved then divides nothing by zero.
EPSILON = 1e-8

NORMS = ("mars", "l2")


def wide_dtype(leaf: jax.Array) -> jnp.dtype:
    """The dtype to compute in: float32 for half precision, whose 8 bits would round a
    radius too, and the leaf's own otherwise."""
    return jnp.promote_types(jnp.result_type(leaf), jnp.float32)


def displacement(params: jax.Array, anchor: jax.Array) -> jax.Array:
    """`W - W0`, in the wide dtype.

    Taken before `u` is added because `W` lies near `W0`: their difference is then exact, where
    `(W + u) - W0` would first round `u` to the spacing of floats around `W`.
    """
    dtype = wide_dtype(params)
    return params.astype(dtype) - anchor.astype(dtype)


def norms(d: jax.Array, tensor: Tensor, norm: str) -> jax.Array:
    """`N(d)`, of each row or of each group.

        mars:  sum over the row of |d|
        l2:    sqrt(sum over the group of d^2)

    The gradient in `d` is finite at `d = 0`, where it is 0.

    Args:
        d: a leaf's displacement.
        tensor: its rows and layers.
        norm: "mars" or "l2".
    """
    if norm == "mars":
        size = jnp.sum(jnp.abs(d), axis=measured_axes(tensor, norm), keepdims=True)
    else:
        squares = inner_products(d, d, tensor, norm)
        # The square root's slope at 0 is infinite, and infinity times 0 is NaN.
        moved = squares > 0
        size = jnp.where(moved, jnp.sqrt(jnp.where(moved, squares, 1.0)), 0.0)
    # The ratio of two infinities is NaN; squares overflow from 1e19 in float32.
    return jnp.minimum(size, jnp.finfo(size.dtype).max)


def inner_products(x: jax.Array, y: jax.Array, tensor: Tensor, norm: str) -> jax.Array:
    """`<x, y>`, of each row ("mars") or of each group ("l2"): shaped like `norms`."""
    return jnp.sum(x * y, axis=measured_axes(tensor, norm), keepdims=True)


def measured_axes(tensor: Tensor, norm: str) -> tuple[int, ...]:
    """Axes along which one norm extends."""
    return tensor.inputs if norm == "mars" else tensor.inputs + tensor.rows


def shrinkage(radius: jax.Array, n: jax.Array) -> jax.Array:
    """`min(1, r / n)`, with the slope of `r / n` at the tie `r == n`.

    The tie is common: in float32 it is where a radius sits that was clipped at its upper
    bound. With a slope of 0, as `hardtanh` has it there, or of one half, as `jnp.minimum`
    has, a radius that reached its bound under the l2 norm could hardly leave it again.
    """
    return jnp.where(radius > n, n, radius) / n


def projected_update(
    params: jax.Array, anchor: jax.Array, d: jax.Array, n: jax.Array, radius: jax.Array
) -> jax.Array:
    """The update that ends at `W0 + min(1, r / n) * d`, in the dtype of `params`.

    Inside the ball that is the base optimizer's, but for the rounding of `W - W0` and `d`. To
    return that one itself would be to keep it, an array as large as the parameters, until
    the norms of the displacement are known.
    """
    return scaled_update(params, anchor, d, shrinkage(radius, n))


def scaled_update(
    params: jax.Array, anchor: jax.Array, d: jax.Array, ratio: jax.Array
) -> jax.Array:
    """The update that ends at `W0 + ratio * d`, in the dtype of `params`."""
    # `u - (1 - ratio) * d` is shorter, but cancels when `u` dwarfs the radius.
    scaled = (anchor.astype(d.dtype) - params.astype(d.dtype)) + ratio * d
    return scaled.astype(params.dtype)
