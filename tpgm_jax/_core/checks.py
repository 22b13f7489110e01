"""Checks of the factories' arguments.

Python, NumPy and JAX numbers are checked where a transformation is built. Traced numbers, as
under `optax.inject_hyperparams`, cannot be checked.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

Norm = Literal["mars", "l2"]
Unit = Literal["norm", "anchor"]
Memory = Literal["full", "compact"]
AnchorSource = Literal["init", "argument", "zero"]

# The published optimizer of the radii: a step of 1e-2 in units of the norm. It is built once, so
# that JAX finds the programs that it compiled for it.
_PUBLISHED = optax.adam(1e-2)
LARGEST = float(np.finfo(np.float32).max)


def with_extra_args(optimizer: Any, argument: str) -> optax.GradientTransformationExtraArgs:
    """`optimizer`, made to accept extra arguments."""
    if not (callable(getattr(optimizer, "init", None)) and hasattr(optimizer, "update")):
        got = repr(optimizer)
        if len(got) > 80:  # such as a whole model
            got = f"an object of type {type(optimizer).__name__}"
        raise TypeError(
            f"`{argument}` must be an optax transformation, such as `optax.adamw(1e-4)`; got {got}."
        )
    return optax.with_extra_args_support(optimizer)


def radius_optimizer_or_default(optimizer: Any) -> optax.GradientTransformationExtraArgs:
    """The radius optimizer that the user gave, or else the published one."""
    return with_extra_args(_PUBLISHED if optimizer is None else optimizer, "radius_optimizer")


def init_base(
    base: optax.GradientTransformation, params: optax.Params, caller: str
) -> optax.OptState:
    """The state of the base optimizer, if the projection can keep what users evaluate in the ball.

    Raises:
        ValueError: the base optimizer evaluates other weights than it returns, or returns weights
            only to probe the loss there.
    """
    state = base.init(params)
    if optax.tree.get_all_with_path(state, "ScheduleFreeState"):
        raise ValueError(
            f"`{caller}` cannot wrap `optax.contrib.schedule_free`, because `{caller}` constrains "
            "the weights at which gradients are taken, and `schedule_free_eval_params` computes "
            "others from them: use its base optimizer with a schedule, such as "
            f"`{caller}(optax.adamw(optax.cosine_decay_schedule(1e-4, steps)))`."
        )
    # In opaque mode SAM probes inside one update, and has no cache.
    if any(sam.cache is not None for _, sam in optax.tree.get_all_with_path(state, "SAMState")):
        raise ValueError(
            f"`{caller}` cannot wrap `optax.contrib.sam` as it is, because it returns steps uphill "
            "that only probe the loss: pass `opaque_mode=True` to `sam`, and `grad_fn` to `update`."
        )
    return state


def check_optimizer_state(expected: Any, received: Any, argument: str) -> None:
    """Raises if a state does not have the structure of the state that the optimizer makes."""
    if jax.tree.structure(received) != jax.tree.structure(expected):
        raise ValueError(
            f"the state was made with another `{argument}`, because its structure is "
            f"{jax.tree.structure(received)}, where {jax.tree.structure(expected)} is expected: "
            "build the transformation with the optimizer of the checkpoint, or call `init` again."
        )


def check_choice(value: Any, choices: Any, argument: str) -> None:
    """`value` must be one of a `Literal` type's `choices`."""
    if value not in get_args(choices):
        expected = ", ".join(map(repr, get_args(choices)))
        raise ValueError(f"`{argument}` must be one of {expected}; got {value!r}.")


def check_anchor_dtype(dtype: Any, anchor: str) -> None:
    if dtype is None:
        return
    if anchor != "init":
        raise ValueError(
            "`anchor_dtype` is the dtype of the copy in the state, and the state has no copy "
            f"because of `anchor={anchor!r}`: leave `anchor_dtype` out."
        )
    try:
        # `jnp.dtype` accepts an array, and returns its dtype.
        is_array = isinstance(dtype, np.ndarray | jax.Array)
        floating = not is_array and jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise TypeError(
            "`anchor_dtype` must be a real floating-point dtype, such as `jnp.bfloat16`; "
            f"got {dtype!r}."
        )


def check_unit(unit: str, anchor: str) -> None:
    if unit == "anchor" and anchor == "zero":
        raise ValueError(
            "`unit='anchor'` measures radii by the size of the anchor, and `anchor='zero'` has the "
            "size 0: leave `unit` out."
        )


def check_positive(value: Any, argument: str, schedule: bool = False) -> None:
    # `not >` also refuses NaN.
    _check_number(value, argument, schedule, lambda x: x > 0, "positive")


def check_not_negative(value: Any, argument: str, schedule: bool = False) -> None:
    _check_number(value, argument, schedule, lambda x: 0 <= x < math.inf, "finite, and 0 or more")


def check_fraction(value: Any, argument: str, schedule: bool = False) -> None:
    _check_number(value, argument, schedule, lambda x: 0 <= x <= 1, "between 0 and 1")


def number_at(
    value: Any, step: jax.typing.ArrayLike, argument: str, largest: float = LARGEST
) -> jax.typing.ArrayLike:
    """A number as it is, or the value of a schedule at `step`, between 0 and `largest`.

    A concrete value out of range raises. A traced one cannot be checked, and is clipped.
    """
    if not callable(value):
        return value
    now: Any = value(step)
    expected = "between 0 and 1" if largest == 1 else "finite, and 0 or more"
    where = "step" if isinstance(step, Tracer) else step
    _check_number(now, f"{argument}({where})", False, lambda x: 0 <= x <= largest, expected)
    return jnp.clip(now, 0, largest)


def check_count(value: Any, argument: str) -> None:
    whole = "a whole number, 1 or more"
    _check_number(value, argument, False, lambda x: x % 1 == 0 and x >= 1, whole)
    if not jnp.issubdtype(jnp.result_type(value), jnp.integer):
        raise ValueError(f"`{argument}` must be {whole}; got {value!r}.")


def _check_number(
    value: Any, argument: str, schedule: bool, holds: Callable[[float], bool], expected: str
) -> None:
    if schedule and callable(value):
        return
    if callable(value):
        raise TypeError(
            f"`{argument}` must be a number; got a function. To schedule it, build the "
            "transformation through `optax.inject_hyperparams`."
        )
    known = isinstance(value, int | float | np.generic | np.ndarray | jax.Array)
    kinds = (jnp.floating, jnp.integer, jnp.bool_)
    dtype = getattr(value, "dtype", jnp.float32)
    if not known or not any(jnp.issubdtype(dtype, kind) for kind in kinds):
        raise TypeError(f"`{argument}` must be a number; got {value!r}.")
    if np.ndim(value) > 0:
        raise ValueError(
            f"`{argument}` must be one number; got an array of shape {np.shape(value)}."
        )
    if not isinstance(value, Tracer) and not holds(float(value)):
        raise ValueError(f"`{argument}` must be {expected}; got {value}.")
