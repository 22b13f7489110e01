"""The interface of `infer_axes`: arguments, results and errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from inferred_cases import (
    IDS,
    D,
    E,
    F,
    H,
    K,
    L,
    V,
    X,
    inferred,
    zeros,
)
from jax import lax

import tpgm_jax
from tpgm_jax import Axes, infer_axes


def model(p, x, scale=1.0, train=True):
    y = x @ p["a.b"]["(w)"].T
    return y * scale if train else jnp.tanh(y) @ p["c"]


PARAMS = {"a.b": {"(w)": jnp.ones((F, D))}, "a+b": jnp.ones((D, F)), "c": jnp.ones((F, D))}


def test_shapes_are_enough_and_other_arguments_are_passed_on():
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), PARAMS)
    x = jax.ShapeDtypeStruct(X, jnp.float32)
    by_shapes = infer_axes(model, shapes, x, 0.5, False)
    assert by_shapes["c"] == Axes((1,), ())
    assert by_shapes.notes.keys() == {"a+b"}
    by_arrays = infer_axes(functools.partial(model, train=False), PARAMS, np.zeros(X))
    assert dict(by_arrays) == dict(by_shapes)
    assert infer_axes(model, shapes, x, 0.5, True).notes.keys() == {"a+b", "c"}


def test_random_keys_and_outputs_other_than_arrays_are_accepted():
    def noisy(p, x, key):
        keep = jax.random.bernoulli(key, 0.5, x.shape)
        return {"y": jnp.where(keep, x, 0) @ p["w"], "name": "noisy", "none": None}

    axes = infer_axes(noisy, zeros({"w": (D, F)}), jnp.zeros(X), jax.random.key(0))
    assert axes["w"] == Axes((1,), ())


def test_parameters_may_be_one_array_or_have_leaves_other_than_arrays():
    axes = infer_axes(lambda w, x: x @ w.T, jnp.zeros((F, D)), jnp.zeros(X))
    assert dict(axes) == {"": Axes((0,), ())}
    tree = {"w": jnp.zeros((F, D)), "activation": jnp.tanh}
    axes = infer_axes(lambda p, x: p["activation"](x @ p["w"].T), tree, jnp.zeros(X))
    assert dict(axes) == {"w": Axes((0,), ())}


def layout(params, axes):
    tx = tpgm_jax.ftp(optax.sgd(0.1), axes=axes)
    tensors = jax.eval_shape(tx.init, params).spec.layout.leaves
    return {tensor.name: (tensor.rows, tensor.layers) for tensor in tensors}


def test_ftp_of_a_model_like_gemma_has_the_inferred_layout():
    shapes = {
        "embedder": {"input_embedding": (V, D)},
        "q_einsum": {"w": (H, D, K)},
        "kv_einsum": {"w": (2, E, D, K)},
        "layers": {"w": (L, D, D), "scale": (L, D)},
    }
    params = jax.tree.map(jnp.ones, shapes, is_leaf=lambda x: isinstance(x, tuple))

    def gemma(p, ids):
        x = p["embedder"]["input_embedding"][ids]
        q = jnp.einsum("BTD,NDH->BTNH", x, p["q_einsum"]["w"])
        k, v = jnp.einsum("BSD,CKDH->CBSKH", x, p["kv_einsum"]["w"])
        y, _ = lax.scan(lambda x, w: (x * w["scale"] @ w["w"], None), x, p["layers"])
        return q.sum() + k.sum() + v.sum(), y @ p["embedder"]["input_embedding"].T

    axes = infer_axes(gemma, params, jnp.zeros(IDS, int))
    expected = {
        "embedder/input_embedding": ((0,), ()),
        "q_einsum/w": ((0, 2), ()),
        "kv_einsum/w": ((0, 1, 3), ()),
        "layers/w": ((2,), (0,)),
        "layers/scale": ((), (0,)),
    }
    assert layout(params, axes) == expected
    # Names alone have the rows wrong.
    assert layout(params, None)["embedder/input_embedding"] == ((1,), ())

    tx = tpgm_jax.ftp(optax.sgd(0.1), axes=axes)
    state = tx.init(params)
    _, state = jax.jit(tx.update)(params, state, params)
    assert len(tpgm_jax.radii(state, params)["layers/w"]) == L


def test_names_are_matched_exactly_and_a_part_of_the_tree_is_enough():
    axes = infer_axes(model, PARAMS, jnp.zeros(X))
    assert layout(PARAMS, axes)["a.b/(w)"] == ((0,), ())
    assert layout({"a.b": PARAMS["a.b"]}, axes) == {"a.b/(w)": ((0,), ())}
    labels = {"a.b": "ftp", "a+b": "sgd", "c": "sgd"}
    tx = optax.partition(
        {"ftp": tpgm_jax.ftp(optax.sgd(0.1), axes=axes), "sgd": optax.sgd(0.1)}, labels
    )
    assert tpgm_jax.radii(tx.init(PARAMS), PARAMS).keys() == {"a.b/(w)"}


def test_other_parameters_than_the_inferred_ones_are_refused():
    axes = infer_axes(model, PARAMS, jnp.zeros(X))
    with pytest.raises(ValueError, match=r"nothing \(closest: 'c'.*call it with the tree that"):
        layout({"d": jnp.ones((F, D))}, axes)
    with pytest.raises(ValueError, match=r"\(10, 8\) for 'c' of shape \(3, 3\)"):
        layout({"c": jnp.ones((3, 3))}, axes)


def test_entries_can_be_changed_by_pattern():
    axes = infer_axes(model, PARAMS, jnp.zeros(X))
    changed = axes | {r"c|a\.b/.*": Axes(rows=(), layers=0)}
    assert changed["c"] == changed["a.b/(w)"] == Axes((), 0)
    assert changed["a+b"] == axes["a+b"]
    assert (axes.notes.keys(), changed.notes.keys()) == ({"a+b", "c"}, {"a+b"})
    assert layout(PARAMS, changed)["c"] == ((), (0,))
    with pytest.raises(ValueError, match="`axes` has a pattern that matches no parameter: 'head'"):
        _ = axes | {"head": Axes()}


def test_it_prints_as_a_table():
    axes = infer_axes(model, PARAMS, jnp.zeros(X))
    table, _, notes = repr(axes).partition("\n\n")
    assert [line.split("  ")[0] for line in table.splitlines()] == ["parameter", *axes]
    assert table.splitlines()[2].split() == ["a.b/(w)", "(10,", "8)", "(0,)", "()"]
    assert notes.splitlines() == [f"{name}: {note}" for name, note in axes.notes.items()]


def test_bad_parameters_are_refused():
    with pytest.raises(ValueError, match="`params` has no arrays"):
        infer_axes(lambda p: 0, {})
    twice = {"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}}
    with pytest.raises(ValueError, match="two parameters have the same path, 'a/b'"):
        infer_axes(lambda p: 0, twice)


@pytest.mark.usefixtures("x64")
def test_parameters_in_shards_have_the_same_rows():
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def local(w, v, x):
        w = lax.all_gather(w.reshape(1, F // 2, D)[0], "x", tiled=True)
        return (x @ w.T) @ v.T

    def fn(p, x):
        run = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(spec("x"), spec(None, None), spec("x")),
            out_specs=spec("x"),
        )
        return run(p["w"], p["v"], lax.with_sharding_constraint(x, jax.NamedSharding(mesh, spec())))

    axes = inferred(fn, {"w": (F, D), "v": (D, F)}, X)
    assert dict(axes) == {"w": Axes((0,), ()), "v": Axes((0,), ())}
    assert axes.notes == {}
