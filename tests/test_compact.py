"""`memory="compact"`: the same radii without the stored displacement."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_step, random_tree

import tpgm_jax

SHAPES = {
    "gain": (),
    "bias": (7,),
    "dense/kernel": (20, 7),
    "conv/kernel": (3, 3, 4, 5),
    "layers/kernel": (3, 20, 7),
    "head": (7, 2),
}
PARTS = {"exclude": "head", "axes": {"layers/.*": tpgm_jax.Axes(layers=0)}}
each_norm = pytest.mark.parametrize("norm", ["mars", "l2"])


def trajectory(dtype, steps=80, **options):
    """Parameters and radii of every step, with gradients that reverse half-way."""
    anchor, there = random_tree(SHAPES, 0, dtype=dtype), random_tree(SHAPES, 1, dtype=dtype)
    noise = random_tree({name: (steps, *shape) for name, shape in SHAPES.items()}, 2, dtype=dtype)
    tx: Any = tpgm_jax.ftp(optax.adam(1e-2), **PARTS, **options)

    def step(carry, given):
        params, state = carry
        t, noise = given
        # Away from the anchor for half of the steps, then back to it, where radii collapse.
        sign = jnp.where(t < steps // 2, -1.0, 1.0).astype(dtype)
        grads = {name: sign * there[name] + 0.3 * noise[name] for name in there}
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, state.radii)

    steps_and_noise = (jnp.arange(steps), noise)
    return jax.jit(lambda: jax.lax.scan(step, (anchor, tx.init(anchor)), steps_and_noise)[1])()


@functools.cache
def expected_trajectory(norm):
    """The trajectory with the displacement stored, in float64."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, trajectory(jnp.float64, norm=norm))


@each_norm
def test_compact_memory_in_float32_follows_full_memory_in_float64(norm):
    exact_params, exact_radii = expected_trajectory(norm)
    params, radii = trajectory(jnp.float32, norm=norm, memory="compact")
    # The tolerance for compact memory in float32, as with the published traces.
    np.testing.assert_allclose(radii, exact_radii, rtol=0, atol=1e-4)
    for name, value in params.items():
        # A row at its floor is off by 256 ulps of its norm, and a weight by its share of that.
        share = 1.0 if norm == "mars" else np.sqrt(value[0].size)
        floor = 256 * 1.2e-7 * share * np.abs(value[0]).max()
        np.testing.assert_allclose(value, exact_params[name], rtol=0, atol=1e-4 + floor)


@each_norm
def test_compact_memory_in_float64_equals_full_memory_up_to_rounding(norm):
    with jax.enable_x64(True):
        received = trajectory(jnp.float64, norm=norm, memory="compact")
        # The floor is 256 * 2e-16 = 6e-14 of a row's norm. A direction has an error of 1 / 256
        # there, but the smallest radius, 1e-8, is far above it.
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6),
            *(received, expected_trajectory(norm)),
        )


def test_a_collapsed_radius_recovers_at_the_same_step():
    # Weights of size 1. The gradient points back for 60 steps, and then away from the anchor.
    def radii(memory):
        params = {"kernel": jnp.ones((4, 3))}
        tx = tpgm_jax.ftp(optax.sgd(1e-2), memory=memory)
        step, state, found = make_step(tx), tx.init(params), []
        for t in range(160):
            sign = 1.0 if 40 <= t < 100 else -1.0
            params, state = step(params, state, {"kernel": jnp.full((4, 3), sign)})
            found.append(float(state.radii[0]))
        return np.array(found)

    full, compact = radii("full"), radii("compact")
    assert full[60:].min() == pytest.approx(1e-8)  # it does collapse
    assert full[-1] > 0.1
    np.testing.assert_array_equal(full < 1e-3, compact < 1e-3)
    np.testing.assert_allclose(compact, full, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "floor"),
    # Rows of 4 weights of size 2: N(W0) = 8, and the floor 256 * 2^-23 * 8, or 2^-7 * 8.
    [(jnp.float32, 2.0**-12), (jnp.bfloat16, 2.0**-4)],
)
def test_rows_stay_at_least_their_floor_from_the_anchor(dtype, floor):
    params = {"kernel": jnp.full((4, 3), 2.0, dtype)}
    tx = tpgm_jax.ftp(optax.sgd(1.0), memory="compact")
    moved, state = make_step(tx)(params, tx.init(params), {"kernel": -jnp.ones((4, 3), dtype)})
    np.testing.assert_array_equal(moved["kernel"].astype(jnp.float32) - 2.0, floor / 4)
    assert tpgm_jax.radii(state, params) == {"kernel": pytest.approx(1e-8)}


def test_the_next_step_first_scales_a_lifted_row_back_to_its_radius():
    params = {"kernel": jnp.full((4, 3), 2.0)}
    first_only = optax.sgd(lambda step: jnp.where(jnp.asarray(step) < 1, 1.0, 0.0))
    tx = tpgm_jax.ftp(first_only, memory="compact", initial_radius=1e-8)
    step, state = make_step(tx), tx.init(params)
    for _ in range(2):
        params, state = step(params, state, {"kernel": jnp.full((4, 3), -1.0)})
    # Without an update the displacement remains. Its norm is 1e-8, not the floor of 2^-12. The
    # gradient asks for a radius of 1e-2, which cannot exceed that norm plus 1e-8. Both sums and the
    # ratio that scales the row are rounded in float32, each by 6e-8 of it.
    assert tpgm_jax.radii(state, params)["kernel"] == pytest.approx(2e-8, rel=1e-6)


def test_a_row_inside_the_ball_is_not_lifted_to_its_floor():
    # The radius, 1e-4, is below the floor of 2^-12. One of the two rows moves less than the radius.
    params = {"kernel": jnp.full((4, 2), 2.0)}
    tx = tpgm_jax.ftp(optax.sgd(1.0), memory="compact", initial_radius=1e-4)
    step, state = make_step(tx), tx.init(params)
    near = 2.0**-20  # the move of each weight, four spacings of float32 numbers above 2
    moved, state = step(params, state, {"kernel": jnp.tile(jnp.array([-1.0, -near]), (4, 1))})
    again, _ = step(moved, state, {"kernel": jnp.zeros((4, 2))})
    np.testing.assert_array_equal(moved["kernel"][:, 1] - 2.0, near)
    np.testing.assert_array_equal(again["kernel"][:, 1], moved["kernel"][:, 1])


def test_weights_changed_between_steps_are_not_mistaken_for_lifted_rows():
    # The radius of 1 is above the floor, so a step starts from the weights as they are.
    def after_two_steps(memory):
        params = {"kernel": jnp.ones((4, 3))}
        tx = tpgm_jax.ftp(optax.sgd(1.0), memory=memory, initial_radius=1.0)
        _, state = make_step(tx)(params, tx.init(params), {"kernel": -jnp.ones((4, 3))})
        away = {"kernel": params["kernel"] + jnp.array([[0.1, 2.0, -5.0]])}
        sideways = {"kernel": jnp.tile(jnp.array([[1.0], [-1.0]]), (2, 3))}
        return make_step(tx)(away, state, sideways)[0]["kernel"]

    # Numbers up to 5, rounded a few times by 2^-22.
    np.testing.assert_allclose(
        after_two_steps("compact"), after_two_steps("full"), rtol=0, atol=5e-6
    )


def reference_norms(x, norm):
    """Norms of the rows of a kernel, in NumPy and float64."""
    x = np.asarray(x, np.float64)
    return np.abs(x).sum(axis=0) if norm == "mars" else np.sqrt(np.square(x).sum())


@each_norm
@pytest.mark.parametrize("initial_radius", [1e-8, 0.05])  # below the floor, and above it
def test_the_state_determines_the_distance_of_rows_from_the_anchor(norm, initial_radius):
    anchor = random_tree({"kernel": (20, 7)}, 0)
    tx: Any = tpgm_jax.ftp(
        optax.adam(1e-2), memory="compact", norm=norm, initial_radius=initial_radius
    )
    state: Any = tx.init(anchor)
    step, params = make_step(tx), anchor
    for t in range(5):
        params, state = step(params, state, random_tree({"kernel": (20, 7)}, t + 1))
        (size,), (n,) = ([np.ravel(x) for x in f] for f in (state.anchor_norms, state.row_norms))
        np.testing.assert_allclose(size, reference_norms(anchor["kernel"], norm), rtol=1e-6)
        expected = np.minimum(n, np.maximum(float(state.radii[0]), 256 * 2.0**-23 * size))
        actual = reference_norms(np.float64(params["kernel"]) - np.float64(anchor["kernel"]), norm)
        # Weights up to 2 are rounded by 2^-24 of that: 20 of them by up to 2.4e-6.
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2.4e-6)


@pytest.mark.parametrize("source", ["init", "argument", "zero"])
def test_set_anchor_measures_the_rows_of_the_new_anchor(source):
    params = {"kernel": jnp.full((4, 3), 2.0)}
    tx: Any = tpgm_jax.ftp(optax.sgd(1.0), memory="compact", anchor=source)
    state: Any = tx.init(params)
    scale = 0 if source == "zero" else 1
    np.testing.assert_array_equal(state.anchor_norms[0], np.full((1, 1, 3), scale * 8.0))
    new = {"kernel": jnp.tile(jnp.array([1.0, -5.0, 0.0]), (4, 1))}
    state = tpgm_jax.set_anchor(state, new)
    np.testing.assert_array_equal(state.anchor_norms[0], scale * np.array([[[4.0, 20.0, 0.0]]]))


def test_set_anchor_leaves_a_state_without_tensors():
    # `optax.partition` makes one for a label that no leaf has.
    tx = optax.partition(
        {"move": tpgm_jax.ftp(optax.sgd(1.0), memory="compact"), "freeze": optax.set_to_zero()},
        lambda params: jax.tree.map(lambda _: "freeze", params),
    )
    params = {"kernel": jnp.ones((4, 3))}
    state = tx.init(params)
    again = tpgm_jax.set_anchor(state, params)
    assert jax.tree.structure(again) == jax.tree.structure(state)


def test_the_first_step_starts_from_the_weights_even_away_from_the_anchor():
    anchor, params = {"kernel": jnp.ones((4, 3))}, {"kernel": jnp.full((4, 3), 1.5)}
    tx = tpgm_jax.ftp(optax.sgd(1.0), memory="compact", anchor="argument", initial_radius=9.0)
    step = make_step(tx, anchor=anchor)
    moved, _ = step(params, tx.init(params), {"kernel": jnp.zeros((4, 3))})
    np.testing.assert_array_equal(moved["kernel"], params["kernel"])


def test_the_state_adds_one_anchor_to_the_base_optimizer_state():
    params = random_tree({"kernel": (300, 400)}, 0)

    def size(tx):
        return sum(x.nbytes for x in jax.tree.leaves(tx.init(params)))

    base, one = size(optax.adam(1e-3)), params["kernel"].nbytes
    # Radii, their Adam, counters and fingerprint; and two norms of 400 rows.
    small = 100 + 2 * 400 * 4
    assert size(tpgm_jax.ftp(optax.adam(1e-3), memory="compact")) - base - one < small
    without = tpgm_jax.ftp(optax.adam(1e-3), memory="compact", anchor="argument")
    assert size(without) - base < small


def test_bfloat16_trains_at_least_as_well_as_with_full_memory():
    def final_loss(memory):
        shapes = {"kernel": (32, 8)}
        target = random_tree(shapes, 1, scale=0.2)["kernel"]
        params = random_tree(shapes, 0, dtype=jnp.bfloat16)
        goal = params["kernel"].astype(jnp.float32) + target
        tx = tpgm_jax.ftp(optax.adam(1e-2), memory=memory)
        step, state = make_step(tx), tx.init(params)
        for _ in range(300):
            error = params["kernel"].astype(jnp.float32) - goal
            params, state = step(params, state, {"kernel": error.astype(jnp.bfloat16)})
        return float(jnp.mean((params["kernel"].astype(jnp.float32) - goal) ** 2))

    # The rounding of the weights alone, 2^-8 of numbers up to 2, leaves about 1e-5.
    assert final_loss("compact") <= final_loss("full") + 1e-5


@pytest.mark.parametrize(("memory", "other"), [("compact", "full"), ("full", "compact")])
def test_a_state_of_the_other_memory_is_refused(memory, other):
    params = {"kernel": jnp.ones((4, 3))}
    state = tpgm_jax.ftp(optax.sgd(0.1), memory=other).init(params)
    tx = tpgm_jax.ftp(optax.sgd(0.1), memory=memory)
    with pytest.raises(ValueError, match=f"`memory`: '{other}' in the state and '{memory}' here"):
        tx.update(params, state, params)
