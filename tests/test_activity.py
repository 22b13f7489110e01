"""Statements of docs/active.md on radii, and how `benchmarks/activity_table.py` reads its table."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_step

import tpgm_jax
from benchmarks.activity_table import RUN, medians, movements, pace, reach

RUN_OF = dict(zip(RUN, ("MLP", "300", "0.001", "norm 1e-2"), strict=True))


def test_the_pace_is_the_rows_step_over_the_step_of_its_radius():
    row = RUN_OF | {"row_length": "50", "anchor": "2"}
    assert pace(row) == pytest.approx(50 * 1e-3 / 1e-2)
    # In the anchor's unit the radius steps by 1e-3 times the anchor's size, 2.
    assert pace(row | {"setting": "anchor 1e-3"}) == pytest.approx(50 * 1e-3 / 2e-3)


def test_the_reach_of_weights_that_step_by_the_rate_in_one_direction_is_1():
    # Half of 300 steps of 1e-3, each of 4 weights: 0.15 each, so 0.3 in the l2 norm.
    assert reach(RUN_OF | {"size": "4", "distance": "0.3"}) == pytest.approx(1)


def test_movements_compare_each_run_with_adamw_alone():
    rows = [
        RUN_OF | {"setting": setting, "tensor": tensor, "distance": distance}
        for setting, distances in {"AdamW": ("6", "8"), "norm 1e-2": ("3", "4")}.items()
        for tensor, distance in zip(("kernel", "bias"), distances, strict=True)
    ]
    run = tuple(RUN_OF.values())
    assert movements(rows) == {
        (*run, "kernel"): (3, 6),
        (*run, "bias"): (4, 8),
        (*run, None): pytest.approx((5, 10)),
    }


def test_medians_leave_out_empty_bins():
    x, y = medians(np.array([1.1, 1.2, 1.3, 100.1]), np.array([3.0, 5.0, 4.0, 7.0]))
    np.testing.assert_allclose(x, [10 ** (1 / 6), 10 ** (13 / 6)])
    np.testing.assert_allclose(y, [4, 7])


def test_a_radius_falls_by_its_step_at_once_and_climbs_as_fast_as_the_weights_move():
    tx = tpgm_jax.ftp(optax.adamw(1e-4))
    step, params = make_step(tx), {"bias": jnp.zeros(8)}
    state, radii = tx.init(params), []
    # Out, then back with larger gradients, which the radius optimizer's momentum follows sooner.
    for gradient in [-1.0] * 60 + [10.0] * 10:
        params, state = step(params, state, {"bias": jnp.full(8, gradient)})
        radii.append(float(state.radii[0]))
    steps = np.diff(radii)
    assert steps.min() < -1e-2
    # AdamW moves each of 8 weights by its rate. The decay adds 1e-4 of the weight: 1e-6 of a step.
    assert steps.max() == pytest.approx(8e-4, rel=1e-4)


@pytest.mark.parametrize("each_row", [False, True])
def test_a_row_read_once_moves_only_if_it_shares_its_radius(each_row):
    axes = {".*embedding": tpgm_jax.Axes(rows=(), layers=0)} if each_row else None
    tx = tpgm_jax.ftp(optax.adam(1e-3), axes=axes)
    step, params = make_step(tx), {"embedding": jnp.ones((3, 8))}
    state = tx.init(params)
    for t in range(40):
        read = 1 if t == 20 else 0  # row 2 never
        params, state = step(params, state, {"embedding": jnp.zeros((3, 8)).at[read].set(-1.0)})
    moved = np.abs(params["embedding"] - 1).sum(axis=1)
    assert moved[0] > 0.1
    assert moved[2] == 0
    assert (moved[1] > 0.01) == (not each_row)
