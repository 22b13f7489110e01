"""What callers get wrong, and what to do about it.

Python numbers are checked where a transformation is built. Under
`optax.inject_hyperparams` they are traced, and nobody can check them.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tpgm_jax._anchor import ANCHORS, empty_shape
from tpgm_jax._axes import Layout
from tpgm_jax._names import by_name, closest, leaf_names
from tpgm_jax._projection import NORMS


def check_optimizer(optimizer: Any, argument: str) -> None:
    if not (callable(getattr(optimizer, "init", None)) and hasattr(optimizer, "update")):
        raise TypeError(
            f"`{argument}` must be an optax transformation, such as `optax.adamw(1e-4)`; "
            f"got {optimizer!r}."
        )


def check_norm(norm: Any) -> None:
    check_choice(norm, NORMS, "norm")


def check_choice(value: Any, choices: tuple[str, ...], argument: str) -> None:
    if value not in choices:
        expected = ", ".join(map(repr, choices))
        raise ValueError(f"`{argument}` must be one of {expected}; got {value!r}.")


def check_anchor(value: Any, dtype: Any) -> None:
    check_choice(value, ANCHORS, "anchor")
    if dtype is None:
        return
    if value != "init":
        raise ValueError(
            f"`anchor_dtype` is that of the copy in the state, and `anchor={value!r}` keeps none: "
            "leave it out."
        )
    try:
        floating = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise TypeError(
            "`anchor_dtype` must be a real floating-point dtype, such as `jnp.bfloat16`; "
            f"got {dtype!r}."
        )


def check_unit(value: Any, anchor: str = "init") -> None:
    check_choice(value, ("norm", "anchor"), "unit")
    if value == "anchor" and anchor == "zero":
        raise ValueError(
            "`unit='anchor'` measures radii by the size of the anchor, and that of `anchor='zero'` "
            "is zero: leave `unit` out."
        )


def check_positive(value: Any, argument: str, schedule: bool = False) -> None:
    _check_number(value, argument, schedule)
    # Written so that NaN fails too.
    if isinstance(value, int | float) and not value > 0:
        raise ValueError(f"`{argument}` must be positive; got {value}.")


def check_not_negative(value: Any, argument: str, schedule: bool = False) -> None:
    _check_number(value, argument, schedule)
    if isinstance(value, int | float) and not 0 <= value < math.inf:
        raise ValueError(f"`{argument}` must be finite, and 0 or more; got {value}.")


def check_fraction(value: Any, argument: str, schedule: bool = False) -> None:
    _check_number(value, argument, schedule)
    if isinstance(value, int | float) and not 0 <= value <= 1:
        raise ValueError(f"`{argument}` must lie between 0 and 1; got {value}.")


def check_count(value: Any, argument: str) -> None:
    _check_number(value, argument, schedule=False)
    if isinstance(value, float) or (isinstance(value, int) and value < 1):
        raise ValueError(f"`{argument}` must be a whole number, 1 or more; got {value!r}.")


def _check_number(value: Any, argument: str, schedule: bool) -> None:
    if callable(value) and not schedule:
        raise TypeError(
            f"`{argument}` must be a number; got a function. To schedule it, build the "
            "transformation through `optax.inject_hyperparams`."
        )
    if not callable(value) and not isinstance(value, int | float) and not hasattr(value, "dtype"):
        raise TypeError(f"`{argument}` must be a number; got {value!r}.")


def check_params(params: Any, caller: str) -> Any:
    if params is None:
        raise ValueError(
            f"`{caller}` measures how far the parameters have moved, so it needs them: call "
            "`update(updates, state, params)`."
        )
    return params


def check_trees(
    updates: Any, params: Any, state: Any, layout: Layout, caller: str, **kept: bool
) -> None:
    """Gradients, parameters and state must be of the same model.

    Args:
        updates: the gradients.
        params: the parameters.
        state: one of ours.
        layout: of the leaves.
        caller: the transformation's name, for the error.
        kept: for each field of the state that is shaped like the parameters, whether this
            transformation keeps its numbers. The names of its leaves it keeps in any case.
    """
    check_same_shapes(params, updates, "gradients", caller)
    if jax.tree.structure(updates) != jax.tree.structure(params):
        raise ValueError(
            f"`{caller}` got gradients and parameters with the same leaves in different "
            f"containers (at the root {type(updates).__name__} and {type(params).__name__}): "
            "pass `jax.grad` the tree that you pass to `update`."
        )
    remedy = (
        "The state is of another model, or of other `exclude`, `axes`, `anchor`, `memory` or "
        "`importance`: call `init` with these parameters, or load the matching checkpoint."
    )
    names = leaf_names(params)
    for field, whole in kept.items():
        tree = getattr(state, field)
        if leaf_names(tree) != names:
            known = set(leaf_names(tree))
            first = next((name for name in names if name not in known), "the order of the leaves")
            raise ValueError(
                f"`{caller}` got parameters unlike its {field}, in {first!r}. {remedy}"
            )
        for name, leaf, array, tensor in zip(
            names, jax.tree.leaves(params), jax.tree.leaves(tree), layout.leaves, strict=True
        ):
            empty = tensor is None or not whole
            expected = empty_shape(jnp.ndim(leaf)) if empty else jnp.shape(leaf)
            if jnp.shape(array) != expected:
                raise ValueError(
                    f"`{caller}` got {name!r} of shape {jnp.shape(leaf)}, but its {field} has "
                    f"shape {jnp.shape(array)}, where {expected} is expected. {remedy}"
                )
    if hasattr(state, "radii") and jnp.shape(state.radii) != (layout.groups,):
        raise ValueError(
            f"`{caller}` constrains {layout.groups} groups, but the state has radii of shape "
            f"{jnp.shape(state.radii)}. {remedy}"
        )


def check_same_shapes(params: Any, other: Any, what: str, caller: str) -> None:
    """`other` must have the leaves of `params`, in the same shapes."""
    ours, theirs = by_name(params), by_name(other)
    for name in [*ours, *theirs]:
        if name not in ours or name not in theirs:
            lacking, tree = (what, theirs) if name in ours else ("parameters", ours)
            raise ValueError(
                f"`{caller}` got {what} and parameters that differ: {name!r} is missing from the "
                f"{lacking} (closest there: {closest(name, tree) or 'none'}). Pass trees of the "
                "same model."
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
