"""Interpolation between the anchor and the fine-tuned parameters: WiSE-FT."""

from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_tree
from flax import nnx

import tpgm_jax

# Untyped, because a type checker rejects the wrong arguments of the error tests.
interpolate: Any = tpgm_jax.interpolate

SHAPES = {"gain": (), "body": (3, 2), "head": (2, 2)}
PARAMS = {"w": jnp.ones((3, 2)), "v": jnp.ones(2)}


def trees(dtype=None):
    """An anchor and fine-tuned parameters."""
    return [random_tree(SHAPES, seed, dtype=dtype) for seed in (0, 1)]


def test_interpolation_goes_a_fraction_of_the_way():
    anchor, params = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([5.0, 1.0])}
    np.testing.assert_array_equal(interpolate(params, anchor, 0.25)["w"], [2.0, 1.75])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_ends_are_the_anchor_and_the_parameters_bit_for_bit(dtype, compiled):
    numbers = [0.1, 1e30, -0.0, 0.0, np.nan, np.inf, 3.3]
    anchor, params = {"w": jnp.array(numbers, dtype)}, {"w": jnp.array(numbers[::-1], dtype)}
    mix = jax.jit(interpolate) if compiled else interpolate
    for alpha, end in ((0.0, anchor), (1.0, params), (0, anchor), (1, params)):
        received = mix(params, anchor, alpha)
        assert np.asarray(received["w"]).tobytes() == np.asarray(end["w"]).tobytes()


def test_parameters_that_have_not_moved_stay_bit_for_bit():
    numbers = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    numbers[:6] = -0.0, 0.0, np.inf, -np.inf, 3.4e38, -1e-45
    anchor = {"w": jnp.asarray(numbers)}
    for alpha in (0.1, 0.3, 0.7):
        mixed = interpolate(jax.tree.map(jnp.copy, anchor), anchor, alpha)
        assert np.asarray(mixed["w"]).tobytes() == numbers.tobytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_difference_that_overflows_does_not_make_the_result_infinite(dtype):
    # `largest` is exact in each dtype, and so are its fractions.
    largest = 2.0 ** (15 if dtype == "float16" else 127)
    anchor, params = jnp.full(2, -largest, dtype), jnp.array([largest, largest / 2], dtype)
    for alpha in (0.25, 0.5, 0.75):
        exact = largest * np.array([2 * alpha - 1, 1.5 * alpha - 1])
        np.testing.assert_array_equal(np.float64(interpolate(params, anchor, alpha)), exact)


def test_half_precision_is_interpolated_in_float32():
    anchor, params = trees(dtype=jnp.bfloat16)
    mixed = interpolate(params, anchor, 0.3)
    for name, received in mixed.items():
        assert received.dtype == jnp.bfloat16
        w0, w = (np.asarray(x[name], np.float64) for x in (anchor, params))
        # Half a spacing of bfloat16, 2^-8 of the number, and a little for the float32 computation.
        np.testing.assert_allclose(
            np.asarray(received, np.float64), 0.7 * w0 + 0.3 * w, rtol=1.01 / 2**8, atol=1e-6
        )


def test_dtypes_and_leaves_that_are_not_floats_come_from_the_params():
    key = jax.random.key(1)
    anchor = {"w": jnp.zeros(2), "steps": jnp.array(1), "key": jax.random.key(0), "flag": True}
    params = {"w": jnp.ones(2, jnp.bfloat16), "steps": jnp.array(9), "key": key, "flag": False}
    mixed = interpolate(params, anchor, 0.5)
    np.testing.assert_array_equal(mixed["w"], jnp.full(2, 0.5, jnp.bfloat16))
    assert mixed["w"].dtype == jnp.bfloat16
    assert (mixed["steps"], mixed["flag"]) == (9, False)
    assert mixed["key"] == key


def test_leaves_are_matched_by_name_and_containers_come_from_the_params():
    anchor, params = trees()
    expected = interpolate(params, anchor, 0.5)
    others = OrderedDict(reversed(list(anchor.items())))
    model = nnx.Dict({name: nnx.Param(x) for name, x in params.items()})
    mixed = interpolate(nnx.state(model), others, 0.5)
    assert jax.tree.structure(mixed) == jax.tree.structure(nnx.state(model))
    for name, x in expected.items():
        np.testing.assert_array_equal(mixed[name].get_value(), x)


def test_an_excluded_head_comes_from_the_params():
    anchor, params = trees()
    body = {name: x for name, x in anchor.items() if name != "head"}
    for start in (body, {**body, "head": jnp.ones(9)}):
        mixed = interpolate(params, start, 0.5, exclude="head")
        np.testing.assert_array_equal(mixed["head"], params["head"])
        np.testing.assert_array_equal(mixed["body"], interpolate(params, anchor, 0.5)["body"])


def test_many_alphas_compile_once_and_vmap():
    anchor, params = trees()
    traces = []

    @jax.jit
    def mix(alpha):
        traces.append(1)
        return interpolate(params, anchor, alpha)

    alphas = jnp.linspace(0, 1, 5)
    several = jax.vmap(interpolate, in_axes=(None, None, 0))(params, anchor, alphas)
    for i, alpha in enumerate(alphas):
        # An ulp or two of numbers up to 4, because a compiled program may fuse operations.
        for name, expected in mix(alpha).items():
            np.testing.assert_allclose(several[name][i], expected, rtol=0, atol=2 * 4.8e-7)
    assert len(traces) == 1


ERRORS = {
    "alpha beyond 1": (lambda: interpolate(PARAMS, PARAMS, 1.5), ValueError, "between 0 and 1"),
    "alpha not a number": (
        lambda: interpolate(PARAMS, PARAMS, float("nan")),
        ValueError,
        "between 0 and 1",
    ),
    "alpha a tree": (lambda: interpolate(PARAMS, PARAMS, {}), TypeError, "must be a number; got"),
    "several alphas": (
        lambda: interpolate(PARAMS, PARAMS, jnp.ones(3)),
        ValueError,
        r"shape \(3,\). .* use `jax.vmap",
    ),
    "anchor lacks a leaf": (
        lambda: interpolate(PARAMS, {"w": PARAMS["w"]}, 0.5),
        ValueError,
        "'v' is missing from the anchor",
    ),
    "anchor of another shape": (
        lambda: interpolate(PARAMS, {**PARAMS, "v": jnp.ones(3)}, 0.5),
        ValueError,
        "differ at 'v'.*Pass trees of the same model",
    ),
    "exclude matches nothing": (
        lambda: interpolate(PARAMS, PARAMS, 0.5, exclude="u"),
        ValueError,
        "matches no parameter",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_bad_input_raises_an_error_with_the_remedy(call, error, message):
    with pytest.raises(error, match=message):
        call()
