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
from jax.core import Tracer

Norm = Literal["mars", "l2"]
Unit = Literal["norm", "anchor"]
Memory = Literal["full", "compact"]
AnchorSource = Literal["init", "argument", "zero"]

LARGEST = float(np.finfo(np.float32).max)


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
