"""Where the anchor comes from: `init`, each `update`, or zeros."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_step, random_tree
from transforms import loss, numbers, stepper

import tpgm_jax
from tpgm_jax import ftp, project_to_anchor, tpgm

METHODS = {
    "ftp": lambda **kw: ftp(optax.adam(0.1), **kw),
    "ftp compact": lambda **kw: ftp(optax.adam(0.1), memory="compact", **kw),
    "ftp l2": lambda **kw: ftp(optax.adam(0.1), norm="l2", exclude="head/.*", **kw),
    "tpgm": lambda **kw: tpgm(optax.adam(0.1), **kw),
    "project_to_anchor": lambda **kw: optax.chain(optax.sgd(0.1), project_to_anchor(0.5, **kw)),
}
each_method = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)


def trained(tx, params, **extra):
    step = jax.jit(stepper(tx, **extra), donate_argnums=(0, 1))
    params, state = jax.tree.map(jnp.copy, params), tx.init(params)
    for _ in range(5):
        params, state = step(params, state)
    return params, state


@each_method
def test_an_anchor_handed_in_gives_what_a_held_one_gives(make):
    params = numbers()
    expected, _ = trained(make(), params)
    received, state = trained(make(anchor="argument"), params, anchor=params)
    # An argument that is not traced may be folded into the program, which then rounds once
    # or twice otherwise: numbers of order 1, five steps, and Adam's tenfold.
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), received, expected
    )
    assert jax.tree.leaves(optax.tree.get(state, "anchor")) == []


@each_method
def test_a_zero_anchor_gives_what_zeros_at_init_give(make):
    zeros = jax.tree.map(jnp.zeros_like, numbers())
    expected, _ = trained(make(), zeros)
    received, state = trained(make(anchor="zero"), zeros)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), received, expected
    )
    assert jax.tree.leaves(optax.tree.get(state, "anchor")) == []


def test_a_zero_anchor_measures_from_zero_wherever_init_is():
    params = {"kernel": jnp.full((3, 2), 2.0)}
    tx = project_to_anchor(0.3, anchor="zero")
    moved, _ = make_step(tx)(params, tx.init(params), {"kernel": jnp.zeros((3, 2))})
    # A ball of radius 0.3 around zero, three weights to a row; from 2, so ulps of 2.
    np.testing.assert_allclose(moved["kernel"], 0.1, rtol=0, atol=4.8e-7)


def test_an_anchor_handed_in_is_matched_by_name_and_may_lack_what_is_excluded():
    params = {"b": jnp.ones(2), "a": jnp.zeros(2), "head": jnp.ones(3)}
    tx = project_to_anchor(0.5, anchor="argument", exclude="head")
    updates, _ = tx.update(
        jax.tree.map(jnp.zeros_like, params),
        tx.init(params),
        params,
        anchor={"a": jnp.zeros(2), "unrelated": jnp.ones(9), "b": jnp.ones(2)},
    )
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), updates)


def test_every_wrapped_optimizer_is_handed_the_anchor_too():
    params = random_tree({"kernel": (3, 2)}, 0)
    inner = project_to_anchor(0.1, anchor="argument")
    tx = ftp(optax.chain(optax.sgd(1.0), inner), anchor="argument", initial_radius=10.0)
    updates: Any
    updates, _ = tx.update(params, tx.init(params), params, anchor=params)
    # The inner ball has radius 0.1 a row of three, and the outer one lets that pass.
    np.testing.assert_allclose(np.abs(updates["kernel"]).sum(0), 0.1, rtol=1e-5)


def test_radii_can_be_learned_anew_without_an_anchor_in_the_state():
    params = numbers()
    tx = ftp(optax.adam(0.1), anchor="argument")
    _, state = trained(tx, params, anchor=params)
    fresh: Any = tpgm_jax.set_anchor(state, params)
    assert fresh.step == 0
    assert set(tpgm_jax.radii(fresh, params).values()) == {0.0}


@pytest.mark.parametrize(
    ("options", "handed", "message"),
    [
        ({"anchor": "argument"}, {}, r"call `update\(grads, state, params, anchor=pretrained\)`"),
        ({}, {"anchor": {"w": jnp.ones((2, 2))}}, "build it with `anchor='argument'`"),
        ({"anchor": "argument"}, {"anchor": {"v": jnp.ones((2, 2))}}, "'w' missing"),
        ({"anchor": "argument"}, {"anchor": {"w": jnp.ones(2)}}, r"'w' of shape \(2,\)"),
    ],
)
def test_a_wrong_anchor_is_an_error_that_says_what_to_do(options, handed, message):
    params = {"w": jnp.ones((2, 2))}
    for tx in (ftp(optax.sgd(0.1), **options), project_to_anchor(0.1, **options)):
        with pytest.raises(ValueError, match=message):
            tx.update(params, tx.init(params), params, **handed)
    tx = tpgm(optax.sgd(0.1), **options)
    with pytest.raises(ValueError, match=message):
        tx.update(params, tx.init(params), params, value_fn=loss, **handed)


def test_an_unknown_source_is_refused():
    with pytest.raises(ValueError, match="`anchor` must be one of 'init', 'argument', 'zero'"):
        ftp(optax.sgd(0.1), anchor="pretrained")
