"""What callers get wrong, and what to do about it.

Python numbers are checked where a transformation is built. Under
`optax.inject_hyperparams` they are traced, and nobody can check them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from tpgm_jax._axes import Layout
from tpgm_jax._names import by_name, closest
from tpgm_jax._projection import NORMS


def check_optimizer(optimizer: Any, argument: str) -> None:
    if not (callable(getattr(optimizer, "init", None)) and hasattr(optimizer, "update")):
        raise TypeError(
            f"`{argument}` must be an optax transformation, such as `optax.adamw(1e-4)`; "
            f"got {optimizer!r}."
        )


def check_norm(norm: Any) -> None:
    if norm not in NORMS:
        raise ValueError(f"`norm` must be one of {', '.join(map(repr, NORMS))}; got {norm!r}.")


def check_positive(value: Any, argument: str) -> None:
    # Written so that NaN fails too.
    if isinstance(value, int | float) and not value > 0:
        raise ValueError(f"`{argument}` must be positive; got {value}.")


def check_fraction(value: Any, argument: str) -> None:
    if isinstance(value, int | float) and not 0 <= value <= 1:
        raise ValueError(f"`{argument}` must lie between 0 and 1; got {value}.")


def check_count(value: Any, argument: str) -> None:
    if isinstance(value, float) or (isinstance(value, int) and value < 1):
        raise ValueError(f"`{argument}` must be a whole number, 1 or more; got {value!r}.")


def check_params(params: Any, caller: str) -> Any:
    if params is None:
        raise ValueError(
            f"`{caller}` measures how far the parameters have moved, so it needs them: call "
            "`update(updates, state, params)`."
        )
    return params


def check_trees(updates: Any, params: Any, anchor: Any, layout: Layout, caller: str) -> None:
    """Gradients, parameters and anchor must be of the same model."""
    check_same_shapes(params, updates, "gradients", caller)
    if jax.tree.structure(updates) != jax.tree.structure(params):
        raise ValueError(
            f"`{caller}` got gradients and parameters with the same leaves in different "
            f"containers, {type(updates).__name__} and {type(params).__name__}: pass "
            "`jax.grad` the tree that you pass to `update`."
        )
    shapes = {name: jnp.shape(leaf) for name, leaf in by_name(anchor).items()}
    for tensor in layout.tensors:
        if shapes.get(tensor.name) != tensor.shape:
            raise ValueError(
                f"`{caller}` got {tensor.name!r} of shape {tensor.shape}, but its anchor has "
                f"shape {shapes.get(tensor.name)}: the state is of another model or of other "
                "`exclude`. Call `init` with these parameters, or load the matching checkpoint."
            )


def check_same_shapes(params: Any, other: Any, what: str, caller: str) -> None:
    """`other` must have the leaves of `params`, in the same shapes."""
    ours, theirs = by_name(params), by_name(other)
    for name in [*ours, *theirs]:
        if name not in ours or name not in theirs:
            lacking, having = (what, ours) if name in ours else ("parameters", theirs)
            missing_from = theirs if having is ours else ours
            raise ValueError(
                f"`{caller}` got {what} and parameters that differ, first at {name!r}: the "
                f"{lacking} lack it (closest: {closest(name, missing_from) or 'none'}). Pass "
                "trees of the same model."
            )
        if jnp.shape(ours[name]) != jnp.shape(theirs[name]):
            raise ValueError(
                f"`{caller}` got {what} and parameters that differ at {name!r}: their shapes "
                f"are {jnp.shape(theirs[name])} and {jnp.shape(ours[name])}. Pass trees of "
                "the same model."
            )


def with_extra_args(optimizer: Any, argument: str) -> optax.GradientTransformationExtraArgs:
    """`optimizer`, checked, and willing to be handed extra arguments."""
    check_optimizer(optimizer, argument)
    return optax.with_extra_args_support(optimizer)
