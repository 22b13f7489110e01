"""`infer_axes` on the modules of Flax, Equinox and Haiku."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax_modules import (
    DENSE,
    LINEN,
    NNX,
    ROWS,
    TOKENS,
    NNXLayer,
    each,
    linen_shapes,
    square,
    stack_rows,
)
from inferred_cases import IDS, D, F, H, K, L, R, V
from jax import lax

from tpgm_jax import Axes, infer_axes
from tpgm_jax._core.axes import make_layout
from tpgm_jax._core.names import by_name

# Flax's modules. Their rows are stated in `flax_modules.py`.


def rows_of(params, axes):
    """The rows of each leaf, as sets of the entries' positions, and how many radii it has."""
    tensors = {}
    for tensor in make_layout(params, axes=axes).tensors:
        positions = np.arange(np.prod(tensor.shape)).reshape(tensor.shape)
        last = np.moveaxis(positions, tensor.inputs, range(-len(tensor.inputs), 0))
        size = int(np.prod([tensor.shape[i] for i in tensor.inputs]))
        tensors[tensor.name] = {frozenset(x) for x in last.reshape(-1, size)}, tensor.groups
    return tensors


# Names and shapes do not show these; uses do. A batch axis of a product stacks layers.
SHOWN_BY_USE = {
    "batched": stack_rows(0, DENSE),
    "undeclared without bias": {"kernel": each(-3, -1)},
}


def rows_by_hand(module, params):
    by_hand = {}
    table = ROWS | SHOWN_BY_USE
    for name, leaf in by_name(params).items():
        groups = table[module][name](np.arange(np.prod(leaf.shape)).reshape(leaf.shape))
        rows = {frozenset(np.ravel(row)) for group in groups for row in group}
        by_hand[name] = rows, len(groups)
    return by_hand


# Copies that are applied to one and the same input by `vmap`: their kernels look like one wide
# kernel, and their biases like one bias.
SIDE_BY_SIDE = {"vmapped", "vmapped along 1", "vmapped conv", "vmapped embed", "stacks in a stack"}


@pytest.mark.parametrize("module", [name for name in LINEN if name not in SIDE_BY_SIDE])
def test_linen_modules_have_the_rows_by_hand(module):
    linen, shape = LINEN[module]
    inputs = jax.ShapeDtypeStruct(shape, "int32" if shape is TOKENS else "float32")
    params = linen_shapes(module)
    rest = jax.eval_shape(linen.init, jax.random.key(0), inputs)
    rest = {name: x for name, x in rest.items() if name != "params"}

    def apply(params, x, rest):
        return linen.apply({"params": params, **rest}, x, mutable=list(rest))

    axes = infer_axes(apply, params, inputs, rest)
    assert axes.notes == {}
    check_rows(module, params, axes)


def check_rows(module, params, axes):
    by_hand = rows_by_hand(module, params)
    for name, found in rows_of(params, axes).items():
        assert found == by_hand[name], name


def test_copies_side_by_side_have_the_rows_of_one_wide_layer():
    for module in ("vmapped", "vmapped along 1", "vmapped conv", "stacks in a stack"):
        linen, shape = LINEN[module]
        params = linen_shapes(module)
        axes = infer_axes(
            lambda params, x, linen=linen: linen.apply({"params": params}, x),
            params,
            jnp.zeros(shape),
        )
        assert rows_of(params, axes)["kernel"] == (rows_by_hand(module, params)["kernel"][0], 1)
        assert axes["bias"] == Axes((), ())


class Layer(NNXLayer):
    def __call__(self, x):
        x = self.norm(self.dense(x))
        x = self.self(x, x)
        return self.cross(x, x)


@pytest.mark.parametrize("module", [x for x in NNX if not x.startswith(("vmapped", "undeclared"))])
def test_nnx_modules_have_the_rows_by_hand(module):
    shape = LINEN[module][1]
    inputs = jax.ShapeDtypeStruct(shape, "int32" if shape is TOKENS else "float32")
    # One module of a stack; the loop is written below.
    build = {"layers": Layer, "layers along 1": Layer, "stacks in a stack": square}
    graph, _, rest = nnx.split(build.get(module, NNX[module])(rngs=nnx.Rngs(0)), nnx.Param, ...)
    params = nnx.state(nnx.eval_shape(lambda: NNX[module](rngs=nnx.Rngs(0))), nnx.Param)

    def apply(params, x, rest):
        def one(params, x):
            return nnx.merge(graph, params, rest)(x)

        if module == "stacks in a stack":
            inner = jax.vmap(one, in_axes=(0, 0))
            return jax.vmap(inner, in_axes=(1, 0))(params, jnp.broadcast_to(x, (3, 3, *x.shape)))
        if module.startswith("layers"):
            axis = int(module.endswith("1"))
            params = jax.tree.map(lambda w: jnp.moveaxis(w, axis, 0), params)
            return lax.scan(lambda x, p: (one(p, x), None), x, params)[0]
        return one(params, x)

    axes = infer_axes(apply, params, inputs, rest)
    assert axes.notes == {}
    check_rows(module, params, axes)


def test_equinox_modules_have_outputs_first():
    eqx = pytest.importorskip("equinox")
    key = jax.random.key(0)
    net = {
        "embed": eqx.nn.Embedding(V, D, key=key),
        "attention": eqx.nn.MultiheadAttention(H, D, key=key),
        "mlp": eqx.nn.MLP(D, 4, F, 1, key=key),
        "conv": eqx.nn.Conv1d(4, 6, 3, groups=2, key=key),
        "norm": eqx.nn.LayerNorm(D),
        "gru": eqx.nn.GRUCell(D, R, key=key),
    }

    def apply(net, ids):
        x = jax.vmap(net["norm"])(jax.vmap(net["embed"])(ids))
        x = net["attention"](x, x, x)
        h, _ = lax.scan(lambda h, x: (net["gru"](x, h), None), jnp.zeros(R), x)
        return h.sum() + net["conv"](jax.vmap(net["mlp"])(x).T).sum()

    axes = infer_axes(
        lambda net, ids: jax.vmap(apply, (None, 0))(net, ids), net, np.zeros(IDS, int)
    )
    leaves = by_name(eqx.filter(net, eqx.is_array))
    assert axes.keys() == leaves.keys()
    for name, entry in axes.items():
        one_row = name.endswith(("bias", "bias_n")) or name.startswith("norm")
        assert entry == (Axes((), ()) if one_row else Axes((0,), ())), name
    assert axes.notes == {}


def test_haiku_modules_have_outputs_last_and_words_first():
    hk = pytest.importorskip("haiku")

    def forward(ids):
        x = hk.LayerNorm(-1, True, True)(hk.Embed(V, D)(ids))
        x = hk.MultiHeadAttention(H, K, w_init=hk.initializers.RandomNormal())(x, x, x)
        return hk.layer_stack(L)(hk.Linear(H * K))(hk.Conv1D(H * K, 3)(x))

    net: Any = hk.without_apply_rng(hk.transform(forward))
    ids = jnp.zeros(IDS, int)
    params = jax.eval_shape(net.init, jax.random.key(0), ids)
    axes = infer_axes(net.apply, params, ids)
    for name, entry in axes.items():
        stack = name.startswith("__layer_stack")
        last = len(by_name(params)[name].shape) - 1
        rows = {"embeddings": (0,), "w": (last,)}.get(name.rpartition("/")[2], ())
        assert entry == Axes(rows, (0,) if stack else ()), name
    assert axes.notes == {}
