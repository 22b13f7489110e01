"""The vector of radii: one for each group, start, learn, clip.

Radii live in one vector `[G]`, in the order of the leaves and within a stacked leaf of its
layers. It is float32 at least: half precision would swallow steps of 1e-2 on a radius
of 4. Arithmetic with leaves happens on a list with one array for each constrained leaf,
shaped to broadcast against it.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from tpgm_jax._axes import Layout
from tpgm_jax._checks import with_extra_args
from tpgm_jax._guard import all_finite, stays_finite, where
from tpgm_jax._projection import wide_dtype

# No radius is smaller, but that of a tensor which has not moved at all: at 0 the projection
# would forget the direction of the displacement.
SMALLEST = 1e-8

# The published step size of the radii, in units of the norm.
LEARNING_RATE = 1e-2


def optimizer(given: optax.GradientTransformation | None) -> optax.GradientTransformationExtraArgs:
    """The optimizer of the radii: the one given, or the published one."""
    default = optax.adam(LEARNING_RATE)
    return with_extra_args(default if given is None else given, "radius_optimizer")


def radii_dtype(params: optax.Params, layout: Layout) -> jnp.dtype:
    """float32, or the widest dtype among the constrained leaves where that is wider."""
    pairs = zip(jax.tree.leaves(params), layout.leaves, strict=True)
    return jnp.result_type(jnp.float32, *(wide_dtype(x) for x, t in pairs if t is not None))


def full(layout: Layout, value: jax.typing.ArrayLike, dtype: jnp.dtype) -> jax.Array:
    """`[G]` radii, all of the same `value`."""
    return jnp.full(layout.groups, value, dtype)


def spread(radii: jax.Array, layout: Layout, leaves: Sequence[jax.Array]) -> list[jax.Array]:
    """`[G]` to one array for each leaf, to broadcast against it, in the leaf's wide dtype."""
    arrays, start = [], 0
    for tensor, leaf in zip(layout.tensors, leaves, strict=True):
        radius = radii[start : start + tensor.groups].reshape(tensor.radius_shape)
        radius = radius.astype(wide_dtype(leaf))
        arrays.append(_laid_like(radius, leaf, tensor.layers))
        start += tensor.groups
    return arrays


def gather(arrays: Sequence[jax.Array], layout: Layout, dtype: jnp.dtype) -> jax.Array:
    """One array for each leaf, of its `radius_shape`, to `[G]`: the inverse of `spread`."""
    flat = [
        _laid_like(array, array, ()).reshape(tensor.groups).astype(dtype)
        for array, tensor in zip(arrays, layout.tensors, strict=True)
    ]
    return jnp.concatenate(flat) if flat else jnp.zeros(0, dtype)


def _laid_like(array: jax.Array, leaf: jax.Array, axes: Sequence[int]) -> jax.Array:
    """`array` divided over devices as `leaf` is along `axes`, and replicated along others.

    For meshes of explicit axes, where layers may lie on devices of their own: arrays that
    are divided differently can not be selected from or concatenated. Automatic axes are
    left to the compiler.
    """
    mesh, spec = jax.typeof(leaf).sharding.mesh, jax.typeof(leaf).sharding.spec
    if all(axis is None for axis in spec):
        return array
    wanted = jax.sharding.PartitionSpec(*(x if i in axes else None for i, x in enumerate(spec)))
    return jax.sharding.reshard(array, jax.sharding.NamedSharding(mesh, wanted))


def clip(radii: jax.Array, largest: jax.Array) -> jax.Array:
    """Radii between `SMALLEST` and the largest norm of their group's rows.

    Beyond that norm a radius constrains nothing, and would be slow to come back.
    """
    return jnp.minimum(jnp.maximum(radii, SMALLEST), largest)


def descend(
    optimizer: optax.GradientTransformationExtraArgs,
    gradient: jax.Array,
    optimizer_state: optax.OptState,
    radii: jax.Array,
    unit: jax.Array,
) -> tuple[jax.Array, optax.OptState, jax.Array]:
    """One step of the radii's own optimizer, in `unit`, if all that comes of it is finite.

    The square of a finite slope may overflow in a second moment, which would stay infinite and
    hold the radii where they are for good.

    Returns:
        Radii and state, and whether the step was taken.
    """
    updates, new_state = optimizer.update(unit * gradient, optimizer_state, radii / unit)
    moved = optax.apply_updates(radii, jax.tree.map(lambda x: unit * x, updates))
    new, old = (moved, new_state), (radii, optimizer_state)
    taken = all_finite([gradient]) & stays_finite(new, old)
    radii, optimizer_state = where(taken, new, old)
    return radii, optimizer_state, taken


def where_first(first: jax.Array, fresh: optax.OptState, state: optax.OptState) -> optax.OptState:
    """`fresh` if this is the first update since `init` or `set_anchor`, else `state`."""
    return jax.tree.map(lambda new, old: jnp.where(first, new, old), fresh, state)
