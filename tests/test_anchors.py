"""Sources of the anchor: `init`, each `update`, or zeros."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_step, mostly_slow, random_tree
from transforms import loss, numbers, stepper

import tpgm_jax
from tpgm_jax import add_anchor_decay, ftp, project_to_anchor, spd, tpgm

METHODS = {
    "ftp": lambda **kw: ftp(optax.adam(0.1), **kw),
    "ftp compact": lambda **kw: ftp(optax.adam(0.1), memory="compact", **kw),
    "ftp l2": lambda **kw: ftp(optax.adam(0.1), norm="l2", exclude="head/.*", **kw),
    "tpgm": lambda **kw: tpgm(optax.adam(0.1), **kw),
    "spd": lambda **kw: spd(optax.sgd(0.6, momentum=0.9), **kw),
    "project_to_anchor": lambda **kw: optax.chain(optax.sgd(0.1), project_to_anchor(0.5, **kw)),
    "add_anchor_decay": lambda **kw: optax.chain(add_anchor_decay(0.3, **kw), optax.sgd(0.1)),
}
each_method = pytest.mark.parametrize(
    "make", mostly_slow(METHODS, "ftp compact", "ftp l2", "tpgm", "add_anchor_decay")
)


@functools.cache
def transform_and_step(make):
    """A transformation that stores its anchor, and its step, compiled once for all tests."""
    tx = make()
    return tx, jax.jit(stepper(tx), donate_argnums=(0, 1))


def train(tx, params, step=None, **extra):
    step = step or jax.jit(stepper(tx, **extra), donate_argnums=(0, 1))
    params, state = jax.tree.map(jnp.copy, params), tx.init(params)
    for _ in range(5):
        params, state = step(params, state)
    return params, state


@each_method
def test_an_anchor_argument_gives_the_same_result_as_a_stored_anchor(make):
    params = numbers()
    tx, step = transform_and_step(make)
    expected, _ = train(tx, params, step)
    received, state = train(make(anchor="argument"), params, anchor=params)
    # XLA may fold an argument that is not traced into the program as a constant, and then round
    # differently: numbers of order 1, five steps, magnified tenfold by Adam.
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), received, expected
    )
    assert jax.tree.leaves(optax.tree.get(state, "anchor")) == []


@each_method
def test_a_zero_anchor_gives_the_same_result_as_zeros_at_init(make):
    zeros = jax.tree.map(jnp.zeros_like, numbers())
    tx, step = transform_and_step(make)
    expected, _ = train(tx, zeros, step)
    received, state = train(make(anchor="zero"), zeros)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), received, expected
    )
    assert jax.tree.leaves(optax.tree.get(state, "anchor")) == []


def test_a_zero_anchor_measures_from_zero_for_any_params_at_init():
    params = {"kernel": jnp.full((3, 2), 2.0)}
    tx = project_to_anchor(0.3, anchor="zero")
    moved, _ = make_step(tx)(params, tx.init(params), {"kernel": jnp.zeros((3, 2))})
    # A ball of radius 0.3 around zero with three weights per row: each ends at 0.1. The step starts
    # at 2, so the tolerance is two ulps of 2.
    np.testing.assert_allclose(moved["kernel"], 0.1, rtol=0, atol=4.8e-7)


def test_an_anchor_argument_is_matched_by_name_and_may_lack_excluded_leaves():
    params = {"b": jnp.ones(2), "a": jnp.zeros(2), "head": jnp.ones(3)}
    tx = project_to_anchor(0.5, anchor="argument", exclude="head")
    updates, _ = tx.update(
        jax.tree.map(jnp.zeros_like, params),
        tx.init(params),
        params,
        anchor={"a": jnp.zeros(2), "unrelated": jnp.ones(9), "b": jnp.ones(2)},
    )
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), updates)


def test_an_anchor_argument_is_passed_on_to_the_base_optimizer():
    params = random_tree({"kernel": (3, 2)}, 0)
    inner = project_to_anchor(0.1, anchor="argument")
    tx = ftp(optax.chain(optax.sgd(1.0), inner), anchor="argument", initial_radius=10.0)
    updates: Any
    updates, _ = tx.update(params, tx.init(params), params, anchor=params)
    # The inner ball limits a row to a norm of 0.1, which the outer ball does not change.
    np.testing.assert_allclose(np.abs(updates["kernel"]).sum(0), 0.1, rtol=1e-5)


def test_set_anchor_resets_radii_of_a_state_without_an_anchor():
    params = numbers()
    tx = ftp(optax.adam(0.1), anchor="argument")
    _, state = train(tx, params, anchor=params)
    fresh: Any = tpgm_jax.set_anchor(state, params)
    assert fresh.step == 0
    assert set(tpgm_jax.radii(fresh, params).values()) == {0.0}


@pytest.mark.parametrize(
    ("options", "handed", "message"),
    [
        ({"anchor": "argument"}, {}, r"call `update\(grads, state, params, anchor=pretrained\)`"),
        ({}, {"anchor": {"w": jnp.ones((2, 2))}}, "build it with `anchor='argument'`"),
        ({"anchor": "argument"}, {"anchor": {"v": jnp.ones((2, 2))}}, "lacks 'w'"),
        ({"anchor": "argument"}, {"anchor": {"w": jnp.ones(2)}}, r"'w' of shape \(2,\)"),
    ],
)
def test_a_wrong_anchor_raises_an_error_with_the_remedy(options, handed, message):
    params = {"w": jnp.ones((2, 2))}
    for tx in (
        ftp(optax.sgd(0.1), **options),
        spd(optax.sgd(0.1), **options),
        project_to_anchor(0.1, **options),
        add_anchor_decay(0.1, **options),
    ):
        with pytest.raises(ValueError, match=message):
            tx.update(params, tx.init(params), params, **handed)
    tx = tpgm(optax.sgd(0.1), **options)
    with pytest.raises(ValueError, match=message):
        tx.update(params, tx.init(params), params, held_out_loss=loss, **handed)


# An anchor that is exact in bfloat16, as published weights often are. Trained parameters are not
# exact in bfloat16.
HALVES = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), numbers())


@each_method
def test_an_anchor_dtype_that_represents_the_anchor_changes_no_result(make):
    expected, _ = train(make(), HALVES)
    received, state = train(make(anchor_dtype=jnp.bfloat16), HALVES)
    # Bit for bit, because the anchor holds the same numbers and is only read.
    jax.tree.map(np.testing.assert_array_equal, received, expected)
    anchors = jax.tree.leaves(optax.tree.get(state, "anchor"))
    assert {x.dtype for x in anchors} == {jnp.dtype("bfloat16")}


def test_an_anchor_dtype_of_fewer_bits_rounds_params_by_at_most_half_a_spacing():
    params = random_tree({"kernel": (30, 20)}, 0, dtype=jnp.float32)
    tx = ftp(optax.sgd(0.1), anchor_dtype="bfloat16")
    moved, _ = make_step(tx)(params, tx.init(params), params)
    # The first step ends within 1e-8 of the anchor, by row. Rounding to 8 bits changes a number by
    # at most half of 2^-7, and adding the update to the parameters by half of 2^-23.
    rounding = 2**-8 + 2**-24
    np.testing.assert_allclose(moved["kernel"], params["kernel"], rtol=rounding, atol=1e-8)


def test_the_size_of_an_anchor_is_that_of_the_copy_with_fewer_bits():
    # Half-way to the next bfloat16 number, so each weight rounds to 1, and each row of 4 to 4.
    params = {"kernel": jnp.full((4, 2), 1 + 2.0**-8)}
    tx = ftp(optax.sgd(0.1), memory="compact", unit="anchor", anchor_dtype=jnp.bfloat16)
    state: Any = tx.init(params)
    np.testing.assert_array_equal(state.anchor_norms[0], np.full((1, 1, 2), 4.0))
    np.testing.assert_array_equal(state.unit_size, [4.0])


def test_init_measures_params_that_are_python_numbers():
    tx = ftp(optax.sgd(0.1), memory="compact", unit="anchor", anchor="argument")
    state: Any = tx.init({"gain": 2.0})
    np.testing.assert_array_equal(state.anchor_norms[0], [2.0])
    np.testing.assert_array_equal(state.unit_size, [2.0])


def test_inject_hyperparams_accepts_the_name_of_a_dtype():
    params = {"w": jnp.ones(3)}
    factory: Any
    for factory in (ftp, tpgm, spd):
        injected: Any = optax.inject_hyperparams(factory)
        state = injected(optax.sgd(0.1), anchor_dtype="bfloat16").init(params)
        assert optax.tree.get(state, "anchor")["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize("memory", ["full", "compact"])
def test_a_first_step_away_from_the_anchor_leaves_the_radius_moments_at_zero(memory):
    params, anchor = numbers(0), numbers(1)
    tx = ftp(optax.sgd(0.1), memory=memory, anchor="argument")
    state: Any
    _, state = jax.jit(tx.update)(params, tx.init(params), params, anchor=anchor)
    (adam, _) = state.radius_state
    assert not np.any(adam.mu)
    assert not np.any(adam.nu)


def test_the_dtype_of_the_initial_radius_does_not_change_the_dtype_of_the_radii():
    with jax.enable_x64(True):
        params = {"w": jnp.ones(3, jnp.float32)}
        tx = ftp(optax.sgd(0.1), initial_radius=np.float64(0.1))
        state: Any
        _, state = tx.update(params, tx.init(params), params)
        assert state.radii.dtype == jnp.float32


def test_set_anchor_and_abstract_init_keep_the_anchor_dtype():
    tx = ftp(optax.sgd(0.1), anchor_dtype=jnp.bfloat16)
    moved: Any = tpgm_jax.set_anchor(tx.init({"w": jnp.ones(3)}), {"w": jnp.zeros(3)})
    assert moved.anchor["w"].dtype == jnp.bfloat16
    described: Any = {"w": jax.ShapeDtypeStruct((3,), jnp.float32)}
    for init in (tx.init, lambda params: jax.eval_shape(tx.init, params)):
        state: Any = init(described)
        assert state.anchor["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"anchor": "zero", "anchor_dtype": "bfloat16"}, ValueError, "leave `anchor_dtype` out"),
        ({"anchor_dtype": jnp.int8}, TypeError, "must be a real floating-point dtype"),
        ({"anchor_dtype": "half a float"}, TypeError, "must be a real floating-point dtype"),
    ],
)
def test_a_wrong_anchor_dtype_is_refused(options, error, message):
    for make in METHODS.values():
        with pytest.raises(error, match=message):
            make(**options)


def test_an_unknown_source_is_refused():
    untyped: Any = ftp
    with pytest.raises(ValueError, match="`anchor` must be one of 'init', 'argument', 'zero'"):
        untyped(optax.sgd(0.1), anchor="pretrained")
