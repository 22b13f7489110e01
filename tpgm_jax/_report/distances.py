"""How far each group is from its anchor, and how many of its rows are at their radius.

A row that was projected lies at its radius `r`, but for roundings: of the update and of the sum
with it in the dtype of `W`, whose spacing is `eps`; of the norm, a sum of `m` numbers, and some
products in a wider dtype, of `wide_eps`; and the 1e-8 that is added to what divides. Together

    tolerance = eps / 2 * N(W) + (eps + (3 + sqrt(m)) * wide_eps) * r + 1e-8

as the update is not longer than the ways out of and into a ball of radius `r`, and as the roundings
of a sum are up as often as down.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tpgm_jax import _radii
from tpgm_jax._axes import Layout, Tensor
from tpgm_jax._placement import on_device
from tpgm_jax._previous import floors
from tpgm_jax._projection import EPSILON, displacement, measured_axes, norms


class Part(NamedTuple):
    """What one state is about. Static: it holds no arrays.

    Attributes:
        layout: of its leaves.
        norm: "mars" or "l2".
        learned: whether it has radii.
        compact: whether rows are kept a floor away from their anchor.
    """

    layout: Layout
    norm: str
    learned: bool
    compact: bool


class Arrays(NamedTuple):
    """The arrays of a `Part`.

    Attributes:
        radii: `[G]`, or `None`.
        params: the constrained leaves, `W`.
        anchor: those of the anchor, `W0`; `None` for zeros.
    """

    radii: jax.Array | None
    params: list[Any]
    anchor: list[Any]


class Measured(NamedTuple):
    """Numbers of each group, `[G]`.

    Attributes:
        radius: `r`; NaN where there is none.
        distance: `max over rows of N(W - W0)`.
        saturated: the share of rows at their radius.
        tolerance: how far a row may be beyond its radius without anything being wrong.
    """

    radius: np.ndarray
    distance: np.ndarray
    saturated: np.ndarray
    tolerance: np.ndarray


def measured(parts: Sequence[Part], arrays: Sequence[Arrays]) -> list[Measured]:
    """All groups' numbers. They come to the host in one go."""
    numbers = [jnp.zeros((4, 0))]
    for part, (radii, params, anchor) in zip(parts, arrays, strict=True):
        start = 0
        for tensor, w, w0 in zip(part.layout.tensors, params, anchor, strict=True):
            # One program for all tensors of a shape compiles in a tenth of the time of one for the
            # whole model: names and places must not tell them apart.
            how = How(tensor._replace(name=""), part.norm, part.compact)
            numbers.append(_program(_replicated(w))(how, w, w0, radii, start))
            start += tensor.groups
    together = jax.device_get(jnp.concatenate(numbers, axis=1))
    stops = np.cumsum([part.layout.groups for part in parts])[:-1]
    return [Measured(*x) for x in np.split(together, stops, axis=1)]


class How(NamedTuple):
    """How one leaf is measured. Static."""

    tensor: Tensor
    norm: str
    compact: bool


@functools.cache
def _program(out_sharding: jax.sharding.Sharding | None) -> Any:
    return jax.jit(_of_leaf, static_argnums=0, out_shardings=out_sharding)


def _replicated(w: Any) -> jax.sharding.Sharding | None:
    """All numbers on all devices of `w`, so that each process has them."""
    if not isinstance(getattr(w, "sharding", None), jax.sharding.NamedSharding):
        return None
    return jax.sharding.NamedSharding(w.sharding.mesh, jax.sharding.PartitionSpec())


def _of_leaf(how: How, w: Any, w0: Any, radii: jax.Array | None, start: int) -> jax.Array:
    """`[4, groups]`, in the order of `Measured`.

    Args:
        how: static.
        w: the parameters.
        w0: their anchor; `None` for zeros.
        radii: `[G]`; `None` if there are none.
        start: the place of this leaf's in them.
    """
    tensor, norm, compact = how
    w = jnp.asarray(on_device(w))
    w0 = jnp.zeros_like(w) if w0 is None else jnp.asarray(on_device(w0))
    d = displacement(w, w0)
    n = norms(d, tensor, norm)

    alone = Layout((tensor,))
    if radii is None:
        own = _radii.full(alone, jnp.nan, d.dtype)
    else:
        own = jax.lax.dynamic_slice_in_dim(on_device(radii), start, tensor.groups)
    (r,) = _radii.spread(own, alone, [w])
    summed = math.prod(tensor.shape[axis] for axis in measured_axes(tensor, norm))
    eps, wide_eps = (float(jnp.finfo(x.dtype).eps) for x in (w, d))
    relative = eps + (3 + math.sqrt(summed)) * wide_eps
    tolerance = eps / 2 * norms(w.astype(d.dtype), tensor, norm) + relative * r + EPSILON
    # A radius is 0 before the first update, and where nothing has moved.
    saturated = (n >= r - tolerance) & (r > 0)
    if compact:
        tolerance += jnp.maximum(floors(w, w0, tensor, norm) - r, 0)

    share = jnp.mean(saturated.astype(d.dtype), axis=tensor.rows, keepdims=True)
    found = (tensor.largest(n), share, tensor.largest(tolerance))
    return jnp.stack([own, *(_radii.gather([x], alone, d.dtype) for x in found)])
