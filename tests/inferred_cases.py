"""Functions that use parameters, for the tests of `infer_axes`, and how to check one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from tpgm_jax import Axes, infer_axes

V, D, H, K, F, L, E, R = 11, 8, 2, 6, 10, 3, 4, 5  # all different, so that sizes identify axes
X, Y, IDS = (2, 7, D), (2, 7, F), (2, 7)  # data: words, words in hidden units, tokens


def zeros(shapes):
    return {name: jnp.zeros(shape) for name, shape in shapes.items()}


def inferred(fn, shapes, *data):
    """`infer_axes` of `fn(params, *data)` for data of these shapes; ids are ints."""
    arrays = [jax.ShapeDtypeStruct(x, "int32" if x is IDS else "float32") for x in data]
    return infer_axes(fn, zeros(shapes), *arrays)


ROW = ((), ())


class Case(NamedTuple):
    """A function, the shapes of its parameters and of the data, and by hand the rows and layers."""

    fn: Callable[..., Any]
    shapes: dict[str, tuple[int, ...]]
    data: tuple[Any, ...]
    expected: dict[str, Any]


def cases() -> tuple[dict[str, Case], Callable[..., Any]]:
    """Cases by name, and a decorator that adds a function."""
    found: dict[str, Case] = {}

    def case(shapes, *data, **expected):
        def add(fn):
            found[fn.__name__] = Case(fn, shapes, data, expected)
            return fn

        return add

    return found, case


def check(name: str, case: Case, differentiate: bool) -> None:
    """The function, or its loss with the gradient, must give the rows and layers by hand."""
    fn, shapes, data, expected = case
    if differentiate:
        if name.endswith("in_while") or name == "indexed_by_a_loop":
            pytest.skip("reverse mode needs a fixed number of steps")

        def loss(p, *data):
            return sum(jnp.sum(y.astype("float32")) for y in jax.tree.leaves(fn(p, *data)))

        axes = inferred(jax.value_and_grad(loss), shapes, *data)
    else:
        axes = inferred(fn, shapes, *data)
    assert dict(axes) == {name: Axes(*x) for name, x in expected.items()}
    assert axes.notes == {}


def conv(x, w, layout, **options):
    return lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", layout, "NHWC"), **options
    )
