"""A state records its options, and a checkpoint with other options is refused."""

import copy
import pickle
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import serialization
from transforms import PARTS, numbers

import tpgm_jax
from tpgm_jax import Axes

# Untyped, because optax types a state only as a tree.
ftp: Any = tpgm_jax.ftp
tpgm: Any = tpgm_jax.tpgm

SGD = optax.sgd(0.1)
MADE: Any = {**PARTS, "norm": "mars"}
# Each differs from MADE in one option that no shape of the saved arrays shows.
OTHER: dict[str, Any] = {
    "norm": ({"norm": "l2"}, "`norm` was 'mars'"),
    "rows": ({"axes": {"layers/.*": Axes(rows=1, layers=0)}}, "rows, by `axes` was different"),
    "order": ({}, "parameters was different"),
}


def other_params(name):
    params = numbers(dtype=jnp.float32)
    if name == "order":  # the same shapes under another name
        params["bias"] = params.pop("gain")
    return params


@pytest.mark.parametrize("make", [ftp, tpgm])
@pytest.mark.parametrize("name", ["norm", "rows", "order"])
def test_arrays_of_other_options_are_refused(make, name):
    options, message = OTHER[name]
    saved = make(SGD, **MADE).init(numbers(dtype=jnp.float32))
    params, tx = other_params(name), make(SGD, **(MADE | options))
    fresh = tx.init(params)
    restored = jax.tree.unflatten(jax.tree.structure(fresh), jax.tree.leaves(saved))
    extra = {"held_out_loss": lambda params: 0.0} if make is tpgm else {}
    calls = {
        "check_state": lambda: tpgm_jax.check_state(restored, params),
        "radii": lambda: tpgm_jax.radii(restored, params),
        "report": lambda: tpgm_jax.report(restored, params),
        "set_anchor": lambda: tpgm_jax.set_anchor(restored, params),
        make.__name__: lambda: tx.update(params, restored, params, **extra),
    }
    for caller, call in calls.items():
        with pytest.raises(ValueError, match=f"`{caller}` got a state.*{message}"):
            call()
    tpgm_jax.check_state(fresh, params)


def test_arrays_of_other_options_that_orbax_restores_are_refused(tmp_path):
    # Excluding another tensor of the same shape changes no shape. (Orbax itself refuses arrays of
    # another norm or other rows, because row norms then have other shapes.)
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones((3, 2))}
    options: Any = {"anchor": "argument", "memory": "compact"}
    saved = ftp(SGD, exclude="a", **options).init(params)
    fresh = ftp(SGD, exclude="b", **options).init(params)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", saved)
        checkpointer.wait_until_finished()
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, fresh)
        restored = checkpointer.restore(tmp_path / "checkpoint", abstract)
    with pytest.raises(ValueError, match="by `exclude`"):
        tpgm_jax.check_state(restored, params)


def test_the_unit_and_the_memory_are_in_the_fingerprint():
    params = numbers(dtype=jnp.float32)
    plain = ftp(SGD).init(params)
    for options, message in (
        ({"unit": "anchor"}, "`unit` was 'norm'"),
        ({"memory": "compact"}, "`memory` was 'full'"),
        ({"anchor": "argument"}, "`anchor` was 'init'"),
        ({"exclude": "gain"}, "constrained, by `exclude` was different"),
    ):
        state: Any = ftp(SGD, **options).init(params)
        mixed = state._replace(fingerprint=plain.fingerprint)
        with pytest.raises(ValueError, match=message):
            tpgm_jax.check_state(mixed, params)


def test_a_pickled_state_of_other_options_is_refused_by_a_jitted_step_too():
    params = numbers(dtype=jnp.float32)
    restored = pickle.loads(pickle.dumps(ftp(SGD, norm="l2").init(params)))
    with pytest.raises(ValueError, match="`norm`: 'l2' in the state and 'mars' here"):
        jax.jit(ftp(SGD).update)(params, restored, params)


def test_arrays_of_other_options_that_flax_restores_are_refused():
    params = numbers(dtype=jnp.float32)
    saved = serialization.to_bytes(ftp(SGD, norm="l2").init(params))
    restored = serialization.from_bytes(ftp(SGD).init(params), saved)
    with pytest.raises(ValueError, match="`norm` was 'l2'"):
        tpgm_jax.check_state(restored, params)


@pytest.mark.parametrize("first", ["flax.serialization", "tpgm_jax"])
def test_flax_serializes_states_whichever_package_is_imported_first(first):
    program = f"""
import {first}
import flax.serialization, jax.numpy as jnp, optax, tpgm_jax
tx = tpgm_jax.ftp(optax.sgd(0.1), norm="l2")
state = tx.init({{"w": jnp.ones((3, 2))}})
restored = flax.serialization.from_bytes(state, flax.serialization.to_bytes(state))
assert restored.spec == state.spec, restored.spec
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_flax_serializes_a_state_that_was_unpickled(tmp_path):
    state = ftp(SGD).init({"w": jnp.ones((3, 2))})
    (tmp_path / "state").write_bytes(pickle.dumps(state))
    # In a process that makes no state itself.
    program = """
import pathlib, pickle, sys, flax.serialization
state = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
flax.serialization.to_bytes(state)
"""
    subprocess.run([sys.executable, "-c", program, tmp_path / "state"], check=True)


def test_a_report_reads_the_norm_from_the_state():
    # Worked by hand: 20 steps with the l2 norm on a 4x64 weight, whose l2 norm differs from the L1
    # norms of its rows.
    rng = np.random.default_rng(0)
    params: Any = {"w": jnp.asarray(rng.normal(size=(4, 64)), jnp.float32)}
    grads = {"w": jnp.asarray(rng.normal(size=(4, 64)), jnp.float32)}
    anchor, tx = params, ftp(optax.adam(1e-1), norm="l2")
    state: Any = tx.init(params)
    step = jax.jit(tx.update)
    for _ in range(20):
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
    (group,) = tpgm_jax.report(state, params).groups
    moved = np.asarray(params["w"], np.float64) - np.asarray(anchor["w"], np.float64)
    # A sum of 256 float32 squares, whose roundings are 6e-8 each.
    assert group.distance == pytest.approx(np.sqrt((moved**2).sum()), rel=256 * 6e-8)
    assert (group.norm, group.rows, group.pulled_back) == ("l2", 1, 1.0)


def test_a_report_reads_the_rows_from_the_state():
    params = {"w": jnp.ones((2, 5))}
    state = ftp(SGD, axes={"w": Axes(rows=0)}).init(params)
    moved = {"w": params["w"].at[1].add(2.0)}
    (group,) = tpgm_jax.report(state, moved).groups
    # The second row moves by 5 * 2; along the other axis every row would move by 2.
    assert (group.rows, group.distance) == (2, 10.0)


def test_a_spec_without_leaves_equals_specs_of_any_layout_for_map_params():
    params = numbers(dtype=jnp.float32)
    tx = ftp(SGD, **PARTS)
    state: Any = tx.init(params)
    empty, other = tx.init({}), ftp(SGD, norm="l2", **PARTS).init(params)
    assert empty.spec == state.spec
    assert jax.tree.structure(empty.spec) == jax.tree.structure(state.spec)
    assert hash(empty.spec) == hash(state.spec)
    assert other.spec != state.spec
    fewer = ftp(SGD).init(params)
    assert fewer.spec != state.spec


def test_a_state_from_map_params_regains_its_layout_in_the_next_update():
    params = numbers(dtype=jnp.float32)
    tx = ftp(SGD, **PARTS)
    mapped: Any = optax.tree.map_params(tx, lambda x: x, tx.init(params))
    with pytest.raises(ValueError, match=r"without its layout.*after the next `update`"):
        tpgm_jax.radii(mapped, params)
    _, state = jax.jit(tx.update)(params, mapped, params)
    assert set(tpgm_jax.radii(state, params)) == {"gain", "layers/bias", "layers/kernel"}


def test_the_spec_is_static_and_survives_copies():
    state: Any = ftp(SGD, **PARTS).init(numbers(dtype=jnp.float32))
    assert jax.tree.leaves(state.spec) == []
    assert copy.deepcopy(state).spec == state.spec
    assert jax.eval_shape(lambda x: x, state).spec == state.spec


def test_set_anchor_measures_the_new_anchor():
    one, two = ({"kernel": jnp.full((3, 2), x)} for x in (1.0, 2.0))
    for source in ("init", "argument"):
        tx = ftp(SGD, unit="anchor", anchor=source)
        state: Any = tpgm_jax.set_anchor(tx.init(one), two)
        np.testing.assert_array_equal(tx.init(one).unit_size, [3.0])
        np.testing.assert_array_equal(state.unit_size, [6.0])


def test_an_update_refuses_a_state_that_is_not_ours():
    params = {"w": jnp.ones(3)}
    with pytest.raises(TypeError, match="restore into the structure of `init"):
        ftp(SGD).update(params, {"step": 0}, params)


def test_the_fingerprint_does_not_depend_on_the_values_of_leaves():
    # Numbers of the parameters and hyper-parameters may change between save and resume.
    params = numbers(dtype=jnp.float32)
    one: Any = ftp(optax.adam(1e-3), k=0.5, **PARTS).init(params)
    two: Any = ftp(optax.adam(1e-2), k=1.0, **PARTS).init(numbers(1, dtype=jnp.float32))
    np.testing.assert_array_equal(one.fingerprint, two.fingerprint)
