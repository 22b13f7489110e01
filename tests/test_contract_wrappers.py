"""Our transformations inside optax's wrappers, and optax's tools on our states."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import mostly_slow
from jax.sharding import PartitionSpec
from transforms import assert_close, each_transform, loss, numbers, run, stepper

import tpgm_jax
from tpgm_jax import add_anchor_decay, ftp, project_to_anchor, spd, tpgm

# Each method around Adam, or after it.
METHODS = {
    "FTPState": lambda **options: ftp(optax.adam(0.1), **options),
    "TPGMState": lambda **options: tpgm(optax.adam(0.1), **options),
    "ProjectToAnchorState": lambda **options: optax.chain(
        optax.adam(0.1), project_to_anchor(0.5, **options)
    ),
    # At this rate SPD acts within the first steps.
    "SPDState": lambda **options: spd(optax.adam(1.0), **options),
    "AnchorDecayState": lambda **options: optax.chain(
        add_anchor_decay(0.3, **options), optax.adam(0.1)
    ),
}
LEARNED = [METHODS["FTPState"], METHODS["TPGMState"]]
each_method = pytest.mark.parametrize("method", mostly_slow(METHODS, "FTPState"))
HEAD = {"layers": False, "head": True, "gain": False}


@functools.cache
def updater(tx):
    """A compiled `update` on given gradients."""
    return jax.jit(lambda grads, state, params: tx.update(grads, state, params, held_out_loss=loss))


@each_method
def test_gradients_accumulated_by_multi_steps_make_one_step_of_their_mean(method, x64):
    params, grads = numbers(), [numbers(seed) for seed in (1, 2)]
    mean = jax.tree.map(lambda x, y: (x + y) / 2, *grads)
    # Before 0.2.8, optax accumulates in the dtype of the parameters, here float64.
    new = "accumulator_dtype" in inspect.signature(optax.MultiSteps).parameters
    options: Any = {"accumulator_dtype": jnp.float64} if new else {}
    tx, accumulated = method(), optax.MultiSteps(method(), 2, **options)
    update = updater(accumulated)

    none, state = update(grads[0], accumulated.init(params), params)
    once, state = update(grads[1], state, params)
    assert all(jnp.all(u == 0) for u in jax.tree.leaves(none))
    assert_close((once, state.inner_opt_state), updater(tx)(mean, tx.init(params), params))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@each_transform
def test_multi_steps_and_cond_wrappers_keep_all_types(make, dtype):
    params = numbers(dtype=dtype)
    for tx in (
        optax.MultiSteps(make(), every_k_schedule=3),
        optax.apply_if_finite(make(), 2),
        optax.conditionally_transform(make(), lambda step, **_: jnp.asarray(step) > 1),
        optax.conditionally_mask(make(), lambda step, **_: jnp.asarray(step) > 1),
    ):
        state = tx.init(params)
        before = jax.eval_shape(lambda params=params, state=state: (params, state))
        assert jax.eval_shape(stepper(tx), params, state) == before


@each_method
def test_apply_if_finite_skips_a_gradient_that_is_not_finite(method, x64):
    params = numbers()
    bad = numbers(1) | {"gain": jnp.asarray(jnp.nan)}
    plain, guarded = method(), optax.apply_if_finite(method(), max_consecutive_errors=2)
    update, update_plain = updater(guarded), updater(plain)

    state, expected = guarded.init(params), plain.init(params)
    for grads in (numbers(2), bad, numbers(3)):
        updates, state = update(grads, state, params)
        if grads is bad:
            assert all(jnp.all(u == 0) for u in jax.tree.leaves(updates))
        else:
            wanted, expected = update_plain(grads, expected, params)
            assert_close(updates, wanted)
        assert_close(state.inner_state, expected)


@each_method
def test_partitioning_off_the_rest_equals_excluding_it(method, x64):
    # Excluded leaves get the base optimizer's update, and the loss is a sum over leaves.
    labels = {"layers": "body", "head": "head", "gain": "body"}
    alone = optax.adam(1.0 if method is METHODS["SPDState"] else 0.1)
    parts: Any = {"body": method(), "head": alone}
    params, state = run(optax.partition(parts, labels), numbers())
    expected, expected_state = run(method(exclude="head/.*"), numbers())
    assert_close(params, expected)
    if method in LEARNED:
        received = tpgm_jax.radii(state, params)
        assert received == pytest.approx(tpgm_jax.radii(expected_state, params), abs=1e-12)


@each_method
def test_masking_the_rest_equals_excluding_it(method, x64):
    body = {name: not flag for name, flag in HEAD.items()}
    freeze_head = optax.masked(optax.set_to_zero(), HEAD)
    params, _ = run(optax.chain(optax.masked(method(), body), freeze_head), numbers())
    expected, _ = run(optax.chain(method(exclude="head/.*"), freeze_head), numbers())
    assert_close(params, expected)


@each_method
def test_named_chain_passes_extra_args_on(method, x64):
    clip: Any = optax.clip_by_global_norm(1.0)
    params, state = run(optax.named_chain(("clip", clip), ("method", method())), numbers())
    expected, chained = run(optax.chain(clip, method()), numbers())
    assert_close((params, state["method"]), (expected, chained[1]))


# ---- inject_hyperparams

INJECTED = {
    "ftp": (ftp, {"base_optimizer": optax.adam(0.1), "k": 0.5, "initial_radius": 0.1}),
    "ftp of parts": (
        ftp,
        {
            "base_optimizer": optax.sgd(0.1),
            "radius_optimizer": optax.sgd(0.1),
            "norm": "l2",
            "exclude": lambda path, _: path.startswith("head/"),
            "axes": lambda path, _: tpgm_jax.Axes(layers=0) if "layers" in path else None,
        },
    ),
    "tpgm": (tpgm, {"base_optimizer": optax.adam(0.1), "steps": 2, "every": 2, "norm": "l2"}),
    "spd": (
        spd,
        {
            "base_optimizer": optax.sgd(0.6, momentum=0.9),
            "strength": 0.5,
            "axes": lambda path, _: tpgm_jax.Axes(layers=0) if "layers" in path else None,
        },
    ),
    "project_to_anchor": (project_to_anchor, {"radius": 0.3, "exclude": "head/.*"}),
}


@pytest.mark.parametrize(("factory", "arguments"), INJECTED.values(), ids=INJECTED)
def test_injected_hyperparameters_equal_fixed_ones(factory, arguments, x64):
    # `inject_hyperparams` would treat a function as a schedule.
    static = [name for name in ("exclude", "axes") if callable(arguments.get(name))]
    injected = optax.inject_hyperparams(factory, static_args=static)(**arguments)
    params, state = run(injected, numbers())
    expected = run(factory(**arguments), numbers())
    assert_close((params, state.inner_state), expected)


def test_the_injected_weight_of_a_decay_equals_a_fixed_one(x64):
    arguments = {
        "weight": 0.3,
        "exclude": "head/.*",
        "importance": jax.tree.map(jnp.abs, numbers(9)),
    }
    # `add_anchor_decay` has no `axes`, and `exclude` is static only if it is a function.
    injected = optax.inject_hyperparams(add_anchor_decay)(**arguments)
    params, state = run(optax.chain(injected, optax.sgd(0.1)), numbers())
    expected = run(optax.chain(add_anchor_decay(**arguments), optax.sgd(0.1)), numbers())
    assert_close((params, state[0].inner_state), (expected[0], expected[1][0]))


def test_injected_hyperparameters_can_be_changed_between_steps(x64):
    injected = optax.inject_hyperparams(project_to_anchor)(0.3)
    grads, params = numbers(1), numbers()
    state = optax.tree.set(injected.init(params), radius=jnp.asarray(0.2))
    updates, _ = updater(injected)(grads, state, params)
    plain = project_to_anchor(0.2)
    assert_close(updates, updater(plain)(grads, plain.init(params), params)[0])


def test_injected_hyperparameters_need_not_be_rounded_to_half_precision():
    params, grads = numbers(dtype="bfloat16"), numbers(1, dtype="bfloat16")
    plain = project_to_anchor(0.3)
    injected = optax.inject_hyperparams(project_to_anchor, hyperparam_dtype=jnp.dtype("float32"))(
        0.3
    )
    updates, _ = updater(injected)(grads, injected.init(params), params)
    expected, _ = updater(plain)(grads, plain.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, updates, expected)


# ---- optax.tree


WRAPPED = {
    "chain": lambda tx: optax.chain(optax.clip(1.0), tx),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 2),
    "masked": lambda tx: optax.masked(tx, {"layers": True, "head": False, "gain": True}),
    "partition": lambda tx: optax.partition({1: tx}, jax.tree.map(lambda _: 1, numbers())),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("name", METHODS)
def test_our_state_is_found_inside_wrappers_by_its_name(name, wrap):
    state = wrap(METHODS[name]()).init(numbers())
    found = optax.tree.get(state, name)
    assert isinstance(found, getattr(tpgm_jax, name))
    anchor: Any = optax.tree.get(state, "anchor")
    np.testing.assert_array_equal(anchor["gain"], numbers()["gain"])


@each_method
def test_fields_of_the_base_optimizer_are_found_by_their_names(method):
    state = jax.jit(method().init)(numbers())
    # The radii have their own Adam, which is recognized by its path.
    count = optax.tree.get(
        state, "count", filtering=lambda path, _: "radius_state" not in jax.tree_util.keystr(path)
    )
    assert count == 0
    learning_rate = optax.inject_hyperparams(optax.sgd)(0.1)
    state = optax.chain(method(), learning_rate).init(numbers())
    state = optax.tree.set(state, learning_rate=jnp.asarray(0.2))
    assert optax.tree.get(state, "learning_rate") == jnp.float32(0.2)


@each_transform
def test_map_params_assigns_partition_specs_to_copies_of_the_params(make):
    params, tx = numbers(), make()
    specs = jax.tree.map(lambda p: PartitionSpec(*["axis"] * p.ndim), params)
    # A leaf that is not stored has a placeholder, as in `optax.masked`.
    everything = optax.tree.map_params(
        tx,
        lambda _, spec: spec,
        tx.init(params),
        specs,
        transform_non_params=lambda _: None,
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )
    for mirror in ("anchor", "displacement", "importance", "mu", "trace"):
        for path, tree in optax.tree.get_all_with_path(everything, mirror):
            assert tree == specs or "radius_state" in jax.tree_util.keystr(path)
    assert optax.tree.get(everything, "anchor") == specs
    assert optax.tree.get(everything, "radii") is None


@pytest.mark.parametrize("exclude", [HEAD, ("head/.*", "gain"), lambda path, _: "head" in path])
@each_method
def test_map_params_of_the_identity_returns_the_state(method, exclude):
    tx = method(exclude=exclude)
    state = tx.init(numbers())
    received = optax.tree.map_params(tx, lambda leaf: leaf, state)
    jax.tree.map(np.testing.assert_array_equal, received, state)
