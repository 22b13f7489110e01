"""How far each group is from its anchor, and how many of its rows are at their radius.

A projected row is at its radius `r` up to rounding: of the update and of its sum with the
parameters in the dtype of `W`, with spacing `eps`; of the norm, a sum of `m` numbers, and of some
products, in a wider dtype with spacing `wide_eps`; and of the 1e-8 that is added to what divides.
Together

    tolerance = eps / 2 * N(W) + (eps + (3 + sqrt(m)) * wide_eps) * r + 1e-8

because the update is at most `2 r` long, and rounding errors in a sum of `m` terms grow like
`sqrt(m)`.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tpgm_jax._core.axes import Layout, Tensor
from tpgm_jax._core.ball import EPSILON, displacement, norm_axes, norms
from tpgm_jax._core.displacement import row_floors
from tpgm_jax._core.placement import to_device
from tpgm_jax._core.spec import Spec
from tpgm_jax._core.stacks import gather, make_kinds, spread


class Arrays(NamedTuple):
    """The arrays of one of our states that are measured.

    Attributes:
        spec: of the state.
        radii: `[G]`, or `None`.
        params: the constrained leaves, `W`.
        anchor: their anchors, `W0`; `None` for zeros.
    """

    spec: Spec
    radii: jax.Array | None
    params: Sequence[Any]
    anchor: Sequence[Any]


class Distances(NamedTuple):
    """Numbers of each group, `[G]`.

    Attributes:
        radius: `r`; NaN if there is none.
        distance: `max over rows of N(W - W0)`.
        saturated: the share of rows at their radius.
        tolerance: how far a row may be beyond its radius because of rounding.
    """

    radius: np.ndarray
    distance: np.ndarray
    saturated: np.ndarray
    tolerance: np.ndarray


def measure(states: Sequence[Arrays]) -> list[Distances]:
    """The numbers of all groups of each state. They come to the host in one transfer."""
    numbers = [jnp.zeros((4, 0))]
    for spec, radii, params, anchor in states:
        start, compact = 0, spec.memory == "compact"
        for tensor, w, w0 in zip(spec.layout.tensors, params, anchor, strict=True):
            # One program for all tensors of a shape compiles in a tenth of the time of one for the
            # whole model, so names and places are not static.
            how = How(tensor._replace(name=""), spec.norm, compact)
            numbers.append(_program(_replicated_over(w))(how, w, w0, radii, start))
            start += tensor.groups
    together = jax.device_get(jnp.concatenate(numbers, axis=1))
    stops = np.cumsum([state.spec.layout.groups for state in states])[:-1]
    return [Distances(*x) for x in np.split(together, stops, axis=1)]


class How(NamedTuple):
    """How one leaf is measured. Static."""

    tensor: Tensor
    norm: str
    compact: bool


@functools.cache
def _program(out_sharding: jax.sharding.Sharding | None) -> Any:
    return jax.jit(_measure_leaf, static_argnums=0, out_shardings=out_sharding)


def _replicated_over(w: Any) -> jax.sharding.Sharding | None:
    """A sharding that puts all numbers on all devices of `w`, so that each process has them."""
    if not isinstance(getattr(w, "sharding", None), jax.sharding.NamedSharding):
        return None
    return jax.sharding.NamedSharding(w.sharding.mesh, jax.sharding.PartitionSpec())


def _measure_leaf(how: How, w: Any, w0: Any, radii: jax.Array | None, start: int) -> jax.Array:
    """`[4, groups]`, in the order of `Distances`.

    Args:
        how: static.
        w: the parameters.
        w0: their anchor; `None` for zeros.
        radii: `[G]`; `None` if there are none.
        start: the index of this leaf's first radius.
    """
    tensor, norm, compact = how
    w = jnp.asarray(to_device(w))
    w0 = jnp.zeros_like(w) if w0 is None else jnp.asarray(to_device(w0))
    d = displacement(w, w0)
    n = norms(d, tensor, norm)

    layout = Layout((tensor,))
    if radii is None:
        own = jnp.full(layout.groups, jnp.nan, d.dtype)
    else:
        own = jax.lax.dynamic_slice_in_dim(to_device(radii), start, tensor.groups)
    (kind,) = make_kinds(layout, [w])
    r = spread(own, [kind], [w])[0][0]
    terms = math.prod(tensor.shape[axis] for axis in norm_axes(tensor, norm))
    eps, wide_eps = (float(jnp.finfo(x.dtype).eps) for x in (w, d))
    relative = eps + (3 + math.sqrt(terms)) * wide_eps
    tolerance = eps / 2 * norms(w.astype(d.dtype), tensor, norm) + relative * r + EPSILON
    # A radius is 0 before the first update, and if nothing has moved.
    saturated = (n >= r - tolerance) & (r > 0)
    if compact:
        tolerance += jnp.maximum(row_floors(w, w0, tensor, norm) - r, 0)

    def farthest(x: jax.Array) -> jax.Array:
        return jnp.max(x, axis=tensor.rows, keepdims=True)

    share = jnp.mean(saturated.astype(d.dtype), axis=tensor.rows, keepdims=True)
    columns = (farthest(n), share, farthest(tolerance))
    return jnp.stack([own, *(gather([x[None]], [kind], d.dtype) for x in columns)])
