"""The vector of radii: one number for each group, and one step of its optimizer.

Radii are one vector `[G]`, in the order of the leaves and, within a stacked leaf, of its layers.
It is at least float32, because half precision would round away steps of 1e-2 on a radius of 4.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tpgm_jax._core.axes import Layout
from tpgm_jax._core.ball import wide_dtype
from tpgm_jax._core.finite import all_finite, select, stays_finite
from tpgm_jax._core.optimizers import check_optimizer_state

# Lower bound of a radius (0 only if the tensor has not moved). At 0 the projection would lose the
# direction of the displacement.
SMALLEST = 1e-8


def radii_dtype(leaves: Sequence[Any]) -> jnp.dtype:
    """float32, or float64 if a constrained leaf is."""
    dtypes = {jnp.dtype(jnp.float32), *map(wide_dtype, leaves)}
    return max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)


def radii_by_name(radii: jax.typing.ArrayLike, layout: Layout) -> dict[str, float | list[float]]:
    """`[G]` by the names of the tensors: a float, or a list if a tensor stacks layers."""
    numbers, result, start = np.asarray(radii).tolist(), {}, 0
    for tensor in layout.tensors:
        stop = start + tensor.groups
        result[tensor.name] = numbers[start:stop] if tensor.layers else numbers[start]
        start = stop
    return result


def clip(radii: jax.Array, largest: jax.Array) -> jax.Array:
    """Radii between `SMALLEST` and the largest norm of their group's rows.

    Beyond that norm a radius constrains nothing, and would take long to come back.
    """
    return jnp.minimum(jnp.maximum(radii, SMALLEST), largest)


def restart(
    first: jax.Array, optimizer: optax.GradientTransformation, scaled: jax.Array, state: Any
) -> Any:
    """The optimizer's state: at the `first` step a new one for the radii `r / U`."""
    start = optimizer.init(scaled)
    check_optimizer_state(start, state, "radius_optimizer")
    return select(first, start, state)


def descend(
    optimizer: optax.GradientTransformationExtraArgs,
    gradient: jax.Array,
    optimizer_state: optax.OptState,
    radii: jax.Array,
    unit_size: jax.Array,
) -> tuple[jax.Array, optax.OptState, jax.Array]:
    """One step of the radius optimizer on `r / U`, if all its results are finite.

    The square of a finite slope may overflow in a second moment, which would stay infinite and
    stop the radii for good.

    Returns:
        Radii, state of the optimizer, and whether the step was taken.
    """
    # `optax.adam` needs the standard promotion, also if the user has set a stricter one.
    with jax.numpy_dtype_promotion("standard"):
        updates, new_state = optimizer.update(
            unit_size * gradient, optimizer_state, radii / unit_size
        )
    moved = optax.apply_updates(radii, jax.tree.map(lambda x: unit_size * x, updates))
    new, old = (moved, new_state), (radii, optimizer_state)
    taken = all_finite([gradient]) & stays_finite(new, old)
    radii, optimizer_state = select(taken, new, old)
    return radii, optimizer_state, taken
