"""Decay towards the anchor: L2-SP, and EWC."""

from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_step, make_update, random_tree
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import tpgm_jax
from tpgm_jax._core import names as _names

# Untyped, because a type checker rejects the wrong arguments of the error tests.
add_anchor_decay: Any = tpgm_jax.add_anchor_decay
set_anchor: Any = tpgm_jax.set_anchor

SHAPES = {"gain": (), "body": (3, 2), "head": (2, 2)}


def trees(count, dtype=None):
    """`count` trees of random numbers."""
    return [random_tree(SHAPES, seed, dtype=dtype) for seed in range(count)]


def importances(seed, dtype=None):
    """A tree of random numbers that are not negative."""
    return jax.tree.map(jnp.abs, random_tree(SHAPES, seed, dtype=dtype))


def assert_close(received, expected, atol):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=atol), received, expected
    )


def test_the_pull_is_weight_times_importance_times_displacement():
    anchor, params = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([5.0, 1.0])}
    grads = {"w": jnp.array([0.5, 0.25])}
    # The pull has the sign of a gradient, which the learning rate negates later: it is positive
    # where the weight has grown.
    for importance, pulled in ((None, [2.5, -0.25]), ({"w": np.array([2.0, 8.0])}, [4.5, -3.75])):
        tx = add_anchor_decay(0.5, importance=importance)
        updates, _ = make_update(tx)(grads, tx.init(anchor), params)
        np.testing.assert_array_equal(updates["w"], pulled)


def test_coupled_decay_is_the_gradient_of_a_quadratic_penalty(x64):
    anchor, target, importance = *trees(2), importances(2)
    tx = optax.chain(add_anchor_decay(0.3, importance=importance), optax.adam(0.1))

    def loss(params):
        return sum(jnp.sum((params[k] - target[k]) ** 4) for k in SHAPES)

    def penalised(params):
        squares = (jnp.sum(importance[k] * (params[k] - anchor[k]) ** 2) for k in SHAPES)
        return loss(params) + 0.3 / 2 * sum(squares)

    def descend(tx, loss):
        def step(_, carry):
            updates, state = tx.update(jax.grad(loss)(carry[0]), carry[1], carry[0])
            return optax.apply_updates(carry[0], updates), state

        return jax.jit(lambda: jax.lax.fori_loop(0, 20, step, (anchor, tx.init(anchor)))[0])()

    # Twenty steps of ten roundings of numbers up to 10, which Adam may magnify tenfold.
    assert_close(
        descend(tx, loss), descend(optax.adam(0.1), penalised), atol=20 * 10 * 2e-16 * 10 * 10
    )


def test_decoupled_decay_from_zero_equals_adamw(x64):
    params, *gradients = trees(6)
    decay = add_anchor_decay(0.2, anchor="zero")
    tx = optax.chain(optax.scale_by_adam(), decay, optax.scale_by_learning_rate(0.1))
    adamw = optax.adamw(0.1, weight_decay=0.2)
    step, expected_step = make_step(tx), make_step(adamw)
    received, expected = (params, tx.init(params)), (params, adamw.init(params))
    for grads in gradients:
        received, expected = step(*received, grads), expected_step(*expected, grads)
    # Five steps of a dozen roundings of numbers around 1.
    assert_close(received[0], expected[0], atol=5 * 12 * 2e-16)


def test_a_decoupled_step_goes_back_a_fraction_of_the_way():
    anchor, params = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([5.0, 1.0])}
    tx = optax.chain(add_anchor_decay(0.5), optax.scale_by_learning_rate(0.5))
    after, _ = make_step(tx)(params, tx.init(anchor), {"w": jnp.zeros(2)})
    np.testing.assert_array_equal(after["w"], [4.0, 1.25])


def test_excluded_leaves_get_their_updates_unchanged():
    anchor, params, grads = trees(3)
    tx = add_anchor_decay(0.5, exclude="head")
    updates, state = make_update(tx)(grads, tx.init(anchor), params)
    np.testing.assert_array_equal(updates["head"], grads["head"])
    assert not np.any(updates["body"] == grads["body"])
    assert isinstance(state.anchor["head"], optax.MaskedNode)
    assert jax.tree.leaves(state.importance) == []


def test_a_weight_schedule_is_evaluated_at_the_number_of_previous_updates():
    weights = jnp.array([0.0, 1.0, 0.5])
    tx = add_anchor_decay(lambda step: weights[jnp.asarray(step)])
    update, state = make_update(tx), tx.init({"w": jnp.zeros(1)})
    for weight in weights:
        updates, state = update({"w": jnp.ones(1)}, state, {"w": jnp.full(1, 4.0)})
        assert updates["w"] == 1 + 4 * weight


def test_half_precision_is_computed_in_float32():
    anchor, params, grads = trees(3, dtype=jnp.bfloat16)
    importance = importances(3, dtype=jnp.bfloat16)
    tx = add_anchor_decay(0.3, importance=importance)
    updates, _ = make_update(tx)(grads, tx.init(anchor), params)
    for name, received in updates.items():
        assert received.dtype == jnp.bfloat16
        w0, w, g, f = (np.asarray(x[name], np.float64) for x in (anchor, params, grads, importance))
        # Half a spacing of bfloat16, 2^-8 of the number, and a little for the float32 computation.
        np.testing.assert_allclose(
            np.asarray(received, np.float64), g + 0.3 * f * (w - w0), rtol=1.01 / 2**8, atol=1e-6
        )


def test_importances_are_matched_by_name_and_may_lack_excluded_leaves():
    params, grads, importance = *trees(2), importances(2)
    model = nnx.Dict({name: nnx.Param(x) for name, x in importance.items() if name != "head"})
    others = OrderedDict(reversed(list(importance.items())))
    expected = add_anchor_decay(0.5, exclude="head", importance=importance).init(params)
    for tree in (others, nnx.state(model), jax.tree.map(np.asarray, importance)):
        tx = add_anchor_decay(0.5, exclude="head", importance=tree)
        state = tx.init(params)
        jax.tree.map(np.testing.assert_array_equal, state, expected)
        assert _names.leaf_names(state.importance) == _names.leaf_names(params)
        tx.update(grads, state, params)


def test_importances_may_be_integers():
    params, zeros = {"w": jnp.ones(2)}, {"w": jnp.zeros(2)}
    tx = add_anchor_decay(0.5, importance={"w": jnp.array([1, 4])}, anchor="zero")
    updates: Any
    updates, _ = tx.update(zeros, tx.init(params), params)
    np.testing.assert_array_equal(updates["w"], [0.5, 2.0])


def test_importances_are_copied_into_the_state_and_are_not_constants_of_the_step():
    params, grads, importance = *trees(2), importances(2)
    tx = add_anchor_decay(0.5, importance=importance)
    state = tx.init(params)
    step = jax.jit(tx.update, donate_argnums=1)
    for _ in range(2):
        _, state = step(grads, state, params)
    assert not any(x.is_deleted() for x in jax.tree.leaves(importance))
    constants = jax.make_jaxpr(tx.update)(grads, state, params).consts
    assert not any(np.size(x) > 1 for x in constants)


def test_set_anchor_replaces_importances():
    params, grads, first, second = *trees(2), importances(2), importances(3)
    tx = optax.chain(add_anchor_decay(0.5, importance=first), optax.sgd(0.1))
    exchanged = set_anchor(tx.init(grads), params, importance=second)
    other = optax.chain(add_anchor_decay(0.5, importance=second), optax.sgd(0.1))
    expected = make_update(other)(grads, other.init(params), params)
    received = make_update(tx)(grads, exchanged, params)
    jax.tree.map(np.testing.assert_array_equal, received, expected)


@pytest.mark.parametrize("head", [{}, {"head": jnp.ones((2, 7))}])
def test_set_anchor_copies_importances_which_may_lack_excluded_leaves(head):
    params, grads, first, second = *trees(2), importances(2), importances(3)
    tx = add_anchor_decay(0.5, importance=first, exclude="head")
    fisher = {name: x for name, x in second.items() if name != "head"} | head
    state = set_anchor(tx.init(params), params, importance=fisher)
    _, state = jax.jit(tx.update, donate_argnums=1)(grads, state, params)
    assert not any(x.is_deleted() for x in fisher.values())
    for name in ("gain", "body"):
        np.testing.assert_array_equal(state.importance[name], second[name])
    assert not jax.tree.leaves(state.importance["head"])
    # Without `importance`, the old importances stay, and a state without importances gets none.
    both: Any = optax.chain(tx, tpgm_jax.project_to_anchor(1.0))
    moved = set_anchor(both.init(params), grads)
    jax.tree.map(np.testing.assert_array_equal, moved[0].importance["body"], first["body"])
    np.testing.assert_array_equal(moved[1].anchor["body"], grads["body"])


def lay_out(tree, mesh):
    """Shards the rows of every matrix over the devices."""
    specs = {name: P(*["data"] * bool(shape)) for name, shape in WIDE.items()}
    return {name: jax.device_put(x, NamedSharding(mesh, specs[name])) for name, x in tree.items()}


WIDE = {"gain": (), "body": (8, 3)}
each_kind = pytest.mark.parametrize(
    "kind", [AxisType.Auto, AxisType.Explicit], ids=["Auto", "Explicit"]
)


@each_kind
def test_eight_devices_decay_and_interpolate_the_same_as_one(kind):
    mesh = jax.make_mesh((8,), ("data",), (kind,), devices=jax.devices("cpu")[:8])
    anchor, params, grads, importance = (random_tree(WIDE, seed) for seed in range(4))
    importance = jax.tree.map(jnp.abs, importance)
    one = add_anchor_decay(0.5, importance=importance)
    expected, _ = make_update(one)(grads, one.init(anchor), params)
    with jax.set_mesh(mesh):
        anchor, params, grads, importance = (
            lay_out(x, mesh) for x in (anchor, params, grads, importance)
        )
        many = add_anchor_decay(0.5, importance=importance)
        state = many.init(anchor)
        updates, _ = make_update(many)(grads, state, params)
        mixed = jax.jit(tpgm_jax.interpolate)(params, anchor, 0.25)
    for name, x in params.items():
        for y in (updates[name], state.importance[name], mixed[name]):
            assert y.sharding.is_equivalent_to(x.sharding, x.ndim)
        # Two ulps of numbers up to 4, because XLA may fuse differently for several devices.
        np.testing.assert_allclose(updates[name], expected[name], rtol=0, atol=2 * 4.8e-7)


PARAMS = {"w": jnp.ones((3, 2)), "v": jnp.ones(2)}
DECAY = add_anchor_decay(0.1)


def init_with(importance, **options):
    return add_anchor_decay(0.1, importance=importance, **options).init(PARAMS)


ERRORS = {
    "weight negative": (lambda: add_anchor_decay(-0.1), ValueError, "0 or more; got -0.1"),
    "weight infinite": (lambda: add_anchor_decay(float("inf")), ValueError, "must be finite"),
    "weight missing": (lambda: add_anchor_decay(None), TypeError, "must be a number; got None"),
    "anchor unknown": (lambda: add_anchor_decay(1, anchor=""), ValueError, "`anchor` must be one"),
    "importance lacks a leaf": (
        lambda: init_with({"w": PARAMS["w"]}),
        ValueError,
        "`importance` lacks 'v'.*or `exclude` what it lacks",
    ),
    "importance of another shape": (
        lambda: init_with({"w": 1.0, "v": PARAMS["v"]}),
        ValueError,
        r"`importance` has 'w' of shape \(\), where \(3, 2\) is expected",
    ),
    "params missing": (
        lambda: DECAY.update(PARAMS, DECAY.init(PARAMS)),
        ValueError,
        r"`add_anchor_decay` .* call `update\(updates, state, params\)`",
    ),
    "a state of another `exclude`": (
        lambda: DECAY.update(PARAMS, add_anchor_decay(0.1, exclude="w").init(PARAMS), PARAMS),
        ValueError,
        r"`exclude`: \('w', False\) in the state and \('w', True\) here.* call `init`",
    ),
    "a state without importances": (
        lambda: add_anchor_decay(0.1, importance=PARAMS).update(PARAMS, DECAY.init(PARAMS), PARAMS),
        ValueError,
        r"the transformation has `importance` and the state has none.* call `init`",
    ),
    "a state with importances": (
        lambda: DECAY.update(PARAMS, init_with(PARAMS), PARAMS),
        ValueError,
        r"the state has `importance` and the transformation has none.* call `init`",
    ),
    "there are no radii": (
        lambda: tpgm_jax.radii(DECAY.init(PARAMS), PARAMS),
        ValueError,
        "no learned radii",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_bad_input_raises_an_error_with_the_remedy(call, error, message):
    with pytest.raises(error, match=message):
        call()
