"""The verdict and the notes of a report: tensors that are held back, free, or suspicious."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_step
from test_report import BASE, METHODS, report, run, slopes
from transforms import PARTS, numbers

from tpgm_jax import ftp, tpgm


def test_a_row_beyond_its_radius_is_pointed_out():
    params, state, _ = run(METHODS["ftp"])
    assert not any(group.beyond for group in report(state, params).groups)
    found = report(state._replace(radii=0.99 * state.radii), params)
    assert all(group.beyond for group in found.groups)
    assert "5 beyond their radius" in str(found)


def test_nothing_is_pulled_back_before_the_first_update():
    params = numbers(dtype=jnp.float32)
    for make in (ftp, tpgm):
        for group in report(make(BASE, **PARTS).init(params), params).groups:
            assert (group.radius, group.distance, group.pulled_back) == (0.0, 0.0, 0.0)


def test_a_step_that_no_radius_holds_back_is_reported_as_free():
    # With `k=0` no radius is pushed down, and steps of 1e-4 are shorter than the radii grow. Then
    # the weights equal the weights of SGD without its first step.
    params, grads = numbers(dtype=jnp.float32), slopes(5)
    tx, start = ftp(optax.sgd(1e-4), k=0.0, **PARTS), params
    step, state = make_step(tx), tx.init(params)
    for _ in range(5):
        params, state = step(params, state, grads)
    found = report(state, params)
    assert {group.pulled_back for group in found.groups} == {0.0}
    assert "constrains 0 of 3 tensors; 3 move freely" in str(found)
    assert found.scalars()["constrained"] == 0
    moved = jax.tree.map(lambda w, w0: w - w0, params, start)
    # Four steps, each rounded to the spacing of floats around weights below 4.
    atol = 4 * 2**-22
    np.testing.assert_allclose(moved["gain"], -4e-4 * grads["gain"], rtol=1e-3, atol=atol)


def test_pulled_back_rows_are_counted_among_the_rows_that_moved():
    # A batch hits two of the five tokens of an embedding, one a thousand times as hard.
    params, tx = {"embedding": jnp.ones((5, 4))}, ftp(optax.sgd(0.1))
    grads = {"embedding": jnp.zeros((5, 4)).at[0].set(1.0).at[3].set(1e-3)}
    step, state = make_step(tx), tx.init(params)
    for _ in range(4):
        params, state = step(params, state, grads)
    (group,) = report(state, params).groups
    assert (group.rows, group.pulled_back) == (5, 0.5)


def test_the_radius_in_the_unit_of_the_anchor_is_the_same_for_both_units():
    rng = np.random.default_rng(0)
    w0 = {"kernel": rng.normal(size=(6, 4)), "bias": np.zeros(4)}
    # By hand: a row of the kernel is as large as its mean row, a bias as 4 typical weights.
    row = np.abs(w0["kernel"]).sum(0).mean()
    sizes = {"kernel": row, "bias": 4 * np.abs(w0["kernel"]).mean()}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), w0)
    for unit in ("norm", "anchor"):
        state: Any = ftp(BASE, unit=unit).init(params)
        state = state._replace(radii=jnp.array([0.5, 2.0]))
        for group in report(state, params).groups:
            # Sums of 24 float32 numbers.
            assert group.relative == pytest.approx(group.radius / sizes[group.name], rel=24 * 6e-8)


def test_suspicious_numbers_are_noted():
    params = {"body": {"kernel": jnp.ones((3, 2))}, "head": {"kernel": jnp.full((3, 2), 1e-4)}}
    grads, tx = jax.tree.map(jnp.ones_like, params), ftp(optax.sgd(1.0))
    step, state = make_step(tx), tx.init(params)
    start, bad = params, jax.tree.map(lambda x: x * jnp.nan, grads)
    for gradient in (grads, bad, grads):
        params, state = step(params, state, gradient)
    notes = report(state, params).notes
    assert any(x.startswith("1 steps were skipped and 2 made") for x in notes)
    assert any(x.startswith("head/kernel: starts near zero") for x in notes)
    unmoved = report(state, start).notes
    assert any(x.startswith("no tensor has moved from its anchor") for x in unmoved)
    assert not report(tx.init(start), start).notes
