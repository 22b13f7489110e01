"""Reading radii, and replacing anchors."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_step, random_tree

import tpgm_jax

SHAPES = {"bias": (4,), "dense": (3, 4), "head": (4, 2), "layers": (2, 3, 4)}
OPTIONS = {"exclude": "head", "axes": {"layers": tpgm_jax.Axes(layers=0)}}


def loss(params):
    return sum(jnp.sum((x - 1) ** 2) for x in params.values())


# Untyped, because optax types a state only as a tree.
set_anchor: Any = tpgm_jax.set_anchor

ADAM = optax.adam(1e-2)
MOMENTUM = optax.sgd(0.6, momentum=0.9)


def RISING(step):
    """A schedule, so that the step matters."""
    return 0.1 * (step + 1)


TRANSFORMS = {
    "ftp": lambda base=ADAM: tpgm_jax.ftp(base, **OPTIONS),
    "ftp compact": lambda base=ADAM: tpgm_jax.ftp(base, memory="compact", **OPTIONS),
    "tpgm": lambda base=ADAM: tpgm_jax.tpgm(base, every=3, steps=2, **OPTIONS),
    "project_to_anchor": lambda base=ADAM: optax.chain(
        base, tpgm_jax.project_to_anchor(0.05, **OPTIONS)
    ),
    "spd": lambda base=MOMENTUM: tpgm_jax.spd(base, strength=RISING, **OPTIONS),
    "add_anchor_decay": lambda base=ADAM: optax.chain(
        tpgm_jax.add_anchor_decay(
            RISING, importance=jax.tree.map(jnp.abs, random_tree(SHAPES, 9)), exclude="head"
        ),
        base,
    ),
}
each_transform = pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS)


def grads_at(t):
    return random_tree(SHAPES, seed=100 + t, dtype=jnp.float32)


@functools.cache
def step_of(tx):
    """Compiled once for all runs of `tx`."""
    return make_step(tx, held_out_loss=loss)


def run(tx, params, state, start, stop) -> Any:
    step = step_of(tx)
    for t in range(start, stop):
        params, state = step(params, state, grads_at(t))
    return params, state


def assert_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@each_transform
def test_set_anchor_on_a_fresh_state_equals_init(make):
    before, anchor = (random_tree(SHAPES, seed, dtype=jnp.float32) for seed in (0, 1))
    tx = make()
    moved = set_anchor(tx.init(before), anchor)
    assert_equal(moved, tx.init(anchor))
    assert jax.tree.structure(moved) == jax.tree.structure(tx.init(anchor))


@each_transform
def test_set_anchor_with_reset_resets_all_but_the_base_optimizer(make):
    anchor, task = (random_tree(SHAPES, seed, dtype=jnp.float32) for seed in (0, 1))
    # The base optimizer has no state, so a run on the next task equals a new run, even after five
    # steps on another task.
    tx = make(optax.sgd(1e-2))
    _, state = run(tx, anchor, tx.init(anchor), 0, 5)
    moved = set_anchor(state, task)
    # The radii of the last task are gone even before the next update.
    assert not np.any(optax.tree.get(moved, "radii", 0.0))
    again = run(tx, task, moved, 5, 9)
    assert_equal(again, run(tx, task, tx.init(task), 5, 9))


@pytest.mark.parametrize("reset", [True, False])
def test_set_anchor_keeps_the_base_optimizers_state(reset):
    anchor, task = (random_tree(SHAPES, seed, dtype=jnp.float32) for seed in (0, 1))
    tx = TRANSFORMS["ftp"]()
    _, state = run(tx, anchor, tx.init(anchor), 0, 5)
    moved = set_anchor(state, task, reset=reset)
    assert_equal(moved.base_state, state.base_state)


def test_set_anchor_without_reset_replaces_only_the_anchor():
    anchor, task = (random_tree(SHAPES, seed, dtype=jnp.float32) for seed in (0, 1))
    tx = TRANSFORMS["ftp"]()
    _, state = run(tx, anchor, tx.init(anchor), 0, 5)
    moved = set_anchor(state, task, reset=False)
    assert_equal(moved._replace(anchor=state.anchor), state)
    for name in ("bias", "dense", "layers"):
        np.testing.assert_array_equal(moved.anchor[name], task[name])
    assert jax.tree.leaves(moved.anchor["head"]) == []


def test_set_anchor_takes_a_checkpoint_without_the_excluded_head():
    state = tpgm_jax.ftp(optax.sgd(0.1), exclude="head|bias").init(
        {"w": jnp.zeros(3), "head": jnp.zeros((3, 2)), "bias": jnp.zeros(())}
    )
    moved = set_anchor(state, {"w": jnp.ones(3)})
    np.testing.assert_array_equal(moved.anchor["w"], 1.0)
    assert jax.tree.leaves([moved.anchor["head"], moved.anchor["bias"]]) == []


def test_a_state_stores_sizes_of_the_anchor_only_if_its_options_need_them():
    params = random_tree(SHAPES, 0)
    state: Any = tpgm_jax.ftp(optax.sgd(0.1)).init(params)
    assert jax.tree.leaves((state.anchor_norms, state.unit_size)) == []
    state = tpgm_jax.ftp(optax.sgd(0.1), memory="compact", unit="anchor").init(params)
    assert jax.tree.leaves(state.anchor_norms)
    assert jax.tree.leaves(state.unit_size)


def test_set_anchor_copies():
    params = {"w": jnp.ones(3)}
    state = set_anchor(tpgm_jax.ftp(optax.sgd(0.1)).init(params), params)
    # Donating the parameters deletes their buffer, and must not delete the anchor.
    jax.jit(lambda params: params["w"] + 1, donate_argnums=0)(params)
    np.testing.assert_array_equal(state.anchor["w"], 1.0)


def test_set_anchor_works_under_jit():
    params = {"w": jnp.ones(3)}
    tx = tpgm_jax.ftp(optax.sgd(0.1))
    assert_equal(jax.jit(set_anchor)(tx.init({"w": jnp.zeros(3)}), params), tx.init(params))


def test_radii_are_python_floats_and_lists_by_name():
    anchor = random_tree(SHAPES, 0, dtype=jnp.float32)
    tx = optax.chain(optax.clip_by_global_norm(1.0), TRANSFORMS["ftp"]())
    params, state = run(tx, anchor, tx.init(anchor), 0, 3)
    found = tpgm_jax.radii(state, params)
    assert list(found) == ["bias", "dense", "layers"]
    assert isinstance(found["bias"], float)
    assert isinstance(found["layers"], list)
    assert len(found["layers"]) == 2
    flat = [found["bias"], found["dense"], *found["layers"]]
    np.testing.assert_array_equal(optax.tree.get(state, "radii"), np.array(flat, np.float32))


def test_a_stack_of_one_layer_is_still_a_list():
    params = {"layers": jnp.ones((1, 3, 4))}
    tx = tpgm_jax.ftp(optax.sgd(0.1), axes={"layers": tpgm_jax.Axes(layers=0)})
    assert tpgm_jax.radii(tx.init(params), params) == {"layers": [0.0]}


def make_partition():
    """Two of our transformations under `optax.partition`, and plain SGD for the head."""
    return optax.partition(
        {
            "slow": tpgm_jax.ftp(optax.sgd(0.1)),
            "fast": tpgm_jax.ftp(optax.sgd(0.2), norm="l2"),
            "free": optax.sgd(0.1),
        },
        {"bias": "slow", "dense": "fast", "head": "free", "layers": "slow"},
    )


def test_radii_merges_the_parts_of_a_partition():
    anchor = random_tree(SHAPES, 0, dtype=jnp.float32)
    tx = make_partition()
    params, state = run(tx, anchor, tx.init(anchor), 0, 1)
    assert set(tpgm_jax.radii(state, params)) == {"bias", "dense", "layers"}


def test_set_anchor_replaces_the_anchors_of_a_partition():
    before, anchor = (random_tree(SHAPES, seed, dtype=jnp.float32) for seed in (0, 1))
    tx = make_partition()
    assert_equal(set_anchor(tx.init(before), anchor), tx.init(anchor))


SGD = optax.sgd(0.1)
PARAMS = {"block": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}, "head": jnp.ones((2, 2))}
OTHER_SHAPE = {**PARAMS, "head": jnp.ones((2, 5))}
STATE = tpgm_jax.ftp(SGD).init(PARAMS)
ERRORS = {
    "radii of a state without ours": (
        lambda: tpgm_jax.radii(SGD.init(PARAMS), PARAMS),
        ValueError,
        "`radii` found no state of this library",
    ),
    "radii of a fixed radius": (
        lambda: tpgm_jax.radii(tpgm_jax.project_to_anchor(1.0).init(PARAMS), PARAMS),
        ValueError,
        "no learned radii",
    ),
    "radii of another model": (
        lambda: tpgm_jax.radii(STATE, {"block": PARAMS["block"]}),
        ValueError,
        "`params` lacks 'head'",
    ),
    "radii of several models": (
        lambda: tpgm_jax.radii(jax.tree.map(lambda x: jnp.stack([x, x]), STATE), PARAMS),
        ValueError,
        r"pick one, `jax.tree.map\(lambda x: x\[i\], opt_state\)`",
    ),
    "set_anchor on a state without ours": (
        lambda: set_anchor(SGD.init(PARAMS), PARAMS),
        ValueError,
        "found no state of this library",
    ),
    "set_anchor to another model": (
        lambda: set_anchor(STATE, {"block": PARAMS["block"]}),
        ValueError,
        "`params` lacks 'head'",
    ),
    "set_anchor to another shape": (
        lambda: set_anchor(STATE, OTHER_SHAPE),
        ValueError,
        r"has 'head' of shape \(2, 5\), where \(2, 2\) is expected",
    ),
    "set_anchor with importances that there are none of": (
        lambda: set_anchor(STATE, PARAMS, importance=PARAMS),
        ValueError,
        "holds none to replace",
    ),
    "set_anchor with importances of another shape": (
        lambda: set_anchor(
            tpgm_jax.add_anchor_decay(1.0, importance=PARAMS).init(PARAMS),
            PARAMS,
            importance=OTHER_SHAPE,
        ),
        ValueError,
        r"`importance` has 'head' of shape \(2, 5\)",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_bad_input_raises_an_error_with_the_remedy(call, error, message):
    with pytest.raises(error, match=message):
        call()
