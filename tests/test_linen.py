"""`tpgm_jax.linen.TrainState` against loops written by hand, and against Flax's own."""

import importlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import random_tree
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training import train_state

import tpgm_jax
from tpgm_jax.linen import TrainState

SHAPES = {"kernel": (4, 3), "bias": (3,)}
PARAMS = random_tree(SHAPES, seed=0)
TRAINING, HELD_OUT = random_tree(SHAPES, seed=1), random_tree(SHAPES, seed=2)
STEPS = 3


class StateWithStatistics(TrainState):
    batch_stats: Any


def loss(params, target):
    """Quadratic, with its minimum at `target`: training and held-out data pull differently."""
    return sum(jnp.sum((params[name] - target[name]) ** 2) for name in SHAPES)


def held_out_loss(params):
    return loss(params, HELD_OUT)


def create(tx, params=PARAMS, kind=TrainState, **fields):
    return kind.create(apply_fn=None, params=params, tx=tx, **fields)


def apply(state):
    grads = jax.grad(loss)(state.params, TRAINING)
    return state.apply_gradients(grads=grads, extra_args={"held_out_loss": held_out_loss})


def by_hand(tx, **extra_args):
    """Parameters and state of a loop without a `TrainState`."""

    @jax.jit
    def step(params, opt_state):
        grads = jax.grad(loss)(params, TRAINING)
        updates, opt_state = tx.update(grads, opt_state, params, **extra_args)
        return optax.apply_updates(params, updates), opt_state

    params, opt_state = PARAMS, tx.init(PARAMS)
    for _ in range(STEPS):
        params, opt_state = step(params, opt_state)
    return params, opt_state


def run(state):
    step = jax.jit(apply)
    for _ in range(STEPS):
        state = step(state)
    return state


def assert_equal(received, expected):
    assert jax.tree.structure(received) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, received, expected)


def test_tpgm_learns_bit_for_bit_as_in_a_loop_by_hand():
    tx = tpgm_jax.tpgm(optax.adam(0.1))
    state = run(create(tx))
    assert_equal((state.params, state.opt_state), by_hand(tx, held_out_loss=held_out_loss))
    assert int(state.step) == STEPS
    assert all(radius > 0 for radius in tpgm_jax.radii(state.opt_state, state.params).values())


def test_an_anchor_argument_reaches_the_optimizer():
    tx = tpgm_jax.ftp(optax.adam(0.1), anchor="argument")
    state = create(tx)

    @jax.jit
    def step(state, pretrained):
        grads = jax.grad(loss)(state.params, TRAINING)
        return state.apply_gradients(grads=grads, extra_args={"anchor": pretrained})

    for _ in range(STEPS):
        state = step(state, PARAMS)
    assert_equal((state.params, state.opt_state), by_hand(tx, anchor=PARAMS))


def test_an_optimizer_without_extra_arguments_receives_none():
    sgd = optax.sgd(0.1)

    def update(updates, state, params=None):
        return sgd.update(updates, state, params)

    tx = optax.GradientTransformation(sgd.init, update)
    state = run(create(tx))
    assert_equal((state.params, state.opt_state), by_hand(tx))


@pytest.mark.parametrize("extra_args", [None, {}])
def test_without_extra_arguments_it_equals_flax_s_own(extra_args):
    tx, grads = optax.adam(0.1), random_tree(SHAPES, seed=3)
    flax_state = train_state.TrainState.create(apply_fn=None, params=PARAMS, tx=tx)
    flax_state = flax_state.apply_gradients(grads=grads)
    state = create(tx).apply_gradients(grads=grads, extra_args=extra_args)
    assert_equal((state.params, state.opt_state), (flax_state.params, flax_state.opt_state))
    assert state.step == flax_state.step
    assert state.tx is tx


def recorder():
    """Gradient ascent with rate 1, and a list of the arguments that its `update` received."""
    seen = []

    def init(params):
        return optax.EmptyState()

    def update(updates, state, params=None, **extra_args):
        seen.append({"params": params, **extra_args})
        return updates, state

    return optax.GradientTransformationExtraArgs(init, update), seen


@pytest.mark.parametrize("as_transformation", [False, True])
def test_outermost_multi_steps_passes_arguments_on(as_transformation):
    tx, seen = recorder()
    accumulated: Any = optax.MultiSteps(tx, 2)
    if as_transformation:  # whose type accepts no extra arguments
        accumulated = accumulated.gradient_transformation()
    create(accumulated).apply_gradients(grads=PARAMS, extra_args={"value": 3})
    # Twice, because `MultiSteps` traces both a step and its shape.
    assert [arguments["value"] for arguments in seen] == [3, 3]


def test_one_step_can_replace_fields_and_pass_arguments_on():
    tx, seen = recorder()
    state = create(tx, kind=StateWithStatistics, batch_stats={"mean": 1})
    after = state.apply_gradients(grads=PARAMS, batch_stats={"mean": 2}, extra_args={"value": 3})
    assert seen == [{"params": PARAMS, "value": 3}]
    assert isinstance(after, StateWithStatistics)
    assert after.batch_stats == {"mean": 2}
    assert after.tx is tx
    other = optax.sgd(0.2)
    assert state.apply_gradients(grads=PARAMS, tx=other, extra_args={"value": 3}).tx is other


def test_parameters_that_gradients_overwrite_stay_out_of_the_optimizer():
    tx, seen = recorder()
    old, new = ({"scale": np.full(2, x)} for x in (1.0, 3.0))
    state = create(tx, {"params": PARAMS, OVERWRITE_WITH_GRADIENT: old})
    grads = {"params": TRAINING, OVERWRITE_WITH_GRADIENT: new}
    after = state.apply_gradients(grads=grads, extra_args={"value": 3})
    assert seen == [{"params": PARAMS, "value": 3}]
    moved = jax.tree.map(jnp.add, PARAMS, TRAINING)
    assert_equal(after.params, {"params": moved, OVERWRITE_WITH_GRADIENT: new})


def test_a_donated_state_compiles_once_and_frees_its_memory():
    state: Any = create(tpgm_jax.tpgm(optax.adam(0.1)), jax.tree.map(jnp.copy, PARAMS))
    traces = 0

    def step(state):
        nonlocal traces
        traces += 1
        return apply(state)

    jitted, first = jax.jit(step, donate_argnums=0), state.params["kernel"]
    for _ in range(STEPS):
        state = jitted(state)
    assert traces == 1
    assert first.is_deleted()
    assert not state.params["kernel"].is_deleted()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (
            {"held_out_loss": held_out_loss},
            r"`held_out_loss`.*pass `extra_args=\{'held_out_loss': \.\.\.\}`",
        ),
        ({"batch_stat": {}}, "not a field of `TrainState`"),
        ({"extra_args": held_out_loss}, "must be a mapping .*; got function"),
    ],
    ids=["an extra argument", "a misspelt field", "no mapping"],
)
def test_keywords_that_are_neither_fields_nor_extra_args_are_refused(keywords, message):
    with pytest.raises(TypeError, match=message):
        create(optax.sgd(0.1)).apply_gradients(grads=PARAMS, **keywords)


def test_without_flax_the_package_imports_and_the_error_names_it(monkeypatch):
    for name in list(sys.modules):
        if name.partition(".")[0] == "flax":
            monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
        if name.partition(".")[0] == "tpgm_jax":
            monkeypatch.delitem(sys.modules, name)
    importlib.import_module("tpgm_jax")
    with pytest.raises(ModuleNotFoundError, match="`pip install flax`"):
        importlib.import_module("tpgm_jax.linen")
