"""The projection that all methods share.

Writing `W` for the parameters, `u` for the base optimizer's update, `W0` for the anchor
and `r` for the radius, a step ends at

    c  = (W - W0) + u                 the displacement of the candidate W + u
    n  = N(c) + 1e-8                  one for each row ("mars") or each group ("l2")
    W' = W0 + min(1, r / n) * c

The functions here take one leaf. Norms and radii have the rank of the leaf, with size 1 along
the axes that they reduce, and broadcast against it.
"""

import functools

import jax
import jax.numpy as jnp

from tpgm_jax._core.axes import Tensor

# Added to every norm that divides, because the published programs do it and their traces need
# it. It also keeps a row that has not moved from dividing by zero.
EPSILON = 1e-8


def wide_dtype(leaf: jax.typing.ArrayLike) -> jnp.dtype:
    """The dtype to compute in: float32 for narrower floats, whose few bits would round a radius
    too, and the leaf's own otherwise."""
    # `jnp.promote_types` refuses two dtypes under `jax_numpy_dtype_promotion="strict"`.
    dtype = jnp.result_type(leaf)
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.dtype(jnp.float32) if narrow else dtype


@functools.partial(jax.jit, inline=True)  # traced once for equal leaves
def difference(params: jax.Array, anchor: jax.Array) -> jax.Array:
    """`W - W0`, in the wide dtype.

    It is taken before `u` is added, because `W` is close to `W0` and their difference is then
    exact. `(W + u) - W0` would first round `u` to the spacing of floats around `W`. Equal
    infinities, such as in attention masks, count as unmoved; their difference would be NaN.
    """
    dtype = wide_dtype(params)
    w, w0 = params.astype(dtype), anchor.astype(dtype)
    return jnp.where(w == w0, 0, w - w0)


def norms(c: jax.Array, tensor: Tensor, norm: str) -> jax.Array:
    """`N(c)`, of each row or of each group.

        mars:  sum over the row of |c|
        l2:    sqrt(sum over the group of c^2)

    The gradient in `c` is finite at `c = 0`, where it is 0.

    Args:
        c: the displacement of a leaf.
        tensor: rows and layers of the leaf.
        norm: "mars" or "l2".
    """
    sums = jnp.sum(norm_terms(c, norm), axis=norm_axes(tensor, norm), keepdims=True)
    return norm_of_sum(sums, norm)


def norm_terms(c: jax.Array, norm: str) -> jax.Array:
    """What is summed in a norm: `|c|` or `c^2`."""
    return jnp.abs(c) if norm == "mars" else c * c


def norm_of_sum(sums: jax.Array, norm: str) -> jax.Array:
    """`N(c)` from a sum of `norm_terms`."""
    if norm == "l2":
        # The slope of the square root at 0 is infinite, and infinity times 0 is NaN.
        moved = sums > 0
        sums = jnp.where(moved, jnp.sqrt(jnp.where(moved, sums, 1.0)), 0.0)
    # Squares overflow from 1e19 in float32, and the ratio of two infinities is NaN.
    return jnp.minimum(sums, jnp.finfo(sums.dtype).max)


def norm_axes(tensor: Tensor, norm: str) -> tuple[int, ...]:
    """Axes along which one norm extends."""
    return tensor.inputs if norm == "mars" else tensor.inputs + tensor.rows


def shrinkage(radius: jax.Array, n: jax.Array) -> jax.Array:
    """`min(1, r / n)`, with the slope of `r / n` at the tie `r == n`.

    The tie is common: a radius that was clipped at its upper bound equals `n` in float32. With a
    slope of 0 (`hardtanh`) or of one half (`jnp.minimum`), a radius that
    reached its bound under the l2 norm could hardly leave it again.
    """
    return jnp.where(radius > n, n, radius) / n


@functools.partial(jax.jit, inline=True)
def scaled_update(
    params: jax.Array, anchor: jax.Array, c: jax.Array, ratio: jax.Array
) -> jax.Array:
    """The update that ends at `W0 + ratio * c`, in the dtype of `params`.

    With a ratio of 1 this equals `u` up to rounding. Returning `u` itself would keep a
    parameter-sized array alive until the norms are known.
    """
    # `u - (1 - ratio) * c` is shorter, but cancels if `u` is much larger than the radius.
    # `W0 - W`, because XLA would keep `W - W0` in memory: `c` was computed from it.
    scaled = difference(anchor.astype(c.dtype), params) + ratio * c
    return scaled.astype(params.dtype)
