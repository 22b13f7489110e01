"""What FTP knows of its previous projection: the displacement `c` that it scaled.

The hyper-gradient needs the direction of `c`, row by row. Either `c` is kept from step to step,
or it is recovered from the parameters: the projection only rescales rows, so that `W - W0`
points where `c` did. But a row within a tiny radius of its anchor is lost among the roundings
of `W`. The compact way therefore pulls no row nearer to the anchor than

    floor = M * eps * N(W0)

of the same units as the radii, with `eps` that of the dtype of `W`, and `M` large enough for
eight bits of the direction. The next step scales a row that was left at its floor back to
where its radius wanted it, and the radii never hear of floors. A row that is nearer by itself, as
no update moves it on, is not lifted: nobody would know how far to put it back.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tpgm_jax._axes import Layout, Tensor
from tpgm_jax._projection import EPSILON, displacement, norms, wide_dtype

MEMORY = ("full", "compact")


class Previous(NamedTuple):
    """The previous projection, one entry for each constrained leaf.

    Attributes:
        c: the displacement that it scaled; "compact" knows it up to a factor for each row.
        n: the norms of `c`, positive.
        start: `W - W0` as that projection wanted it.
        floor: the least norm of a row that is stored. "full": zero.
    """

    c: list[jax.Array]
    n: list[jax.Array]
    start: list[jax.Array]
    floor: list[jax.Array]


def kept(
    displacements: list[jax.Array],
    params: list[jax.Array],
    anchor: list[jax.Array],
    layout: Layout,
    norm: str,
) -> Previous:
    """From the displacements in the state."""
    c = [x.astype(wide_dtype(x)) for x in displacements]
    n = [norms(*leaf, norm) + EPSILON for leaf in zip(c, layout.tensors, strict=True)]
    start = [displacement(*leaf) for leaf in zip(params, anchor, strict=True)]
    return Previous(c, n, start, [jnp.zeros_like(x) for x in n])


def recovered(
    params: list[jax.Array],
    anchor: list[jax.Array],
    radii: list[jax.Array],
    first: jax.Array,
    layout: Layout,
    norm: str,
) -> Previous:
    """From the parameters.

    Args:
        params: `W`.
        anchor: `W0`.
        radii: those of the previous projection, to broadcast against the leaves.
        first: whether there was none.
        layout: of the leaves.
        norm: "mars" or "l2".
    """
    d = [displacement(*leaf) for leaf in zip(params, anchor, strict=True)]
    floor, n, start = [], [], []
    for w, w0, d_i, r, tensor in zip(params, anchor, d, radii, layout.tensors, strict=True):
        least = floors(w, w0, tensor, norm)
        size = norms(d_i, tensor, norm)
        # Where it has not moved, a row's slope is 0 whatever divides it.
        size = jnp.where(size > 0, size, 1.0)
        lifted = ~first & (r < least)
        floor.append(least)
        n.append(size)
        start.append(jnp.where(lifted, jnp.minimum(1.0, r / size), 1.0) * d_i)
    return Previous(d, n, start, floor)


def floors(w: jax.Array, w0: jax.Array, tensor: Tensor, norm: str) -> jax.Array:
    """The least norms at which rows of one leaf are stored, shaped like its norms."""
    return norms(w0.astype(wide_dtype(w)), tensor, norm) * _margin(w.dtype)


def _margin(dtype: jnp.dtype) -> float:
    """`M * eps`: 2^-15 of a row's own size in float32. Half precision has no bits to spare."""
    eps = float(jnp.finfo(dtype).eps)
    return eps if jnp.finfo(dtype).bits < 32 else 256 * eps
