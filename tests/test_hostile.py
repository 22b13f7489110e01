"""Numbers that are not finite, that are huge or tiny, and trees of every shape."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_step, random_tree
from transforms import loss

import tpgm_jax
from tpgm_jax import Axes, ftp, spd, tpgm

SHAPES = {"bias": (4,), "dense": (3, 4), "layers": (2, 3, 4), "head": (4, 2), "gain": ()}
PARTS = {"exclude": "head", "axes": {"layers": Axes(layers=0)}}
METHODS = {
    "ftp": lambda base, **kw: ftp(base, **kw),
    "ftp l2": lambda base, **kw: ftp(base, norm="l2", **kw),
    "ftp compact": lambda base, **kw: ftp(base, memory="compact", **kw),
    "tpgm": lambda base, **kw: tpgm(base, **kw),
    "spd": lambda base, **kw: spd(base, **kw),
    "tpgm every other": lambda base, **kw: tpgm(base, steps=2, every=2, norm="l2", **kw),
}
BALLS = {name: make for name, make in METHODS.items() if name != "spd"}
each_method = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
each_bad = pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])


def ours(state):
    """What the method learned: all of its state but the base optimizer's and the counters."""
    return {k: v for k, v in state._asdict().items() if k not in ("base_state", "skipped")}


def trained(make, steps=4):
    """A step, and where a few of them lead."""
    params = random_tree(SHAPES, 0)
    tx = make(optax.adam(0.1), **PARTS)
    step, state = make_step(tx, value_fn=loss), tx.init(params)
    for _ in range(steps):  # always the same way, so that the radii grow
        params, state = step(params, state, random_tree(SHAPES, 2))
    return step, params, state


@each_bad
@each_method
@pytest.mark.parametrize("where", ["dense", "layers", "gain", "head"])
def test_a_gradient_that_is_not_finite_is_stepped_over(make, bad, where):
    step, params, state = trained(make)
    grads = random_tree(SHAPES, 1)
    grads[where] = grads[where].at[(0,) * grads[where].ndim].set(bad)
    kept, after = step(params, state, grads)
    jax.tree.map(np.testing.assert_array_equal, ours(after), ours(state))
    for name in set(SHAPES) - {"head"}:
        np.testing.assert_array_equal(kept[name], params[name])
    assert (int(state.skipped), int(after.skipped)) == (0, 1)
    # The next finite step goes on: nothing is stuck in a moment.
    moved, after = step(kept, after, random_tree(SHAPES, 2))
    assert int(after.step) == int(state.step) + 1
    for name, value in moved.items():
        assert np.all(np.isfinite(value)), name
        assert not np.array_equal(value, params[name]), name


@each_method
def test_a_first_gradient_that_is_not_finite_is_as_if_it_had_not_been(make):
    params = random_tree(SHAPES, 0)
    tx = make(optax.sgd(0.1), **PARTS)  # without memory, so that the zeros leave no trace
    step, state = make_step(tx, value_fn=loss), tx.init(params)
    expected = step(params, state, random_tree(SHAPES, 2))
    bad = jax.tree.map(lambda x: x * jnp.nan, params)
    received = step(*step(params, state, bad), random_tree(SHAPES, 2))
    assert int(received[1].skipped) == 1
    clean = received[1]._replace(skipped=expected[1].skipped)
    jax.tree.map(np.testing.assert_array_equal, (received[0], clean), expected)


@each_bad
@each_method
def test_an_update_that_is_not_finite_counts_as_none(make, bad):
    def break_one(updates, state, params=None):
        del params
        return {**updates, "dense": updates["dense"].at[0, 0].set(bad)}, state

    params = random_tree(SHAPES, 0)
    broken = optax.GradientTransformation(lambda params: optax.EmptyState(), break_one)
    tx = make(optax.chain(optax.sgd(0.1), broken), **PARTS)
    step, state = make_step(tx, value_fn=loss), tx.init(params)
    for seed in range(4):
        params, state = step(params, state, random_tree(SHAPES, 10 + seed))
    for x in jax.tree.leaves((params, state)):
        assert np.all(np.isfinite(x))
    # That weight was never asked to move; a projection there and back may round.
    start = random_tree(SHAPES, 0)["dense"][0, 0]
    np.testing.assert_allclose(params["dense"][0, 0], start, rtol=0, atol=1e-3)


@each_bad
def test_a_held_out_loss_that_is_not_finite_leaves_the_radii(bad):
    params = random_tree(SHAPES, 0)
    tx = tpgm(optax.adam(0.1), steps=3, **PARTS)
    grads, state = random_tree(SHAPES, 1), tx.init(params)

    @jax.jit
    def step(params, state, factor):
        updates, state = tx.update(grads, state, params, value_fn=lambda p, i: factor[i] * loss(p))
        return optax.apply_updates(params, updates), state

    params, state = step(params, state, jnp.ones(3))
    # The last radius step of three is bad, so that two are taken.
    _, expected = step(params, state, jnp.ones(3))
    moved, after = step(params, state, jnp.array([1.0, 1.0, bad]))
    assert int(after.skipped) == 1
    assert int(after.radius_state[0].count) == int(expected.radius_state[0].count) - 1
    for x in jax.tree.leaves((moved, after)):
        assert np.all(np.isfinite(x))
    # All of them are bad: the moments stay, and the radii but for their bounds.
    _, after = step(params, state, jnp.full(3, bad))
    assert int(after.skipped) == 3
    jax.tree.map(np.testing.assert_array_equal, after.radius_state, state.radius_state)
    assert np.all(after.radii <= state.radii)


@pytest.mark.parametrize("make", BALLS.values(), ids=BALLS)
@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-10, 1.0, 1e10])
def test_huge_and_tiny_numbers_stay_finite_and_inside_the_ball(make, scale, size):
    params = random_tree(SHAPES, 0, scale=scale)
    tx = make(optax.sgd(0.1), **PARTS)
    step, start, state = make_step(tx, value_fn=lambda p: 0.0 * loss(p)), params, tx.init(params)
    for seed in range(6):
        params, state = step(params, state, random_tree(SHAPES, 10 + seed, scale=size))
    for x in jax.tree.leaves((params, state)):
        assert np.all(np.isfinite(x))
    moved = np.asarray(params["bias"], np.float64) - np.asarray(start["bias"], np.float64)
    l2 = make in (METHODS["ftp l2"], METHODS["tpgm every other"])
    distance = np.sqrt(np.sum(moved**2)) if l2 else np.sum(np.abs(moved))
    # Each of four weights rounds to an ulp of itself; the compact floor is 256 of them.
    slack = 4 * 256 * 1.2e-7 * float(jnp.max(jnp.abs(start["bias"])))
    assert distance <= tpgm_jax.radii(state, params)["bias"] * (1 + 1e-6) + slack


@each_method
def test_zero_gradients_move_nothing(make):
    params = random_tree(SHAPES, 0)
    tx = make(optax.adam(0.1), **PARTS)
    step, start, state = make_step(tx, value_fn=lambda p: 0.0 * loss(p)), params, tx.init(params)
    for _ in range(5):
        params, state = step(params, state, jax.tree.map(jnp.zeros_like, params))
    jax.tree.map(np.testing.assert_array_equal, params, start)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state))
