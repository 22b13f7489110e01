"""Schedules in place of numbers: when they are evaluated, and with which effect."""

from typing import Any

import jax.numpy as jnp
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
