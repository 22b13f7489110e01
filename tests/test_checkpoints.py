"""Saving at any step, restoring, and going on as if nothing had been."""

import functools
import pickle
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from conftest import random_tree
from flax import nnx, serialization

import tpgm_jax

SHAPES = {"bias": (4,), "dense": (3, 4), "head": (4, 2), "layers": (2, 3, 4)}
OPTIONS: Any = {"exclude": "head", "axes": {"layers": tpgm_jax.Axes(layers=0)}}
ADAM = optax.adam(1e-2)


def offloaded(tx):
    """`tx`, of which the host holds what is large."""
    return tx._replace(init=lambda params: tpgm_jax.offload(tx.init(params)))


METHODS = {
    "ftp": lambda: tpgm_jax.ftp(ADAM, **OPTIONS),
    "ftp compact": lambda: tpgm_jax.ftp(ADAM, memory="compact", **OPTIONS),
    "ftp of an anchor handed in": lambda: tpgm_jax.ftp(ADAM, anchor="argument", **OPTIONS),
    "tpgm": lambda: tpgm_jax.tpgm(ADAM, every=3, **OPTIONS),
    "ftp on the host": lambda: offloaded(tpgm_jax.ftp(ADAM, anchor_dtype="bfloat16", **OPTIONS)),
    "spd": lambda: tpgm_jax.spd(ADAM, **OPTIONS),
    "project_to_anchor": lambda: optax.chain(ADAM, tpgm_jax.project_to_anchor(0.05, **OPTIONS)),
    "add_anchor_decay": lambda: optax.chain(
        tpgm_jax.add_anchor_decay(0.1, importance=ANCHOR, exclude="head"), ADAM
    ),
}
ANCHOR = random_tree(SHAPES, 0, dtype=jnp.float32)
STEPS = 8
NOT_FINITE = 2  # the step whose gradient is not: `skipped` has to be saved as well


def make_step(name, tx):
    """A jitted step on the gradients of step `t`, as a new process would compile it."""

    def held_out_loss(params):
        return sum(jnp.sum((x - 1) ** 2) for x in params.values())

    @jax.jit
    def step(carry, grads, anchor):
        params, state = carry
        extra = {"anchor": anchor} if name.endswith("handed in") else {}
        updates, state = tx.update(grads, state, params, held_out_loss=held_out_loss, **extra)
        return optax.apply_updates(params, updates), state

    return step


def grads_at(t, name):
    grads = random_tree(SHAPES, seed=100 + t, dtype=jnp.float32)
    if t == NOT_FINITE and name not in ("project_to_anchor", "add_anchor_decay"):  # skip nothing
        grads["bias"] *= jnp.inf
    return grads


@functools.cache
def uninterrupted(name):
    """Parameters and state before each step and after the last; and the step."""
    tx = METHODS[name]()
    step = make_step(name, tx)
    carries = [(ANCHOR, tx.init(ANCHOR))]
    for t in range(STEPS):
        carries.append(step(carries[t], grads_at(t, name), ANCHOR))
    return carries, make_step(name, METHODS[name]())


def pickled(carry, fresh, folder):
    del fresh, folder
    return pickle.loads(pickle.dumps(jax.tree.map(np.asarray, carry)))


def msgpacked(carry, fresh, folder):
    """As Flax saves it: the numbers alone, poured into a state that `init` made."""
    del folder
    return serialization.from_bytes(fresh, serialization.to_bytes(carry))


def orbaxed(carry, fresh, folder):
    """As Orbax does it: to files, and back into shapes and shardings."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, carry)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder, abstract(fresh))


def abstract(tree):
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def places(tree):
    return [x.sharding for x in jax.tree.leaves(tree)]


def assert_equal(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("saved_and_loaded", [pickled, msgpacked, orbaxed])
def test_a_run_resumed_at_any_step_equals_an_uninterrupted_one(name, saved_and_loaded, tmp_path):
    carries, another_process = uninterrupted(name)
    for stop in range(STEPS):
        fresh = ANCHOR, METHODS[name]().init(ANCHOR)
        resumed = saved_and_loaded(carries[stop], fresh, tmp_path / str(stop))
        assert_equal(resumed, carries[stop])
        if saved_and_loaded is orbaxed:  # with what lay on the host there again
            assert places(resumed) == places(fresh)
        for t in range(stop, STEPS):
            resumed = another_process(resumed, grads_at(t, name), ANCHOR)
        assert_equal(resumed, carries[STEPS])
    # There was a skipped step to remember.
    assert optax.tree.get(carries[STEPS], "skipped", 1) == 1


def state_of(**options) -> Any:
    return tpgm_jax.ftp(ADAM, **OPTIONS, **options).init(ANCHOR)


def test_flax_refuses_a_state_of_an_older_version_by_the_name_of_what_it_lacks():
    state = state_of()
    older = serialization.to_state_dict(state)
    del older["skipped"]
    with pytest.raises(ValueError, match="skipped"):
        serialization.from_state_dict(state, older)


class OlderState(NamedTuple):
    """`FTPState` without `skipped`."""

    step: Any
    base_state: Any
    anchor: Any
    radii: Any
    radius_state: Any
    unit_size: Any
    displacement: Any
    spec: Any
    fingerprint: Any


@pytest.mark.parametrize("saved", ["older", "newer"])
def test_orbax_refuses_a_state_of_another_version_by_the_name_of_what_differs(saved, tmp_path):
    newer = state_of()
    older = OlderState(**{name: getattr(newer, name) for name in OlderState._fields})
    states = {"older": older, "newer": newer}
    wanted = states["newer" if saved == "older" else "older"]
    with pytest.raises(ValueError, match=r"structures do not match:\nskipped:\n"):
        orbaxed(states[saved], wanted, tmp_path / "state")


def test_a_state_of_as_many_radii_but_of_other_leaves_is_refused_by_their_name(tmp_path):
    # (Of another number of radii Orbax itself refuses it, with the two shapes.)
    tx = tpgm_jax.ftp(ADAM, **{**OPTIONS, "exclude": "bias"})
    restored = orbaxed(state_of(), tx.init(ANCHOR), tmp_path / "state")
    with pytest.raises(ValueError, match="constrained, by `exclude` was different"):
        tx.update(ANCHOR, restored, ANCHOR)


def test_a_state_without_displacement_is_refused_by_the_name_of_the_field(tmp_path):
    compact, full = state_of(memory="compact"), state_of()
    # Orbax fills what was not saved with `None`.
    restored = orbaxed(compact, full, tmp_path / "state")
    tx = tpgm_jax.ftp(ADAM, **OPTIONS)
    with pytest.raises(ValueError, match="`memory` was 'compact'"):
        tx.update(ANCHOR, restored, ANCHOR)


def test_a_state_with_a_displacement_is_refused_by_a_run_without(tmp_path):
    compact, full = state_of(memory="compact"), state_of()
    restored = orbaxed(full, compact, tmp_path / "state")
    with pytest.raises(ValueError, match="`memory` was 'full'"):
        tpgm_jax.check_state(restored, ANCHOR)


def test_an_nnx_optimizer_is_saved_and_restored_whole(tmp_path):
    def build():
        model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        return model, nnx.Optimizer(model, tpgm_jax.ftp(ADAM, exclude="bias"), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda model: jnp.sum(model(jnp.ones(3)) ** 2))(model))

    model, optimizer = build()
    for _ in range(3):
        step(model, optimizer)
    model_2, optimizer_2 = build()
    fresh = nnx.state((model_2, optimizer_2))
    nnx.update(
        (model_2, optimizer_2), orbaxed(nnx.state((model, optimizer)), fresh, tmp_path / "x")
    )
    for pair in (model, optimizer), (model_2, optimizer_2):
        step(*pair)
    assert_equal(nnx.state((model, optimizer)), nnx.state((model_2, optimizer_2)))
