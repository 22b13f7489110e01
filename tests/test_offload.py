"""Anchor and displacement in host memory give the same results as on the device."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import mostly_slow
from test_sharding import AUTO, EXPLICIT, OPTIONS, SHAPES, SPECS, lay_out, mesh_of
from transforms import PARTS, STEPS, numbers, stepper

import tpgm_jax
from tpgm_jax import add_anchor_decay, ftp, offload, project_to_anchor, spd, tpgm

# Untyped, because optax types a state only as a tree.
set_anchor: Any = tpgm_jax.set_anchor

METHODS = {
    "ftp": lambda **options: ftp(optax.adam(0.1), **options),
    "ftp compact": lambda **options: ftp(optax.adam(0.1), memory="compact", **options),
    "tpgm": lambda **options: tpgm(optax.adam(0.1), every=2, steps=2, **options),
    "project_to_anchor": lambda **options: optax.chain(
        optax.adam(0.1), project_to_anchor(0.5, **options)
    ),
    "spd": lambda **options: spd(optax.adam(0.1), **options),
    "add_anchor_decay": lambda axes=None, **options: optax.chain(
        add_anchor_decay(0.1, **options), optax.adam(0.1)
    ),
}
each_method = pytest.mark.parametrize("make", mostly_slow(METHODS, "ftp", "tpgm"))
MODEL = "fsdp x tensor"
pytestmark = pytest.mark.skipif(
    jax.__version_info__ < (0, 10), reason="before 0.10, JAX on CPU has no host memory in programs"
)


def kinds(tree):
    """Memory kinds of the arrays."""
    return {x.sharding.memory_kind for x in jax.tree.leaves(tree)}


def split_state(state):
    """The parameter-sized arrays that our state adds, and the rest of the state."""
    mirrors, rest = [], state
    for name in ("anchor", "displacement"):
        if optax.tree.get(state, name) is not None:
            mirrors.append(optax.tree.get(state, name))
            rest = optax.tree.set(rest, **{name: ()})
    return mirrors, rest


def train(tx, params, state):
    step = jax.jit(stepper(tx), donate_argnums=(0, 1))
    params = jax.tree.map(jnp.copy, params)
    for _ in range(STEPS):
        params, state = step(params, state)
    return params, state


def assert_equal(tree, other):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), y), tree, other)


@each_method
def test_offloading_changes_no_number_and_arrays_stay_in_their_memory(make):
    tx, params = make(**PARTS), numbers()
    expected = train(tx, params, tx.init(params))
    received = train(tx, params, offload(tx.init(params)))
    mirrors, rest = split_state(received[1])
    assert (kinds(mirrors), kinds((received[0], rest))) == ({"pinned_host"}, {"device"})
    assert_equal(received, expected)


@pytest.mark.parametrize(
    ("make", "kind"),
    mostly_slow(
        {
            **{name: (make, EXPLICIT) for name, make in METHODS.items()},
            "ftp, automatic axes": (METHODS["ftp"], AUTO),
        },
        *("ftp", "tpgm"),
    ),
)
def test_offloading_keeps_the_sharding(make, kind):
    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        tx = make(**OPTIONS[MODEL])
        params = lay_out(numbers(shapes=SHAPES[MODEL]), mesh, SPECS[MODEL])
        expected = train(tx, params, tx.init(params))
        received = train(tx, params, offload(tx.init(params)))
    assert_equal(received, expected)
    pairs = zip(split_state(received[1])[0], split_state(expected[1])[0], strict=True)
    for x, y in zip(*map(jax.tree.leaves, zip(*pairs, strict=True)), strict=True):
        assert x.sharding == y.sharding.with_memory_kind("pinned_host")


@each_method
def test_a_jitted_init_creates_a_state_in_host_memory(make):
    mesh = mesh_of(EXPLICIT)
    with jax.set_mesh(mesh):
        tx = make(**OPTIONS[MODEL])
        params = lay_out(numbers(shapes=SHAPES[MODEL]), mesh, SPECS[MODEL])
        expected = offload(tx.init(params))
        state = jax.jit(lambda params: offload(tx.init(params)))(params)
        assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, expected)
        assert kinds(split_state(state)[0]) == {"pinned_host"}
        assert_equal(state, expected)


def test_out_shardings_place_a_state_in_host_memory():
    mesh = mesh_of(EXPLICIT)
    with jax.set_mesh(mesh):
        tx = METHODS["ftp"](**OPTIONS[MODEL])
        params = lay_out(numbers(shapes=SHAPES[MODEL]), mesh, SPECS[MODEL])
        shardings = jax.tree.map(lambda x: x.sharding, offload(tx.init(params)))
        state = jax.jit(tx.init, out_shardings=shardings)(params)
        state = jax.jit(stepper(tx), out_shardings=(None, shardings))(params, state)[1]
    assert jax.tree.map(lambda x: x.sharding, state) == shardings


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("wrapped", mostly_slow({"eager": lambda f: f, "jit": jax.jit}, "eager"))
def test_set_anchor_keeps_an_offloaded_state_in_host_memory(wrapped, reset):
    tx, params, task = METHODS["ftp"](), numbers(0), numbers(1)
    state: Any = train(tx, params, offload(tx.init(params)))[1]
    moved = wrapped(lambda state, task: set_anchor(state, task, reset=reset))(state, task)
    assert kinds((moved.anchor, moved.displacement)) == {"pinned_host"}
    assert_equal(moved.anchor, task)
    factor = 0 if reset else 1
    assert_equal(
        moved.displacement, jax.tree.map(lambda x: factor * np.asarray(x), state.displacement)
    )


def test_set_anchor_copies_an_anchor_from_the_host_to_the_device():
    tx, params = METHODS["ftp"](), numbers()
    moved = set_anchor(tx.init(params), jax.device_put(params, jax.memory.Space.Host))
    assert kinds(moved) == {"device"}


def test_importances_are_offloaded_too():
    params = numbers()
    tx = optax.chain(
        add_anchor_decay(0.1, importance=jax.tree.map(jnp.abs, numbers(5))), optax.sgd(0.1)
    )
    state = offload(tx.init(params))
    assert kinds(optax.tree.get(state, "importance")) == {"pinned_host"}
    assert_equal(train(tx, params, state), train(tx, params, tx.init(params)))


def test_an_anchor_argument_may_be_in_host_memory():
    tx, params = METHODS["ftp"](anchor="argument"), numbers()
    reference = jax.device_put(params, jax.memory.Space.Host)
    step = jax.jit(lambda p, s, a: tx.update(p, s, p, anchor=a)[0])
    assert_equal(step(params, tx.init(params), reference), step(params, tx.init(params), params))


def test_a_state_of_another_optimizer_is_refused():
    with pytest.raises(ValueError, match="found no state of this library"):
        offload(optax.adam(0.1).init(numbers()))
