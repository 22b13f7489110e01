"""Names of leaves, exclusion, and declared axes."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

import tpgm_jax
from tpgm_jax._core.axes import make_layout
from tpgm_jax._core.names import exclude_flags, leaf_names

PARAMS = {
    "block_0": {"attn": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}},
    "head": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)},
}
NAMES = ["block_0/attn/bias", "block_0/attn/kernel", "head/bias", "head/kernel"]


class Block(NamedTuple):
    weight: jax.Array
    bias: jax.Array


class Attention(NamedTuple):
    query: jax.Array
    value: jax.Array


def excluded_names(exclude, params=None):
    params = PARAMS if params is None else params
    names = leaf_names(params)
    flags = exclude_flags(exclude, names, jax.tree.leaves(params))
    return [name for name, flag in zip(names, flags, strict=True) if flag]


def test_names_are_paths():
    assert leaf_names(PARAMS) == NAMES
    assert leaf_names([{"a": 1.0}, Block(jnp.ones(1), jnp.ones(1))]) == [
        "0/a",
        "1/weight",
        "1/bias",
    ]
    assert leaf_names(1.0) == [""]


def test_a_field_called_value_keeps_its_name_beside_others():
    assert leaf_names({"attn": Attention(jnp.ones(1), jnp.ones(1))}) == ["attn/query", "attn/value"]


@pytest.mark.parametrize(
    "exclude",
    [
        "head/.*",
        re.compile("head/.*"),
        ["head/kernel", "head/bias"],
        lambda path, leaf: path.startswith("head"),
        {
            "block_0": {"attn": {"kernel": False, "bias": False}},
            "head": {"kernel": 1 > 0, "bias": True},
        },
        {"block_0": False, "head": True},
    ],
    ids=["regex", "compiled", "sequence", "callable", "tree", "prefix_tree"],
)
def test_exclude_accepts_every_form(exclude):
    assert excluded_names(exclude) == ["head/bias", "head/kernel"]


def test_patterns_match_the_whole_path():
    assert excluded_names(".*bias") == ["block_0/attn/bias", "head/bias"]
    with pytest.raises(ValueError, match="matches no parameter"):
        excluded_names("head")


def test_nothing_is_excluded_by_none_and_by_an_empty_list():
    assert excluded_names(None) == excluded_names([]) == []


def test_a_callable_sees_shapes():
    assert excluded_names(lambda path, leaf: leaf.ndim < 2) == ["block_0/attn/bias", "head/bias"]


def test_exclude_receives_the_same_leaves_in_init_and_in_a_traced_update():
    seen = []
    tx = tpgm_jax.ftp(
        optax.sgd(0.1), exclude=lambda path, leaf: seen.append((path, leaf.shape)) or leaf.ndim < 2
    )
    state = tx.init(PARAMS)
    at_init, seen[:] = list(seen), []
    jax.eval_shape(tx.update, PARAMS, state, PARAMS)
    assert seen == at_init


def test_empty_leaves_are_left_alone():
    params = {"empty": jnp.ones((0, 3)), "w": jnp.ones(2)}
    tx = tpgm_jax.ftp(optax.sgd(0.1))
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert list(tpgm_jax.radii(state, params)) == ["w"]
    assert updates["empty"].shape == (0, 3)


def test_the_first_pattern_that_matches_declares_the_axes():
    axes = {"a": tpgm_jax.Axes(rows=0), ".*": tpgm_jax.Axes(layers=0)}
    parts = make_layout({"a": jnp.ones((2, 3)), "b": jnp.ones((2, 3))}, axes=axes)
    assert [tensor.groups for tensor in parts.tensors] == [1, 2]


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_a_tensor_with_a_single_axis_is_one_row_for_any_axes(shape):
    # Equinox and PyTorch name the scale of a norm `weight`, like the weights of their layers.
    layers = 0 if len(shape) == 2 else ()
    axes = {".*weight": tpgm_jax.Axes(rows=1 if layers == 0 else 0, layers=layers)}
    (tensor,) = make_layout({"weight": jnp.ones(shape)}, axes=axes).tensors
    assert tensor.rows == ()


def test_axes_may_be_a_callable():
    def axes(path, leaf):
        return tpgm_jax.Axes(layers=0) if path == "b" else None

    parts = make_layout({"a": jnp.ones((2, 3)), "b": jnp.ones((2, 3))}, axes=axes)
    assert [tensor.groups for tensor in parts.tensors] == [1, 2]


def test_a_row_of_a_kernel_has_inputs_for_any_shape_of_its_bias():
    # Two stacked layers that `axes` does not mention: the bias fits both axes of the kernel.
    parts = make_layout({"kernel": jnp.ones((3, 4)), "bias": jnp.ones((3, 4))})
    assert [tensor.rows for tensor in parts.tensors] == [(), (1,)]


def test_negative_axes_count_from_the_back():
    axes = {"a": tpgm_jax.Axes(rows=-1, layers=-3)}
    (tensor,) = make_layout({"a": jnp.ones((2, 3, 4))}, axes=axes).tensors
    assert (tensor.rows, tensor.layers, tensor.inputs) == ((2,), (0,), (1,))
