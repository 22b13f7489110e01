"""Arguments that are optimizers: the wrapped one, and the optimizer of the radii."""

from typing import Any

import optax

# The published optimizer of the radii: a step of 1e-2 in units of the norm. It is built once, so
# that JAX finds the programs that it compiled for it.
_PUBLISHED = optax.adam(1e-2)


def with_extra_args(optimizer: Any, argument: str) -> optax.GradientTransformationExtraArgs:
    """`optimizer`, made to accept extra arguments.

    Raises:
        TypeError: it is not an optax transformation.
    """
    if not (callable(getattr(optimizer, "init", None)) and hasattr(optimizer, "update")):
        raise TypeError(
            f"`{argument}` must be an optax transformation, such as `optax.adamw(1e-4)`; "
            f"got {optimizer!r}."
        )
    return optax.with_extra_args_support(optimizer)


def radius_optimizer_or_default(
    optimizer: optax.GradientTransformation | None,
) -> optax.GradientTransformationExtraArgs:
    """The radius optimizer that the user gave, or else the published one."""
    return with_extra_args(_PUBLISHED if optimizer is None else optimizer, "radius_optimizer")
