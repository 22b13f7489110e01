"""Checkpoints: a run restored at any step continues exactly like an uninterrupted run."""

import functools
import pickle
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from conftest import mostly_slow, random_tree
from flax import nnx, serialization

import tpgm_jax

SHAPES = {"bias": (4,), "dense": (3, 4), "head": (4, 2), "layers": (2, 3, 4)}
OPTIONS: Any = {"exclude": "head", "axes": {"layers": tpgm_jax.Axes(layers=0)}}
ADAM = optax.adam(1e-2)


def with_offload(tx):
    """`tx` with the large arrays of its state in host memory."""
    return tx._replace(init=lambda params: tpgm_jax.offload(tx.init(params)))


METHODS = {
    "ftp": lambda: tpgm_jax.ftp(ADAM, **OPTIONS),
    "ftp compact": lambda: tpgm_jax.ftp(ADAM, memory="compact", **OPTIONS),
    "ftp of an anchor handed in": lambda: tpgm_jax.ftp(ADAM, anchor="argument", **OPTIONS),
    "tpgm": lambda: tpgm_jax.tpgm(ADAM, every=3, **OPTIONS),
    "ftp on the host": lambda: with_offload(tpgm_jax.ftp(ADAM, anchor_dtype="bfloat16", **OPTIONS)),
    "spd": lambda: tpgm_jax.spd(ADAM, **OPTIONS),
    "project_to_anchor": lambda: optax.chain(ADAM, tpgm_jax.project_to_anchor(0.05, **OPTIONS)),
    "add_anchor_decay": lambda: optax.chain(
        tpgm_jax.add_anchor_decay(0.1, importance=jax.tree.map(jnp.abs, ANCHOR), exclude="head"),
        ADAM,
    ),
}
ANCHOR = random_tree(SHAPES, 0, dtype=jnp.float32)
STEPS = 8
NOT_FINITE = 2  # the step with a non-finite gradient, so that `skipped` is saved as 1


def make_step(name, tx):
    """A freshly jitted step, as in a new process."""

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
def uninterrupted_run(name):
    """Parameters and state before each step and after the last; and a fresh step."""
    tx = METHODS[name]()
    step = make_step(name, tx)
    carries = [(ANCHOR, tx.init(ANCHOR))]
    for t in range(STEPS):
        carries.append(step(carries[t], grads_at(t, name), ANCHOR))
    return carries, make_step(name, METHODS[name]())


def via_pickle(carry, fresh, folder):
    del fresh, folder
    return pickle.loads(pickle.dumps(jax.tree.map(np.asarray, carry)))


def via_msgpack(carry, fresh, folder):
    """Flax saves only the numbers, and restores them into a state from `init`."""
    del folder
    return serialization.from_bytes(fresh, serialization.to_bytes(carry))


def via_orbax(carry, fresh, folder):
    """Orbax saves to files, and restores into given shapes and shardings."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, carry)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder, abstract(fresh))


def abstract(tree):
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def shardings(tree):
    return [x.sharding for x in jax.tree.leaves(tree)]


def assert_equal(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "round_trip",
    mostly_slow({x.__name__: x for x in (via_pickle, via_msgpack, via_orbax)}, "via_msgpack"),
)
def test_a_run_resumed_at_any_step_equals_an_uninterrupted_one(name, round_trip, tmp_path):
    carries, another_process = uninterrupted_run(name)
    for stop in range(STEPS):
        fresh = ANCHOR, METHODS[name]().init(ANCHOR)
        resumed = round_trip(carries[stop], fresh, tmp_path / str(stop))
        assert_equal(resumed, carries[stop])
        if round_trip is via_orbax:  # offloaded arrays are back in host memory
            assert shardings(resumed) == shardings(fresh)
        for t in range(stop, STEPS):
            resumed = another_process(resumed, grads_at(t, name), ANCHOR)
        assert_equal(resumed, carries[STEPS])
    # One step was skipped, so the test covers `skipped`.
    assert optax.tree.get(carries[STEPS], "skipped", 1) == 1


def state_of(**options) -> Any:
    return tpgm_jax.ftp(ADAM, **OPTIONS, **options).init(ANCHOR)


def test_the_error_of_flax_names_the_field_that_an_older_state_lacks():
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
    row_norms: Any
    anchor_norms: Any
    radius_state: Any
    unit_size: Any
    displacement: Any
    spec: Any
    fingerprint: Any


@pytest.mark.parametrize("saved", ["older", "newer"])
def test_the_error_of_orbax_names_the_field_that_differs_between_versions(saved, tmp_path):
    newer = state_of()
    older = OlderState(**{name: getattr(newer, name) for name in OlderState._fields})
    states = {"older": older, "newer": newer}
    wanted = states["newer" if saved == "older" else "older"]
    with pytest.raises(ValueError, match=r"structures do not match:\nskipped:\n"):
        via_orbax(states[saved], wanted, tmp_path / "state")


@pytest.mark.parametrize(("saved", "wanted"), [("compact", "full"), ("full", "compact")])
def test_a_state_of_the_other_memory_does_not_load(saved, wanted, tmp_path):
    with pytest.raises(ValueError, match="anchor_norms"):
        via_orbax(state_of(memory=saved), state_of(memory=wanted), tmp_path / "state")


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
        (model_2, optimizer_2), via_orbax(nnx.state((model, optimizer)), fresh, tmp_path / "x")
    )
    for pair in (model, optimizer), (model_2, optimizer_2):
        step(*pair)
    assert_equal(nnx.state((model, optimizer)), nnx.state((model_2, optimizer_2)))
