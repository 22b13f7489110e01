"""Schedules in place of numbers: when they are evaluated, and with which effect."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_update
from transforms import assert_close, numbers, run

from tpgm_jax import add_anchor_decay, ftp, project_to_anchor, spd, tpgm


@pytest.mark.parametrize(
    ("constant", "schedule"),
    [
        (ftp(optax.adam(0.1), k=0.5), ftp(optax.adam(0.1), k=optax.constant_schedule(0.5))),
        (project_to_anchor(0.5), project_to_anchor(optax.constant_schedule(0.5))),
        (add_anchor_decay(0.5), add_anchor_decay(optax.constant_schedule(0.5))),
        (
            spd(optax.sgd(0.6, momentum=0.9), strength=0.5),
            spd(optax.sgd(0.6, momentum=0.9), strength=optax.constant_schedule(0.5)),
        ),
        (
            tpgm(optax.sgd(0.1), radius_optimizer=optax.adam(0.02)),
            tpgm(
                optax.sgd(optax.constant_schedule(0.1)),
                radius_optimizer=optax.adam(optax.constant_schedule(0.02)),
            ),
        ),
    ],
    ids=["k", "radius", "weight", "strength", "learning rates"],
)
def test_a_constant_schedule_equals_the_constant(constant, schedule, x64):
    assert_close(run(schedule, numbers())[0], run(constant, numbers())[0])


def test_a_schedule_is_evaluated_at_the_number_of_previous_updates():
    radii = jnp.array([0.25, 1.0, 0.5])  # exact in float32, like all numbers below
    tx = project_to_anchor(lambda step: radii[jnp.asarray(step)])
    params: Any = {"bias": jnp.zeros(1)}
    state, update = tx.init(params), make_update(tx)
    for radius in radii:
        updates, state = update({"bias": jnp.full(1, 16.0)}, state, params)
        params = optax.apply_updates(params, updates)
        assert params["bias"] == radius


def test_a_schedule_of_k_switches_between_constants(x64):
    def learn(tx, params, state, seeds):
        update = make_update(tx)
        for seed in seeds:
            updates, state = update(numbers(seed), state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    full, none = ftp(optax.sgd(0.1), k=1.0), ftp(optax.sgd(0.1), k=0.0)
    scheduled = ftp(optax.sgd(0.1), k=lambda step: jnp.where(jnp.asarray(step) < 4, 1.0, 0.0))
    # Some radii are pushed down just before the switch, and some just after it.
    params = numbers()
    received = learn(scheduled, params, scheduled.init(params), range(6))
    switched = learn(full, params, full.init(params), range(4))
    assert_close(received, learn(none, *switched, range(4, 6)))


ARGUMENTS: Any = {
    "k": lambda k: ftp(optax.adam(0.1), k=k),
    "radius": project_to_anchor,
    "weight": add_anchor_decay,
    "strength": lambda strength: spd(optax.sgd(0.6, momentum=0.9), strength=strength),
}
# Values that no step may use, and the nearest that it may. 0 is not a constant radius.
WRONG = [("k", 1.5, 1.0), ("k", -1.0, 0.0), ("weight", -1.0, 0.0), ("strength", -1.0, 0.0)]


@pytest.mark.parametrize(("name", "wrong", "bound"), WRONG)
def test_a_schedule_out_of_range_raises_if_it_can_be_read_and_else_counts_as_the_bound(
    name, wrong, bound, x64
):
    make = ARGUMENTS[name]
    for initial in (wrong, jnp.nan):
        with pytest.raises(ValueError, match=rf"`{name}\(0\)` must be .*; got {initial}"):
            make(lambda step, x=initial: x).init(numbers())
    later = make(lambda step: jnp.where(jnp.asarray(step) < 1, bound, wrong))
    state, params = later.init(numbers()), numbers()
    _, state = later.update(numbers(1), state, params)
    with pytest.raises(ValueError, match=rf"`{name}\(1\)` must be .*; got {wrong}"):
        later.update(numbers(2), state, params)
    assert_close(run(later, params)[0], run(make(bound), params)[0])


def test_a_schedule_of_radii_below_zero_ends_at_the_anchor():
    tx = project_to_anchor(optax.linear_schedule(1.0, -1.0, 4))
    params: Any = {"bias": jnp.array([3.0, 1.0])}
    state, update = tx.init(params), make_update(tx)
    moved: Any = params
    for radius in (1.0, 0.5, 0.0, 0.0, 0.0):
        updates, state = update({"bias": jnp.full(2, 16.0)}, state, moved)
        moved = optax.apply_updates(moved, updates)
        # Each of two sums rounds numbers up to 16 by half an ulp.
        np.testing.assert_allclose(moved["bias"] - params["bias"], radius / 2, atol=4e-6)


@pytest.mark.parametrize("make", ARGUMENTS.values(), ids=ARGUMENTS)
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (jnp.ones(3), ValueError, r"must be one number; got an array of shape \(3,\)"),
        (None, TypeError, "must be a number; got None"),
        ("a", TypeError, "must be a number; got 'a'"),
    ],
)
def test_a_schedule_must_return_one_number(make, value, error, message):
    tx = make(lambda step: value)
    with pytest.raises(error, match=message):
        jax.jit(tx.init)(numbers())
    with pytest.raises(error, match=message):
        tx.init(numbers())
