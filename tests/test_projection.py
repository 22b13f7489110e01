"""The norms and the radial projection, by hand."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_step, make_update, random_tree

import tpgm_jax
from tpgm_jax._core import ball
from tpgm_jax._core.axes import Tensor

SHAPES = {"gain": (), "bias": (7,), "dense": (5, 7), "conv": (3, 3, 2, 4)}
each_norm = pytest.mark.parametrize("norm", ["mars", "l2"])


def sizes(tree, norm):
    """Norms in NumPy float64, one per row or tensor; rows are on the last axis."""
    found = {}
    for name, x in tree.items():
        rows = np.asarray(x, np.float64).reshape(-1, x.shape[-1] if x.ndim > 1 else 1)
        found[name] = np.abs(rows).sum(0) if norm == "mars" else np.sqrt((rows**2).sum())
    return found


def test_rows_are_projected_one_by_one():
    # Two output units: the first has moved 4, the second 1, and the ball has radius 2.
    params = {"w": jnp.zeros((2, 2))}
    update = {"w": jnp.array([[3.0, 0.5], [1.0, 0.5]])}
    projected, _ = make_step(tpgm_jax.project_to_anchor(2.0))(
        params, tpgm_jax.project_to_anchor(2.0).init(params), update
    )
    np.testing.assert_array_equal(projected["w"], [[1.5, 0.5], [0.5, 0.5]])


def test_the_l2_norm_shrinks_the_whole_tensor():
    # Moved by 3, 0, 0 and 4, which is 5 in all; a ball of 2.5 halves every number.
    params = jnp.ones((2, 2))
    tx = tpgm_jax.project_to_anchor(2.5, norm="l2")
    projected, _ = make_update(tx)(jnp.array([[3.0, 0.0], [0.0, 4.0]]), tx.init(params), params)
    np.testing.assert_array_equal(projected, [[1.5, 0.0], [0.0, 2.0]])


def test_vectors_and_scalars_are_one_row():
    params = {"bias": jnp.zeros(2), "gain": jnp.zeros(())}
    tx = tpgm_jax.project_to_anchor(2.0)
    update = {"bias": jnp.array([3.0, 1.0]), "gain": jnp.array(-8.0)}
    projected, _ = make_update(tx)(update, tx.init(params), params)
    np.testing.assert_array_equal(projected["bias"], [1.5, 0.5])
    np.testing.assert_array_equal(projected["gain"], -2.0)


@each_norm
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_steps_end_inside_the_ball(norm, dtype, scale):
    anchor = random_tree(SHAPES, 0, dtype=dtype)
    updates = random_tree(SHAPES, 1, scale=scale, dtype=dtype)
    tx = tpgm_jax.project_to_anchor(0.5, norm=norm)
    step, params, state = make_step(tx), anchor, tx.init(anchor)
    for sign in (1, -1):  # the second step starts from the far side of the ball
        params, state = step(params, state, jax.tree.map(lambda u, s=sign: s * u, updates))
        distances = {
            name: np.asarray(params[name], np.float64) - np.asarray(anchor[name], np.float64)
            for name in SHAPES
        }
        # The update is rounded to the dtype, by half an ulp of a number up to the radius,
        # and its sum with the parameters, by half an ulp of at most |anchor| + radius.
        eps = float(jnp.finfo(dtype).eps)
        slack = {
            name: eps * (np.abs(np.asarray(anchor[name], np.float64)) + 0.5) for name in SHAPES
        }
        for name, distance in sizes(distances, norm).items():
            assert np.all(distance <= 0.5 + sizes(slack, norm)[name]), name


@each_norm
def test_an_update_inside_the_ball_is_returned_up_to_rounding(norm):
    anchor, moves = random_tree(SHAPES, 0), random_tree(SHAPES, 1, scale=1e-3)
    params = jax.tree.map(jnp.add, anchor, moves)
    updates = random_tree(SHAPES, 2, scale=1e-4)
    tx = tpgm_jax.project_to_anchor(0.5, norm=norm)
    projected, _ = make_update(tx)(updates, tx.init(anchor), params)
    for name, update in updates.items():
        # Three roundings, each by half an ulp of a number no larger than |W - W0| + |u|.
        size = np.abs(params[name] - anchor[name]) + np.abs(update)
        np.testing.assert_array_less(np.abs(projected[name] - update), 1.8e-7 * size)


def test_a_tiny_radius_bounds_a_huge_update():
    # `u - (1 - ratio) * d` would be off by 2e-3 here: 4e4 times float32's 6e-8.
    params = jnp.full((3, 2), 0.25)
    tx = tpgm_jax.project_to_anchor(1e-8)
    projected, _ = make_update(tx)(jnp.full((3, 2), 4e4), tx.init(params), params)
    np.testing.assert_allclose(projected, 1e-8 / 3, rtol=1e-6)


@each_norm
def test_slopes_at_the_anchor_are_finite(norm):
    tensor = Tensor("w", (3, 2), rows=(1,), layers=())

    def projected(d, radius):
        n = ball.norms(d, tensor, norm) + ball.EPSILON
        return jnp.sum(ball.shrinkage(radius, n) * d)

    for radius in (1e-8, 1.0, 1e30):
        slopes = jax.grad(projected, argnums=(0, 1))(jnp.zeros((3, 2)), jnp.array(radius))
        for slope in slopes:
            assert np.all(np.isfinite(slope))


@pytest.mark.parametrize("norm", ["mars", "l2"])
def test_the_norm_of_an_unmoved_tensor_is_zero(norm):
    tensor = Tensor("w", (3, 2), rows=(1,), layers=())
    np.testing.assert_array_equal(ball.norms(jnp.zeros((3, 2)), tensor, norm), 0.0)


def test_the_slope_at_the_radius_equals_the_slope_outside_the_ball():
    slope = jax.grad(ball.shrinkage)(jnp.array(4.0), jnp.array(4.0))
    assert slope == 0.25
    assert jax.grad(ball.shrinkage)(jnp.array(4.0), jnp.array(3.9)) == 0


def test_a_radius_may_be_a_schedule():
    tx = tpgm_jax.project_to_anchor(optax.linear_schedule(1.0, 3.0, transition_steps=2))
    step, params = make_step(tx), jnp.zeros(2)
    state, reached = tx.init(params), []
    for _ in range(3):
        params, state = step(params, state, jnp.array([8.0, 0.0]))
        reached.append(float(params[0]))
    # 1e-8 in the denominator vanishes next to a norm of 8 or more.
    assert reached == [1.0, 2.0, 3.0]


def test_half_precision_is_measured_in_float32():
    # 257 weights that moved by 1 each: bfloat16 has 256 and 258, and no number between.
    params = jnp.zeros((257, 1), jnp.bfloat16)
    tx = tpgm_jax.project_to_anchor(1.0)
    projected, _ = make_update(tx)(jnp.ones_like(params), tx.init(params), params)
    np.testing.assert_array_equal(projected, jnp.full_like(params, 1 / 257))
    assert jnp.bfloat16(1 / 257) != jnp.bfloat16(1 / 256)


@pytest.mark.parametrize(
    "make", [tpgm_jax.ftp, functools.partial(tpgm_jax.ftp, memory="compact"), tpgm_jax.tpgm]
)
def test_a_step_in_half_precision_is_added_in_float32(make):
    # Each weight goes from 1 to 1 - 2^-9, half-way between two bfloat16 numbers. Rows have 4.
    params = {"kernel": jnp.ones((4, 2), jnp.bfloat16)}
    tx = make(optax.sgd(2.0**-9), anchor="zero")
    held_out: Any = {"held_out_loss": lambda params: jnp.sum(params["kernel"])}
    # Not compiled, because XLA may leave out a rounding to bfloat16 and back.
    _, state = tx.update(params, tx.init(params), params, **held_out)
    np.testing.assert_array_equal(state.row_norms[0], np.full((1, 1, 2), 4 - 2.0**-7))


def test_projected_weights_are_rounded_to_bfloat16():
    # Between 0.5 and 1 the numbers of bfloat16 are 2^-8 apart: 0.5 + 0.1 becomes 154 / 256.
    params = jnp.full((1,), 0.5, jnp.bfloat16)
    tx = tpgm_jax.project_to_anchor(0.1)
    moved, _ = make_step(tx)(params, tx.init(params), jnp.full((1,), 3.0, jnp.bfloat16))
    assert float(moved[0]) == 154 / 256
