"""Numbers that are not finite, huge or tiny, and very long runs."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_step, mostly_slow, random_tree
from transforms import loss

import tpgm_jax
from tpgm_jax import Axes, ftp, spd, tpgm
from tpgm_jax._core.stacks import make_kinds

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
L2 = (METHODS["ftp l2"], METHODS["tpgm every other"])
BALLS = {name: make for name, make in METHODS.items() if name != "spd"}
each_method = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
each_ball = pytest.mark.parametrize("make", BALLS.values(), ids=BALLS)
BAD = {"nan": jnp.nan, "inf": jnp.inf, "-inf": -jnp.inf}
each_bad = pytest.mark.parametrize("bad", BAD.values())
each_mostly_slow_bad = pytest.mark.parametrize("bad", mostly_slow(BAD, "nan"))


def learned_state(state):
    """The state without the base optimizer's, `skipped`, and the last displacement."""
    others = ("base_state", "skipped", "displacement", "row_norms")
    return {k: v for k, v in state._asdict().items() if k not in others}


def directions(state):
    """The rows of the displacement, divided by their norms, in float64."""
    leaves = [np.float64(x) for x in jax.tree.leaves(state.displacement)]
    norms = [np.float64(x) for kind in state.row_norms for x in kind]
    by_kind = make_kinds(state.spec.layout, [jnp.asarray(x, jnp.float32) for x in leaves])
    places = [i for kind in by_kind for i in kind.members]
    return [leaves[i] / n for i, n in zip(places, norms, strict=True)]


@functools.cache
def transform_and_step(make):
    """A transformation around gradient descent, and its step, compiled once for all scales."""
    tx = make(optax.sgd(0.1), **PARTS)
    return tx, make_step(tx, held_out_loss=lambda params: 0.0 * loss(params))


@functools.cache
def train(make, steps=4):
    """A step, and parameters and state after a few steps."""
    params = random_tree(SHAPES, 0)
    tx = make(optax.adam(0.1), **PARTS)
    step, state = make_step(tx, held_out_loss=loss), tx.init(params)
    for _ in range(steps):  # in one direction, so that the radii grow
        params, state = step(params, state, random_tree(SHAPES, 2))
    return step, params, state


@each_bad
@each_method
@pytest.mark.parametrize("where", ["dense", "layers", "gain", "head"])
def test_a_gradient_that_is_not_finite_is_skipped(make, bad, where):
    step, params, state = train(make)
    grads = random_tree(SHAPES, 1)
    grads[where] = grads[where].at[(0,) * grads[where].ndim].set(bad)
    kept, after = step(params, state, grads)
    jax.tree.map(np.testing.assert_array_equal, learned_state(after), learned_state(state))
    for name in SHAPES:  # the excluded head too
        np.testing.assert_array_equal(kept[name], params[name])
    assert (int(state.skipped), int(after.skipped)) == (0, 1)
    if jax.tree.leaves(getattr(state, "displacement", ())):
        # It becomes W - W0, with its own norms. So its direction stays, up to the rounding of W,
        # which is 6e-8 of weights of about 1 that moved by some 1e-2.
        for x, y in zip(directions(after), directions(state), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-4)
    # The next finite gradient moves all parameters, so no moment became NaN.
    moved, after = step(kept, after, random_tree(SHAPES, 2))
    assert int(after.step) == int(state.step) + 1
    for name, value in moved.items():
        assert np.all(np.isfinite(value)), name
        assert not np.array_equal(value, params[name]), name


@each_method
def test_a_first_gradient_that_is_not_finite_has_no_effect(make):
    params = random_tree(SHAPES, 0)
    tx = make(optax.sgd(0.1), **PARTS)  # stateless, so that a zero gradient has no later effect
    step, state = make_step(tx, held_out_loss=loss), tx.init(params)
    expected = step(params, state, random_tree(SHAPES, 2))
    bad = jax.tree.map(lambda x: x * jnp.nan, params)
    received = step(*step(params, state, bad), random_tree(SHAPES, 2))
    assert int(received[1].skipped) == 1
    clean = received[1]._replace(skipped=expected[1].skipped)
    jax.tree.map(np.testing.assert_array_equal, (received[0], clean), expected)


@each_mostly_slow_bad
@each_method
def test_an_entry_of_an_update_that_is_not_finite_counts_as_zero(make, bad):
    def break_one(updates, state, params=None):
        del params
        return {**updates, "dense": updates["dense"].at[0, 0].set(bad)}, state

    params = random_tree(SHAPES, 0)
    broken = optax.GradientTransformation(lambda params: optax.EmptyState(), break_one)
    tx = make(optax.chain(optax.sgd(0.1), broken), **PARTS)
    step, state = make_step(tx, held_out_loss=loss), tx.init(params)
    for seed in range(4):
        params, state = step(params, state, random_tree(SHAPES, 10 + seed))
    for x in jax.tree.leaves((params, state)):
        assert np.all(np.isfinite(x))
    # The base optimizer does not move this weight, but projections may round it.
    start = random_tree(SHAPES, 0)["dense"][0, 0]
    np.testing.assert_allclose(params["dense"][0, 0], start, rtol=0, atol=1e-3)


@each_mostly_slow_bad
def test_a_held_out_loss_that_is_not_finite_leaves_the_radii_unchanged(bad):
    params = random_tree(SHAPES, 0)
    tx = tpgm(optax.adam(0.1), steps=3, **PARTS)
    grads, state = random_tree(SHAPES, 1), tx.init(params)

    @jax.jit
    def step(params, state, factor):
        extra = {"held_out_loss": lambda p, x: x * loss(p), "held_out_batch": factor}
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    params, state = step(params, state, jnp.ones(3))
    # The last of three radius steps is not finite, so only two are taken.
    _, expected = step(params, state, jnp.ones(3))
    moved, after = step(params, state, jnp.array([1.0, 1.0, bad]))
    assert int(after.skipped) == 1
    assert int(after.radius_state[0].count) == int(expected.radius_state[0].count) - 1
    for x in jax.tree.leaves((moved, after)):
        assert np.all(np.isfinite(x))
    # If none is finite, the moments do not change, and the radii only by their bounds.
    _, after = step(params, state, jnp.full(3, bad))
    assert int(after.skipped) == 3
    jax.tree.map(np.testing.assert_array_equal, after.radius_state, state.radius_state)
    assert np.all(after.radii <= state.radii)


def test_a_skipped_step_counts_once_if_its_held_out_loss_is_not_finite_either():
    params = random_tree({"dense": (3, 4)}, 0)
    tx = tpgm(optax.sgd(0.1))
    step = make_step(tx, held_out_loss=lambda params: jnp.nan * loss(params))
    _, state = step(params, tx.init(params), {"dense": jnp.full((3, 4), jnp.nan)})
    assert int(state.skipped) == 1


def test_a_slope_whose_square_overflows_does_not_freeze_the_radii():
    tx, step = transform_and_step(METHODS["ftp compact"])
    params = random_tree(SHAPES, 0)
    params, state = step(params, tx.init(params), random_tree(SHAPES, 2))
    # 1e25 is finite, and so is its product with a displacement; its square is not.
    huge = jax.tree.map(lambda x: 1e25 * x, random_tree(SHAPES, 2))
    kept, after = step(params, state, huge)
    assert int(after.skipped) == 1
    jax.tree.map(np.testing.assert_array_equal, after.radius_state, state.radius_state)
    np.testing.assert_array_equal(after.radii, state.radii)
    _, after = step(kept, after, random_tree(SHAPES, 2))
    assert np.all(after.radii > state.radii)


def test_a_finite_gradient_is_not_skipped_if_its_sum_overflows():
    # Each number is below the largest of float32, 3.4e38.
    params, grads = {"dense": jnp.zeros((3, 4))}, {"dense": jnp.full((3, 4), 3e38)}
    step = make_step(tx := tpgm(optax.sgd(1e-37)), held_out_loss=lambda params: 0.0 * loss(params))
    _, state = step(params, tx.init(params), grads)
    assert (int(state.step), int(state.skipped)) == (1, 0)


def test_the_state_of_the_radius_optimizer_may_contain_an_infinity():
    def descend(updates, state, params=None):
        del params
        return jax.tree.map(lambda x: -0.1 * x, updates), state

    bounded = optax.GradientTransformation(lambda params: jnp.array([0.0, jnp.inf]), descend)
    params = random_tree(SHAPES, 0)
    tx = ftp(optax.sgd(0.1), radius_optimizer=bounded, **PARTS)
    step = make_step(tx)
    state: Any = tx.init(params)
    for _ in range(3):
        params, state = step(params, state, random_tree(SHAPES, 2))
    assert int(state.skipped) == 0
    assert np.all(state.radii > 1e-8)


def test_an_infinite_slope_moves_no_radius_even_with_a_sign_optimizer():
    # Of a single number, because infinities of both signs would add up to NaN.
    shapes = {"gain": ()}
    params = random_tree(shapes, 0)
    tx = tpgm(optax.sgd(0.1), radius_optimizer=optax.chain(optax.scale_by_sign(), optax.scale(0.1)))
    step = make_step(tx, held_out_loss=lambda params: jnp.inf * loss(params))
    _, state = step(params, tx.init(params), random_tree(shapes, 2))
    assert int(state.skipped) == 1
    _, expected = make_step(tx, held_out_loss=lambda params: 0.0 * loss(params))(
        params, tx.init(params), random_tree(shapes, 2)
    )
    np.testing.assert_array_equal(state.radii, expected.radii)


def test_fit_radii_skips_a_held_out_batch_that_is_not_finite():
    anchor, tuned = random_tree(SHAPES, 0), random_tree(SHAPES, 1)
    batches = [1.0, jnp.nan, 1.0]
    fitted, expected = (
        tpgm_jax.fit_radii(lambda p, factor: factor * loss(p), tuned, anchor, given)
        for given in (batches, [1.0, 1.0])
    )
    jax.tree.map(np.testing.assert_array_equal, fitted.params, expected.params)
    assert fitted.radii == expected.radii
    np.testing.assert_array_equal(np.isfinite(fitted.losses), [True, False, True])


@each_ball
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-10, 1e10, 1e30])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-10, 1.0, 1e10, 1e30])
def test_huge_and_tiny_numbers_stay_finite_and_inside_the_ball(make, scale, size):
    params = random_tree(SHAPES, 0, scale=scale)
    tx, step = transform_and_step(make)
    start, state = params, tx.init(params)
    for seed in range(6):
        params, state = step(params, state, random_tree(SHAPES, 10 + seed, scale=size))
    for x in jax.tree.leaves((params, state)):
        assert np.all(np.isfinite(x))
    moved = np.asarray(params["bias"], np.float64) - np.asarray(start["bias"], np.float64)
    distance = np.sqrt(np.sum(moved**2)) if make in L2 else np.sum(np.abs(moved))
    # Each of four weights rounds by an ulp; the floor of compact memory is 256 ulps.
    slack = 4 * 256 * 1.2e-7 * float(jnp.max(jnp.abs(start["bias"])))
    assert distance <= tpgm_jax.radii(state, params)["bias"] * (1 + 1e-6) + slack


LONG, SMALL = 100_000, {"kernel": (3, 2), "bias": (2,)}


@pytest.mark.parametrize(
    ("make", "dtype"),
    mostly_slow(
        {
            **{name: (make, jnp.float32) for name, make in BALLS.items()},
            "ftp, bfloat16": (METHODS["ftp"], jnp.bfloat16),
            "ftp compact, bfloat16": (METHODS["ftp compact"], jnp.bfloat16),
        },
        *("ftp", "ftp compact, bfloat16"),
    ),
)
def test_a_hundred_thousand_steps_stay_in_the_ball_and_then_stand_still(make, dtype):
    anchor = random_tree(SMALL, 0, dtype=dtype)
    tx = make(optax.sgd(0.1, momentum=0.9))

    def step(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params, held_out_loss=loss)
        return optax.apply_updates(params, updates), state

    def noisy(carry, key):
        grads = {name: jax.random.normal(key, shape, dtype) for name, shape in SMALL.items()}
        return step(carry, grads), None

    def still(carry, _):
        return step(carry, jax.tree.map(jnp.zeros_like, anchor)), None

    @jax.jit
    def run(carry):
        keys = jax.random.split(jax.random.key(0), LONG)
        walked = jax.lax.scan(noisy, carry, keys)[0]
        # When momentum and the radii's Adam have decayed, nothing moves any more.
        rested = jax.lax.scan(still, walked, length=LONG // 2)[0]
        return walked, rested, jax.lax.scan(still, rested, length=LONG // 2)[0]

    walked, rested, last = run((anchor, tx.init(anchor)))
    for x in jax.tree.leaves((walked, last)):
        assert np.all(np.isfinite(x))
    assert int(last[1].skipped) == 0
    jax.tree.map(np.testing.assert_array_equal, last[0], rested[0])
    found = tpgm_jax.radii(walked[1], anchor)
    for name, start in anchor.items():
        moved = np.asarray(walked[0][name], np.float64) - np.asarray(start, np.float64)
        axes = None if make in L2 or start.ndim < 2 else 0
        order = np.square if make in L2 else np.abs
        distances = np.sum(order(moved), axis=axes)
        distances = np.sqrt(distances) if make in L2 else distances
        # As in the README: a row ends within its radius plus `eps` times its norm, for which this
        # takes the sum of absolute values. Compact memory keeps it at least 256 times that away.
        floor = 256 if make is METHODS["ftp compact"] and dtype == jnp.float32 else 1
        size = np.sum(np.abs(np.asarray(start, np.float64)), axis=axes)
        slack = floor * float(jnp.finfo(dtype).eps) * (size + found[name])
        assert np.all(distances <= found[name] + slack), name


@each_method
def test_zero_gradients_move_nothing(make):
    params = random_tree(SHAPES, 0)
    tx = make(optax.adam(0.1), **PARTS)
    step, start, state = (
        make_step(tx, held_out_loss=lambda p: 0.0 * loss(p)),
        params,
        tx.init(params),
    )
    for _ in range(5):
        params, state = step(params, state, jax.tree.map(jnp.zeros_like, params))
    jax.tree.map(np.testing.assert_array_equal, params, start)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state))
