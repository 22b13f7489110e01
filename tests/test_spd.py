"""SPD: when it acts, how far it goes, and on which numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_step, make_update, random_tree

import tpgm_jax
from tpgm_jax import Axes

# Untyped, because a type checker rejects the wrong arguments of the error tests.
spd: Any = tpgm_jax.spd


def constant_update(u):
    """A base optimizer whose update is `u`, whatever the gradient."""

    def update(updates, state, params=None):
        del updates, params
        return u, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def step_from(g, d, u, anchor=0.0, **options):
    """The displacement after one step from the displacement `d`."""
    g, d, u = (jnp.asarray(x, jnp.result_type(float)) for x in (g, d, u))
    start = jnp.full_like(d, anchor)
    tx = spd(constant_update({"w": u}), **options)
    params = {"w": start + d}
    updates, _ = make_update(tx)({"w": g}, tx.init({"w": start}), params)
    return np.asarray(params["w"] + updates["w"] - start)


# From (3, 4) to (6, 8): the distance doubles from 5 to 10.
FROM, BY = [3.0, 4.0], [3.0, 4.0]
BACK = [1.0, 1.0]  # a gradient whose descent leads towards the anchor


@pytest.mark.parametrize(
    ("strength", "end"),
    [
        (0.0, [6.0, 8.0]),
        (0.5, [4.5, 6.0]),
        (1.0, [3.0, 4.0]),
        (2.0, [0.0, 0.0]),
        (3.0, [-3.0, -4.0]),  # beyond the anchor, unlike a projection
    ],
)
def test_strength_scales_how_much_of_a_step_is_undone(strength, end):
    np.testing.assert_array_equal(step_from(BACK, FROM, BY, strength=strength), end)


@pytest.mark.parametrize(
    ("g", "u", "end"),
    [
        ([-1.0, -1.0], BY, [6.0, 8.0]),  # descent leads away
        ([4.0, -3.0], BY, [6.0, 8.0]),  # or descent keeps the distance
        (BACK, [-1.5, -2.0], [1.5, 2.0]),  # the step leads nearer
        (BACK, [1.0, -1.0], [4.0, 3.0]),  # or keeps the distance
        (BACK, [-3.0, -4.0], [0.0, 0.0]),  # or ends at the anchor
    ],
)
def test_a_step_is_unchanged_unless_it_leads_away_against_the_gradient(g, u, end):
    np.testing.assert_array_equal(step_from(g, FROM, u), end)


def test_an_undone_step_ends_in_the_direction_of_the_candidate():
    # From (0, 5) to (12, 5), a distance of 13, and back to a distance of 5 along that line.
    end = step_from([0.0, 1.0], [0.0, 5.0], [12.0, 0.0])
    np.testing.assert_allclose(end, [12 * 5 / 13, 5 * 5 / 13], rtol=3e-7)  # two ulps


def test_distances_are_measured_by_tensor_or_layer_and_not_by_row():
    g = [[BACK, BACK], [[-1.0, -1.0], [-1.0, -1.0]]]
    d, u = [[FROM, FROM]] * 2, [[BY, BY]] * 2
    # Both layers in one group: their inner products cancel.
    np.testing.assert_array_equal(step_from(g, d, u), 2 * np.array(d))
    # Separate groups: the step of the first layer is undone, the second one is not.
    end = step_from(g, d, u, axes={"w": Axes(layers=0)})
    np.testing.assert_array_equal(end, [[FROM, FROM], [[6.0, 8.0], [6.0, 8.0]]])
    # Rows share a group: the slope of the first outweighs the slope of the second.
    end = step_from([BACK, [-0.9, -0.9]], [FROM, FROM], [BY, BY], axes={"w": Axes(rows=0)})
    np.testing.assert_array_equal(end, [FROM, FROM])


def test_the_first_step_is_unchanged():
    np.testing.assert_array_equal(step_from(BACK, [0.0, 0.0], BY), BY)


def test_distances_are_measured_from_the_anchor_and_not_from_zero():
    # This step leads nearer to zero and away from the anchor.
    np.testing.assert_array_equal(step_from([-1.0], [-1.0], [-1.0], anchor=16.0), [-1.0])


def test_a_step_whose_norms_underflow_is_unchanged():
    # Squares below 1e-45 are 0, and 0 / 0 is NaN.
    params = {"kernel": jnp.full((3, 2), 1e-25)}
    tx = spd(optax.sgd(1e-30), anchor="zero")
    moved, _ = make_step(tx)(params, tx.init(params), {"kernel": jnp.ones((3, 2))})
    # The step is 1e-5 of the distance, and float32 rounds by 6e-8.
    np.testing.assert_allclose(moved["kernel"], 1e-25 - 1e-30, rtol=1e-6)


def test_a_strength_in_half_precision_is_used_in_float32():
    strength = jnp.bfloat16(0.1)
    expected = (1 - float(strength) / 2) * np.array([6.0, 8.0])
    # An ulp for each of the difference, the product, the sum and the result.
    np.testing.assert_allclose(
        step_from(BACK, FROM, BY, strength=strength), expected, rtol=4 * 1.2e-7
    )


def test_an_update_below_the_spacing_of_the_params_is_returned_unchanged():
    # In float32 numbers above 1 are 2^-23 apart, and 1 plus this update is 1.
    params, u = {"w": jnp.array([1 + 2.0**-21])}, {"w": jnp.array([2.0**-25])}
    tx = spd(constant_update(u))
    state = tx.init({"w": jnp.ones(1)})
    updates, _ = make_update(tx)({"w": jnp.array([-1.0])}, state, params)
    np.testing.assert_array_equal(updates["w"], u["w"])


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_tiny_distance_is_kept_with_a_huge_update(strength):
    # With a strength of 1 the end is 1e-8 from the anchor, where the update's ulp is 4e-3.
    d, u = np.array([6e-9, 8e-9], np.float32), np.array([3e4, -1.5e4], np.float32)
    end = step_from([1.0, 1.0], d, u, strength=strength)
    c = d.astype(np.float64) + u
    expected = c * ((1 - strength) + strength * 1e-8 / np.linalg.norm(c))
    # An ulp for each of c, two norms, their ratio, the product and the sum.
    np.testing.assert_allclose(end, expected, rtol=6 * 1.2e-7)


def test_half_precision_is_computed_in_float32():
    rng = np.random.default_rng(0)
    shape = (50, 50)  # more numbers than bfloat16 can count
    w0, d, g, u = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for _ in range(4))
    g, w = g + d, w0 + d  # makes the slope clearly positive
    tx = spd(constant_update({"w": u}))
    updates, _ = make_update(tx)({"w": g}, tx.init({"w": w0}), {"w": w})
    assert updates["w"].dtype == jnp.bfloat16
    w0, w, g, u = (np.asarray(x, np.float64) for x in (w0, w, g, u))
    c = w + u - w0
    assert np.sum(g * (w - w0)) > 0
    expected = w0 - w + np.linalg.norm(w - w0) / np.linalg.norm(c) * c
    # Half a spacing of the update, 2^-8 of its size, and a little for the float32 before.
    received = np.asarray(updates["w"], np.float64)
    np.testing.assert_allclose(received, expected, rtol=1.01 / 2**8, atol=1e-5)


@pytest.mark.parametrize(
    ("d", "u", "end"),
    [
        (0.0, 0.0, 0.0),
        (1.0, -1.0, 0.0),
        (1e-30, 1.0, 1.0),  # its square is 0 in float32, and so is its distance
        (1.0, 1e25, 0.0),  # the square of 1e25 is infinite, and 1 is negligible beside it
        (1e25, 1e25, 2e25),  # two infinite distances count as equal
    ],
)
def test_numbers_beyond_the_range_of_squares_stay_finite(d, u, end):
    # Run one operation at a time, so that a NaN is detected even if `where` discards it.
    with jax.debug_nans(True), jax.disable_jit():
        np.testing.assert_allclose(step_from([1e-9], [d], [u]), [end], rtol=1e-6)


def descend(tx, steps):
    """The parameters after each step of descent in a bowl that is narrow in one direction."""
    params, path = {"w": jnp.zeros(2)}, []
    step, state = make_step(tx), tx.init(params)
    for _ in range(steps):
        grads = {"w": jnp.array([1.0, 10.0]) * (params["w"] - 1.0)}
        params, state = step(params, state, grads)
        path.append(params["w"])
    return np.stack(path)


def test_spd_acts_with_momentum_and_not_with_plain_descent():
    plain, momentum = optax.sgd(0.05), optax.sgd(0.05, momentum=0.9)
    # Each of forty steps rounds by some ulps of numbers around 1.
    np.testing.assert_allclose(
        descend(spd(plain), 40), descend(plain, 40), rtol=0, atol=40 * 4 * 1.2e-7
    )
    without, with_spd = (np.abs(descend(x, 40)).max() for x in (momentum, spd(momentum)))
    # Momentum swings far beyond the minimum at 1, until the gradient points back.
    assert without > 1.5
    assert with_spd < without - 0.1


def test_a_strength_of_zero_equals_the_base_optimizer():
    # As above, with rounding errors that momentum magnifies over forty steps.
    momentum = optax.sgd(0.05, momentum=0.9)
    np.testing.assert_allclose(
        descend(spd(momentum, strength=0.0), 40), descend(momentum, 40), rtol=0, atol=1e-4
    )


def test_a_strength_schedule_is_evaluated_at_the_number_of_previous_updates():
    strengths = jnp.array([0.0, 0.5, 1.0])
    w = jnp.array(FROM)
    tx = spd(
        constant_update({"w": jnp.array(BY)}), strength=lambda step: strengths[jnp.asarray(step)]
    )
    update, state = make_update(tx), tx.init({"w": jnp.zeros(2)})
    for end in ([6.0, 8.0], [4.5, 6.0], [3.0, 4.0]):
        updates, state = update({"w": jnp.array(BACK)}, state, {"w": w})
        np.testing.assert_array_equal(w + updates["w"], end)


def test_excluded_leaves_get_the_base_optimizers_update():
    params, grads = (random_tree({"body": (3, 2), "head": (2, 2)}, seed) for seed in (0, 1))
    u = random_tree({"body": (3, 2), "head": (2, 2)}, 2)
    tx = spd(constant_update(u), exclude="head")
    updates, state = make_update(tx)(grads, tx.init(params), params)
    np.testing.assert_array_equal(updates["head"], u["head"])
    assert isinstance(state.anchor["head"], optax.MaskedNode)
    np.testing.assert_array_equal(state.anchor["body"], params["body"])


PARAMS = {"w": jnp.ones((3, 2))}
SGD = optax.sgd(0.1)
ERRORS = {
    "base optimizer is a learning rate": (lambda: spd(1e-3), TypeError, "optax.adamw"),
    "strength negative": (lambda: spd(SGD, strength=-1), ValueError, "0 or more; got -1"),
    "strength infinite": (lambda: spd(SGD, strength=float("inf")), ValueError, "must be finite"),
    "strength not a number": (lambda: spd(SGD, strength=float("nan")), ValueError, "finite"),
    "strength is a word": (lambda: spd(SGD, strength="a"), TypeError, "must be a number; got 'a'"),
    "anchor unknown": (lambda: spd(SGD, anchor="w0"), ValueError, "`anchor` must be one of"),
    "params missing": (
        lambda: spd(SGD).update(PARAMS, spd(SGD).init(PARAMS)),
        ValueError,
        r"`spd` .* call `update\(updates, state, params\)`",
    ),
    "state of another `exclude`": (
        lambda: spd(SGD).update(
            PARAMS | {"v": PARAMS["w"]},
            spd(SGD, exclude="v").init(PARAMS | {"v": PARAMS["w"]}),
            PARAMS | {"v": PARAMS["w"]},
        ),
        ValueError,
        r"`exclude`: \('v', False\) in the state and \('v', True\) here",
    ),
    "there are no radii": (
        lambda: tpgm_jax.radii(spd(SGD).init(PARAMS), PARAMS),
        ValueError,
        "no learned radii",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_bad_input_raises_an_error_with_the_remedy(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_radii_skips_states_without_radii():
    params = {"body": jnp.ones(2), "tail": jnp.ones(2)}
    tx = optax.partition({"a": tpgm_jax.ftp(SGD), "b": spd(SGD)}, {"body": "a", "tail": "b"})
    assert tpgm_jax.radii(tx.init(params), params) == {"body": 0.0}
    moved: Any = tpgm_jax.set_anchor(tx.init(params), jax.tree.map(jnp.zeros_like, params))
    for _, anchor in optax.tree.get_all_with_path(moved, "anchor"):
        assert not any(np.any(x) for x in jax.tree.leaves(anchor))
