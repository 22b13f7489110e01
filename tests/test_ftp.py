"""FTP beyond parity: the hyper-gradient, the first step, and the options."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_step, make_update, random_tree

import tpgm_jax
from tpgm_jax._core.axes import make_layout
from tpgm_jax._core.ball import EPSILON, norms, shrinkage
from tpgm_jax._core.displacement import stored_displacement
from tpgm_jax._core.problem import Problem
from tpgm_jax._core.spec import Spec
from tpgm_jax._methods.ftp import hyper_gradient

SHAPES = {"bias": (4,), "dense": (3, 4), "layers": (2, 3, 4)}
AXES = {"layers": tpgm_jax.Axes(layers=0)}


def sizes(c, norm):
    """`N(c)` of "bias", "dense" and each layer of "layers", in NumPy, row by row."""
    tensors = [c["bias"][:, None], c["dense"], *c["layers"]]
    if norm == "l2":
        return [np.sqrt(np.sum(np.square(x), keepdims=True)) + 1e-8 for x in tensors]
    return [np.sum(np.abs(x), axis=0, keepdims=True) + 1e-8 for x in tensors]


def hyper_gradient_of(g, c, radii, norm):
    """`hyper_gradient` of trees, `[G]`. It does not depend on the parameters."""
    layout = make_layout(c, axes=AXES)
    leaves = [layout.constrained(tree) for tree in (g, c)]
    spec = Spec(norm, "norm", "full", "init", layout)
    problem = Problem(spec, g, c, leaves[0], leaves[1], leaves[1])
    previous = stored_displacement(problem, c, problem.norms(leaves[1]))
    return problem.gather(hyper_gradient(problem, previous))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("norm", ["mars", "l2"])
def test_hyper_gradient_equals_closed_form_and_central_differences(norm):
    g, c = random_tree(SHAPES, 0), random_tree(SHAPES, 1)
    # Radii between the norms, so that some rows are inside the ball. The published hyper-gradient
    # includes these rows too.
    radii = jnp.array([2.0, 2.5, 2.5, 2.0])
    h = hyper_gradient_of(g, c, radii, norm)

    g, c = jax.tree.map(np.asarray, (g, c))
    gs = [g["bias"][:, None], g["dense"], *g["layers"]]
    cs = [c["bias"][:, None], c["dense"], *c["layers"]]
    axis = None if norm == "l2" else 0
    closed = [
        np.sum(np.sum(g_i * c_i, axis=axis, keepdims=True) / n_i)
        for g_i, c_i, n_i in zip(gs, cs, sizes(c, norm), strict=True)
    ]
    # A dozen float64 roundings of numbers of order 1.
    np.testing.assert_allclose(h, closed, rtol=0, atol=1e-14)

    def loss(r, g_i, c_i, n_i):
        """Linear model of the loss at the displacement, rescaled to the norm `r`."""
        return np.sum(g_i * (r / n_i) * c_i)

    step = 1e-4
    differences = [
        (loss(r + step, *x) - loss(r - step, *x)) / (2 * step)
        for r, *x in zip(np.asarray(radii), gs, cs, sizes(c, norm), strict=True)
    ]
    # The loss is linear in r, so only rounding is left: 1e-15 for numbers up to 10, divided by the
    # step of 2e-4.
    np.testing.assert_allclose(h, differences, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("x64")
def test_the_hyper_gradient_is_the_derivative_of_the_loss_through_the_projection():
    # A real loss of the projected weights: its gradient there, given to FTP, must yield the
    # loss's own derivative in the radius (all rows are outside the ball).
    anchor, c, target = (random_tree({"w": (3, 4)}, seed)["w"] for seed in range(3))
    n = norms(c, make_layout({"w": c}).tensors[0], "mars") + EPSILON

    def loss(w):
        return jnp.sum(jnp.sin(w - target) ** 2)

    def projected(r):
        return anchor + shrinkage(r, n) * c

    radius = jnp.min(n) / 2
    grads = {"w": jax.grad(loss)(projected(radius))}
    layout = make_layout({"w": c})
    spec = Spec("mars", "norm", "full", "init", layout)
    problem = Problem(spec, grads, {"w": c}, [grads["w"]], [c], [c])
    previous = stored_displacement(problem, {"w": c}, problem.norms([c]))
    (h,) = hyper_gradient(problem, previous)
    np.testing.assert_allclose(h.item(), jax.grad(lambda r: loss(projected(r)))(radius), rtol=1e-12)


def test_the_first_update_ends_at_the_initial_radius_and_the_base_state_advances():
    params = {"w": jnp.ones((2, 3))}
    tx = tpgm_jax.ftp(optax.adam(1e-2), initial_radius=1e-3)
    moved, state = make_step(tx)(params, tx.init(params), {"w": jnp.ones((2, 3))})
    # Adam's first step is 1e-2 for every number, a row's norm 2e-2; the ball allows 1e-3.
    np.testing.assert_allclose(moved["w"], 1 - 5e-4, rtol=0, atol=1.2e-7)  # two ulps of 1
    assert tpgm_jax.radii(state, params) == {"w": pytest.approx(1e-3)}
    assert optax.tree.get(state, "step") == 1
    np.testing.assert_allclose(optax.tree.get(state, "base_state")[0].mu["w"], 0.1, rtol=1e-6)


def push_back(k):
    """The radius after 20 steps outwards, and after 20 more whose gradient points back.

    These last steps do not move the weights, because their learning rate is 0.
    """
    params = {"w": jnp.zeros((4, 3))}
    rate = optax.piecewise_constant_schedule(0.1, {20: 0.0})
    tx = tpgm_jax.ftp(optax.sgd(rate), k=k)
    step, state, furthest = make_step(tx), tx.init(params), 0.0
    for t in range(40):
        grads = {"w": jnp.full((4, 3), -1.0 if t < 20 else 1.0)}
        params, state = step(params, state, grads)
        if t == 19:
            furthest = tpgm_jax.radii(state, params)["w"]
    return furthest, tpgm_jax.radii(state, params)["w"]


def test_k_scales_how_far_a_radius_is_pushed_down():
    (furthest, full), (same, none) = push_back(1.0), push_back(0.0)
    # On the way out no gradient pushes a radius down, so `k` only changes the rounding of 20 steps.
    assert furthest == pytest.approx(same, rel=20 * 2.4e-7)
    assert full < 0.7 * furthest
    # Adam's momentum would increase the radius further, but the largest norm bounds it. Each of 20
    # projections rounds by an ulp or two.
    assert none == pytest.approx(furthest, rel=20 * 2.4e-7)


def test_k_may_be_a_schedule():
    at_first, late = optax.constant_schedule(1.0), optax.piecewise_constant_schedule(1.0, {20: 0.0})
    # Forty steps in two programs, which may round differently.
    assert push_back(at_first) == pytest.approx(push_back(1.0), rel=40 * 2.4e-7)
    assert push_back(late) == pytest.approx(push_back(0.0), rel=40 * 2.4e-7)


def test_any_optimizer_may_move_the_radii():
    # Plain gradient descent: r_t = r_{t-1} - 0.1 h. With g = -1 and c > 0 each row's slope is
    # -1 in the L1 norm, two rows give h = -2, and two steps 0.4; the first step has no h.
    params = {"w": jnp.zeros((3, 2))}
    tx = tpgm_jax.ftp(optax.sgd(1.0), radius_optimizer=optax.sgd(0.1))
    step, state = make_step(tx), tx.init(params)
    for _ in range(3):
        params, state = step(params, state, {"w": jnp.full((3, 2), -1.0)})
    np.testing.assert_allclose(tpgm_jax.radii(state, params)["w"], 0.4, rtol=1e-6)


def test_the_optimizer_of_the_radii_starts_from_the_initial_radius():
    # It stores the parameters it receives, as Polyak averaging and schedule-free methods do.
    def keep(updates, state, params=None) -> Any:
        return updates, (*state[1:], params)

    watcher = optax.GradientTransformation(lambda params: (params, params), keep)
    params = {"w": jnp.zeros((3, 2))}
    tx = tpgm_jax.ftp(optax.sgd(1.0), radius_optimizer=watcher, initial_radius=0.25)
    _, state = make_step(tx)(params, tx.init(params), {"w": jnp.ones((3, 2))})
    for seen in state.radius_state:
        np.testing.assert_array_equal(seen, [0.25])


def test_a_radius_is_bounded_by_the_largest_norm():
    params = {"w": jnp.zeros((3, 2))}
    tx = tpgm_jax.ftp(optax.sgd(0.001), radius_optimizer=optax.sgd(100.0))
    step, state = make_step(tx), tx.init(params)
    grads = {"w": jnp.array([[-1.0, -3.0]] * 3)}
    for _ in range(2):
        params, state = step(params, state, grads)
    # The second column moves by three times 0.003 a step, but hardly at all in the first.
    np.testing.assert_allclose(tpgm_jax.radii(state, params)["w"], 0.009, rtol=1e-5)


def test_excluded_leaves_get_the_base_update_bit_for_bit():
    params = random_tree(SHAPES, 0, dtype=jnp.float32)
    base = optax.adamw(1e-2)
    tx = tpgm_jax.ftp(base, exclude="bias")
    state, plain = tx.init(params), base.init(params)
    for t in range(3):
        grads = random_tree(SHAPES, 10 + t, dtype=jnp.float32)
        updates, state = make_update(tx)(grads, state, params)
        expected, plain = make_update(base)(grads, plain, params)
        np.testing.assert_array_equal(updates["bias"], expected["bias"])
        assert not np.array_equal(updates["dense"], expected["dense"])
    assert jax.tree.leaves(optax.tree.get(state, "anchor")["bias"]) == []
    assert jax.tree.leaves(optax.tree.get(state, "displacement")["bias"]) == []


def test_stacked_layers_equal_separate_layers():
    stacked = random_tree({"layers": (3, 4, 5)}, 0, dtype=jnp.float32)
    tx = tpgm_jax.ftp(optax.adam(1e-2), axes={"layers": tpgm_jax.Axes(layers=0)})
    apart_tx = tpgm_jax.ftp(optax.adam(1e-2))

    def split(tree):
        return {f"layer_{i}": x for i, x in enumerate(tree["layers"])}

    apart = split(stacked)
    state, apart_state = tx.init(stacked), apart_tx.init(apart)
    step, apart_step = make_step(tx), make_step(apart_tx)
    for t in range(10):
        grads = random_tree({"layers": (3, 4, 5)}, 10 + t, dtype=jnp.float32)
        stacked, state = step(stacked, state, grads)
        apart, apart_state = apart_step(apart, apart_state, split(grads))
    for name, layer in split(stacked).items():
        # Sums of 4 numbers below 1, maybe in another order: an ulp or two of 1 a step.
        np.testing.assert_allclose(layer, apart[name], rtol=0, atol=10 * 2.4e-7)
    np.testing.assert_allclose(
        tpgm_jax.radii(state, stacked)["layers"],
        list(tpgm_jax.radii(apart_state, apart).values()),
        rtol=1e-5,
    )


@pytest.mark.usefixtures("x64")
def test_a_schedule_of_k_in_float64_leaves_the_types_of_the_state_alone():
    params = {"kernel": jnp.ones((3, 2), jnp.float32)}
    tx = tpgm_jax.ftp(optax.sgd(0.1), k=lambda step: jnp.asarray(0.5, jnp.float64))
    state = tx.init(params)
    _, after = tx.update(params, state, params)
    assert jax.tree.map(jnp.result_type, after) == jax.tree.map(jnp.result_type, state)


@pytest.mark.usefixtures("x64")
def test_float64_parameters_keep_their_precision_beside_an_anchor_of_fewer_bits():
    # Inside the ball the update is the base optimizer's. Worked by hand: -0.1 for each number.
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.normal(size=(3, 2)))}
    tx: Any = tpgm_jax.ftp(optax.sgd(0.1), initial_radius=100.0, anchor_dtype=jnp.float32)
    updates, _ = tx.update({"kernel": jnp.ones((3, 2))}, tx.init(params), params)
    # A few float64 roundings of numbers of about 1.
    np.testing.assert_allclose(updates["kernel"], -0.1, rtol=1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("memory", ["full", "compact"])
@pytest.mark.parametrize("norm", ["mars", "l2"])
@pytest.mark.parametrize("initial_radius", [1e-9, 1e-8, 1.0])
def test_skipped_steps_leave_no_trace_in_the_radii(initial_radius, norm, memory):
    # Without a state of their own, both optimizers only see the steps that are made.
    tx = tpgm_jax.ftp(
        optax.sgd(0.1),
        initial_radius=initial_radius,
        radius_optimizer=optax.sgd(1e-2),
        norm=norm,
        memory=memory,
        axes=AXES,
    )
    step, anchor = make_step(tx), jax.tree.map(jnp.zeros_like, random_tree(SHAPES, 0))

    def learn(order):
        params, state, radii = anchor, tx.init(anchor), []
        for t in order:
            # In one direction, so that radii grow, and all rows but the largest are in the ball.
            grads = jax.tree.map(lambda x, t=t: t * 0.1 + 1 + 0.5 * x, random_tree(SHAPES, 7))
            bad = jax.tree.map(lambda x: x * jnp.nan, grads)
            params, state = step(params, state, grads if t else bad)
            radii += [state.radii] if t else []
        return np.stack(radii)

    # The anchor is 0, so `W` keeps the direction at any radius. `W - W0` rounds by 1e-16, and so
    # does `n`, whose `1e-8` is at most ten times as large as a radius. Where a row is pulled back,
    # `N(c) + 1e-8` is `r` only up to 1e-8 over norms of some 0.1.
    clean = learn([1, 2, 3, 4])
    assert np.all(clean[1:] > clean[:1]) == (initial_radius < 1)
    np.testing.assert_allclose(learn([1, 0, 2, 0, 0, 3, 0, 4]), clean, rtol=1e-6)


def test_a_tiny_first_radius_outlives_a_skipped_step():
    # In float32 1e-17 is lost beside the 1e-8 that is added to norms, and 0 would divide.
    params = {"kernel": jnp.zeros((3, 2))}
    tx: Any = tpgm_jax.ftp(optax.sgd(0.1), initial_radius=1e-17)
    step, state = make_step(tx), tx.init(params)
    for size in (-1.0, jnp.nan, -1.0, -1.0):
        params, state = step(params, state, {"kernel": jnp.full((3, 2), size)})
    assert (int(state.step), int(state.skipped)) == (3, 1)
    # The first of Adam's steps adds 1e-2, and the second less, because the gradient keeps its
    # sign.
    assert np.all(state.radii > 1e-2)


@pytest.mark.parametrize("memory", ["full", "compact"])
def test_a_skipped_first_step_away_from_the_anchor_has_no_effect(memory):
    # A divisor near 0 in place of the displacement's norm would make this slope overflow.
    params, anchor = (random_tree({"kernel": (4, 3)}, seed) for seed in (0, 1))
    tx: Any = tpgm_jax.ftp(optax.sgd(1e-31), memory=memory, anchor="argument", initial_radius=9.0)
    step, state = make_step(tx, anchor=anchor), tx.init(params)
    grads = {"kernel": jnp.full((4, 3), 1e30)}
    expected = step(params, state, grads)
    bad = {"kernel": jnp.full((4, 3), jnp.nan)}
    moved, after = step(*step(params, state, bad), grads)
    assert (int(after.step), int(after.skipped)) == (1, 1)
    np.testing.assert_array_equal(moved["kernel"], expected[0]["kernel"])
