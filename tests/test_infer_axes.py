"""Rows and layers that `infer_axes` reads off functions, against rows that are stated by hand."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
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
from jax import lax

import tpgm_jax
from tpgm_jax import Axes, infer_axes
from tpgm_jax._core.axes import make_layout
from tpgm_jax._core.names import by_name

V, D, H, K, F, L, E, R = 11, 8, 2, 6, 10, 3, 4, 5  # all different, so that axes are told by size
X, Y, IDS = (2, 7, D), (2, 7, F), (2, 7)  # data: words, words in hidden units, tokens


def zeros(shapes):
    return {name: jnp.zeros(shape) for name, shape in shapes.items()}


def inferred(fn, shapes, *data):
    """What is inferred of `fn(params, *data)`, where data are shapes; of ints, if they are ids."""
    arrays = [jax.ShapeDtypeStruct(x, "int32" if x is IDS else "float32") for x in data]
    return infer_axes(fn, zeros(shapes), *arrays)


# Cases: a function, the shapes of its parameters and of the data, and by hand the rows and layers.

ROW = ((), ())
CASES: dict[str, tuple[Any, dict[str, tuple[int, ...]], tuple[Any, ...], dict[str, Any]]] = {}


def case(shapes, *data, **expected):
    def add(fn):
        CASES[fn.__name__] = (fn, shapes, data, expected)
        return fn

    return add


@case({"w": (F, D), "b": (F,)}, X, w=((0,), ()), b=ROW)
def torch_dense(p, x):
    return x @ p["w"].T + p["b"]


@case({"w": (D, F)}, (D,), w=((1,), ()))
def one_example(p, x):
    return x @ p["w"]


@case({"w": (1, F)}, (2, 1), w=((1,), ()))
def one_input(p, x):
    return x @ p["w"]


@case({"w": (1, F)}, (2, 1), w=((1,), ()))
def one_input_and_heads(p, x):
    return jnp.einsum("bi,ijk->bjk", x, p["w"].reshape(1, 2, F // 2))


@case({"w": (D, F)}, (D + 1,), w=((1,), ()))
def padded_and_reversed(p, x):
    w = lax.optimization_barrier(jax.device_put(jnp.pad(p["w"][:, ::-1], ((0, 1), (0, 2)))))
    return x @ w


@case({"w": (D, F)}, X, w=((1,), ()))
def weight_on_the_left(p, x):
    return jnp.einsum("df,btd->btf", p["w"], x)


@case({"w": (V, D)}, IDS, w=((0,), ()))
def embedding(p, ids):
    return p["w"][ids]


@case({"w": (V, D)}, IDS, w=((0,), ()))
def embedding_by_take(p, ids):
    return jnp.take(p["w"], ids, axis=0, mode="clip") * D**0.5


@case({"w": (D, V), "v": (D, F)}, IDS, w=((1,), ()), v=((1,), ()))
def embedding_with_tokens_last(p, ids):
    return jnp.tanh(jnp.moveaxis(p["w"][:, ids], 0, -1)) @ p["v"]


@case({"w": (V, D), "v": (D, F)}, IDS, w=((0,), ()), v=((1,), ()))
def embedding_right_before_a_product(p, ids):
    return p["w"][ids] @ p["v"]


@case({"w": (V, D)}, IDS, w=((0,), ()))
def embedding_summed_over_words(p, ids):
    return jnp.cumsum(p["w"][ids], axis=1)


@case({"w": (V, H, K), "v": (K, F)}, IDS, w=((0,), ()), v=((1,), ()))
def embedding_in_heads(p, ids):
    return p["w"][ids] @ p["v"]


@case({"w": (V, D)}, IDS, w=((0,), ()))
def slices_of_each_example(p, ids):
    return jax.vmap(lambda i: lax.dynamic_slice(p["w"], (i, 0), (1, D)))(ids[0])


@case({"w": (V, D)}, IDS, w=ROW)
def entries_by_two_indices(p, ids):
    return p["w"][ids, ids % D]


@case({"u": (V, D), "w": (F, D)}, IDS, u=((0,), ()), w=((0,), ()))
def two_embeddings(p, ids):
    return jnp.sum(p["u"][ids] * p["w"][ids], axis=-1)


@case({"w": (V, D)}, X, IDS, w=((0,), ()))
def sampled_outputs(p, x, ids):
    return jnp.einsum("btd,btd->bt", x, p["w"][ids])


@case({"w": (V, D)}, X, (), w=((0,), ()))
def one_slice_at_an_index(p, x, i):
    return x + lax.dynamic_index_in_dim(p["w"], i.astype(int), keepdims=False)


@case({"scale": (7, D), "bias": (1, D), "positions": (V, D)}, X, scale=ROW, bias=ROW, positions=ROW)
def entry_by_entry(p, x):
    return x * (1 + p["scale"]) + p["bias"] + p["positions"][:7]


@case({"w": (D, F), "temperature": ()}, X, w=((1,), ()), temperature=ROW)
def scaled_and_tiled(p, x):
    return x @ jnp.tile(p["w"], (1, 2)) / p["temperature"]


@case({"b": (16, 7), "w": (D, F)}, X, b=ROW, w=((1,), ()))
def data_reshaped_and_weight_printed(p, x):
    jax.debug.callback(lambda w: None, p["w"])
    return x.reshape(16, 7) + p["b"], x @ p["w"]


@case({"w": (V, D), "v": (D,)}, X, w=ROW, v=ROW)
def some_positions_alone_and_a_vector_used_twice(p, x):
    return (x[:, 0] + p["w"][0]) @ p["v"], (x + p["w"][1:8]) * p["v"]


@case({"w": (V, D)}, X, (), w=ROW)
def a_window_of_positions(p, x, i):
    return x + lax.dynamic_slice_in_dim(p["w"], i.astype(int), 7)


@case(
    {"q": (H, D, K), "kv": (2, E, D, K), "o": (H, K, D)},
    X,
    q=((0, 2), ()),
    kv=((0, 1, 3), ()),
    o=((2,), ()),
)
def attention_of_gemma(p, x):
    q = jnp.einsum("BTD,NDH->BTNH", x, p["q"])
    k, v = jnp.einsum("BSD,CKDH->CBSKH", x, p["kv"])
    a = jax.nn.softmax(jnp.einsum("BTNH,BSKH->BNTS", q, k))
    return jnp.einsum("BTNH,NHD->BTD", jnp.einsum("BNTS,BSKH->BTNH", a, v), p["o"])


@case({"w": (D, H, K), "o": (H, K, D)}, X, w=((1, 2), ()), o=((2,), ()))
def heads_merged_for_the_product(p, x):
    y = (x @ p["w"].reshape(D, H * K)).reshape(2, 7, H, K)
    return y.reshape(2, 7, H * K) @ p["o"].reshape(-1, D)


@case({"w": (D, H * K)}, X, w=((1,), ()))
def heads_split_for_the_product(p, x):
    return jnp.einsum("btd,dhk->bthk", x, p["w"].reshape(D, H, K))


@case({"q": (D, H), "k": (D, K)}, X, q=((1,), ()), k=((1,), ()))
def weights_concatenated(p, x):
    return x @ jnp.concatenate([p["q"], p["k"]], axis=1)


@case({"w": (D, 3 * K)}, X, w=((1,), ()))
def weight_split(p, x):
    q, k, v = jnp.split(p["w"], 3, axis=1)
    return (x @ q) * (x @ k) * (x @ v)


@case({"w": (2, D, K), "b": (2, K)}, X, w=((2,), (0,)), b=((), (0,)))
def every_slice_alone(p, x):
    return [x @ p["w"][i] + p["b"][i] for i in range(2)]


@case({"w": (D, 2, K)}, X, w=((2,), (1,)))
def every_slice_of_a_split(p, x):
    return [x @ w.reshape(D, K) for w in jnp.split(p["w"], 2, axis=1)]


@case({"w": (2, D, K)}, X, w=((2,), (0,)))
def every_slice_at_a_fixed_start(p, x):
    return [x @ lax.dynamic_slice(p["w"], (i, 0, 0), (1, D, K))[0] for i in range(2)]


@case({"w": (D, F), "s": (1, F)}, (2, 7, 4), (), w=((1,), ()), s=ROW)
def a_window_of_inputs(p, x, i):
    return x @ (lax.dynamic_slice_in_dim(p["w"], i.astype(int), 4) * p["s"])


@case({"w": (3, D, K)}, X, w=((0, 2), ()))
def some_slices_alone(p, x):
    return x @ p["w"][0], x @ p["w"][1]


def conv(x, w, layout, **options):
    return lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", layout, "NHWC"), **options
    )


@case({"w": (F, D, 3, 3), "b": (F,)}, (1, 5, 5, D), w=((0,), ()), b=ROW)
def convolution_of_torch(p, x):
    return conv(x, p["w"], "OIHW") + p["b"]


@case({"w": (3, 3, 4, F)}, (1, 5, 5, D), w=((3,), ()))
def convolution_in_groups(p, x):
    return conv(x, p["w"], "HWIO", feature_group_count=2)


@case({"w": (2 * D, 1, 3, 3)}, (1, 5, 5, D), w=((0,), ()))
def convolution_by_channel(p, x):
    return conv(x, p["w"], "OIHW", feature_group_count=D)


@case({"w": (3, 3, D, 2)}, (1, 5, 5, D), w=((2, 3), ()))
def convolution_by_channel_of_keras(p, x):
    return conv(x, p["w"].reshape(3, 3, 1, 2 * D), "HWIO", feature_group_count=D)


@case({"w": (3, 3, D, 2, F)}, (1, 5, 5, 4, 2), w=((3, 4), ()))
def convolution_of_merged_features(p, x):
    return conv(x.reshape(1, 5, 5, 8), p["w"].reshape(3, 3, D, -1), "HWIO")


@case({"image": (1, 5, 5, D), "w": (3, 3, D, F)}, (1, 5, 5, F), image=ROW, w=((3,), ()))
def convolution_of_a_learned_image(p, x):
    return x + conv(p["image"], p["w"], "HWIO")


@case({"w": (3, 3, D, F)}, (1, 5, 5, D), w=((3,), ()))
def convolution_transposed(p, x):
    return lax.conv_transpose(x, p["w"], (2, 2), "SAME")


@case({"w": (3, 3, F, D)}, (1, 5, 5, D), w=((2,), ()))
def convolution_transposed_of_a_forward_kernel(p, x):
    return lax.conv_transpose(x, p["w"], (2, 2), "SAME", transpose_kernel=True)


@case(
    {
        "up": (E, D, F),
        "b": (E, F),
        "shared": (F, F),
        "scale": (E, F),
        "down": (E, F, D),
        "route": (D, E),
    },
    X,
    shared=((1,), ()),
    up=((2,), (0,)),
    b=((), (0,)),
    down=((2,), (0,)),
    route=((1,), ()),
    scale=((), (0,)),
)
def experts(p, x):
    each = jnp.einsum("btd,bte->ebtd", x, jax.nn.softmax(x @ p["route"]))
    y = each[..., :1] + jnp.einsum("ebtd,edf->ebtf", each, p["up"]) + p["b"][:, None, None]
    y = (y - jnp.mean(y, -1, keepdims=True)) @ p["shared"]
    return jnp.einsum("ebtf,efd->ebtd", jax.nn.gelu(y) * p["scale"][:, None, None], p["down"])


@case({"w": (E, D, F)}, X, IDS, w=((2,), (0,)))
def experts_by_index(p, x, ids):
    return jnp.einsum("btd,btdf->btf", x, p["w"][ids].astype("bfloat16"))


@case({"w": (E, D, F)}, (7, D), IDS, w=((2,), (0,)))
def experts_in_ragged_groups(p, x, ids):
    return lax.ragged_dot(x, p["w"], ids[0, :E])


@case({"w": (H, K, F), "gain": (H * F,)}, (2, 7, H, K), w=((2,), (0,)), gain=ROW)
def blocks_of_a_diagonal(p, x):
    return jnp.einsum("bthk,hkf->bthf", x, p["w"]).reshape(2, 7, H * F) * p["gain"]


STACK = {"w": (L, D, D), "b": (L, D)}
STACKED = {"w": ((2,), (0,)), "b": ((), (0,))}


def layer(x, p):
    return jnp.tanh(x @ p["w"] + p["b"])


@case(STACK | {"c": (D, D)}, X, **STACKED, c=((1,), ()))
def scanned(p, x):
    stack = {"w": p["w"], "b": p["b"]}
    return lax.scan(lambda x, w: (layer(x, w) @ p["c"], None), x, stack)[0]


@case({"w": (D, L, D)}, X, w=((2,), (1,)))
def scanned_along_another_axis(p, x):
    return lax.scan(lambda x, w: (x @ w, None), x, jnp.moveaxis(p["w"], 1, 0))[0]


@case({"w": (2, L, D, D)}, X, w=((3,), (0, 1)))
def scanned_twice(p, x):
    def outer(x, w):
        return lax.scan(lambda x, w: (x @ w, None), x, w)[0], None

    return lax.scan(outer, x, p["w"])[0]


@case({"w": (L, F, D), "c": (F, D)}, X, w=((1,), (0,)), c=((0,), ()))
def transposed_in_a_loop_and_used_in_another(p, x):
    def transposed(_, w):
        return None, (w.T, p["c"].T)

    _, stacked = lax.scan(transposed, None, p["w"])
    return lax.scan(lambda c, w: (c + jnp.sum(x @ w[0] + x @ w[1]), None), 0.0, stacked)[0]


@case({"w": (D, D)}, X, w=((1,), ()))
def carried_unchanged(p, x):
    return lax.scan(lambda c, _: ((c[0] @ c[1], c[1]), None), (x, p["w"]), length=3)[0][0]


@case({"w": (F, D)}, X, w=((0,), ()))
def condition_with_a_weight_in_while(p, x):
    return lax.while_loop(lambda x: jnp.sum(x @ p["w"].T) < 1, lambda x: x + 1, x)


@case({"w": (D, D)}, X, w=((1,), ()))
def carried_unchanged_in_while(p, x):
    return lax.while_loop(lambda c: c[0].sum() < 1, lambda c: (c[0] @ c[1], c[1]), (x, p["w"]))[0]


@case({"w": (L, D, F)}, X, w=((0, 2), ()))
def scaled_in_a_loop_and_used_at_once(p, x):
    return jnp.einsum("btd,ldf->btlf", x, lax.map(lambda w: 2 * w, p["w"]))


@case({"h": (1, F), "w": (D, F), "u": (F, F)}, X, h=ROW, w=((1,), ()), u=((1,), ()))
def recurrent_from_a_learned_state(p, x):
    h = jnp.broadcast_to(p["h"], (2, F))
    return lax.scan(lambda h, x: (jnp.tanh(x @ p["w"] + h @ p["u"]), None), h, x.swapaxes(0, 1))


@case(STACK, X, **STACKED)
def unrolled(p, x):
    for i in range(L):
        x = layer(x, {name: w[i] for name, w in p.items()})
    return x


@case({"w": (L, D, D)}, X, w=((2,), (0,)))
def indexed_by_a_loop(p, x):
    return lax.fori_loop(0, L, lambda i, x: jnp.tanh(x @ p["w"][i]), x)


@case({"w": (D, D)}, X, w=((1,), ()))
def used_in_while(p, x):
    return lax.while_loop(lambda x: jnp.sum(x) < 1, lambda x: x @ p["w"], x)


@case(STACK, (L, 2, D), **STACKED)
def vmapped(p, x):
    return jax.vmap(layer)(x, p)


@case({"w": (L, 3, 3, 4, F), "b": (L, F)}, (L, 1, 5, 5, D), w=((4,), (0,)), b=((), (0,)))
def convolution_vmapped(p, x):
    return jax.vmap(lambda x, w, b: conv(x, w, "HWIO", feature_group_count=2) + b)(
        x, p["w"], p["b"]
    )


@case({"w": (L, V, D)}, (L, 5), w=((1,), (0,)))
def embedding_vmapped(p, ids):
    return jax.vmap(lambda w, ids: w[ids.astype(int)])(p["w"], ids)


@case({"w": (D, F), "v": (F, D), "b": (F,)}, X, w=((1,), ()), v=((1,), ()), b=ROW)
def in_calls(p, x):
    @jax.jit
    @jax.checkpoint
    def block(x, w, v, b):
        return jax.nn.relu(x @ w + b) @ v

    return block(x, p["w"], p["v"], p["b"])


@jax.custom_vjp
def half_gradient(w, x):
    return x @ w


half_gradient.defvjp(lambda w, x: (x @ w, (w, x)), lambda res, g: (res[1].T @ g, g @ res[0].T / 2))


@case({"w": (D, F)}, (2, D), w=((1,), ()))
def in_custom_vjp(p, x):
    return half_gradient(p["w"], x)


@case({"w": (D, D), "v": (D, D), "u": (D, D)}, X, w=((1,), ()), v=((0,), ()), u=((1,), ()))
def in_cond(p, x):
    y = lax.cond(x.sum() > 0, lambda: x @ p["w"], lambda: x @ p["v"].T)
    return y @ lax.cond(x.sum() > 0, lambda w: w, lambda w: 1 * w, p["u"])


@case({"w": (D, D), "a": (D, R), "b": (R, D)}, X, w=((1,), ()), a=((1,), ()), b=((1,), ()))
def low_rank_pair(p, x):
    return x @ p["w"] + 0.1 * (x @ p["a"]) @ p["b"]


@case({"w": (D, F), "a": (D, R), "b": (R, F)}, X, w=((1,), ()), a=((1,), ()), b=((1,), ()))
def low_rank_pair_merged(p, x):
    return x @ (p["w"] + 0.1 * (p["a"] @ p["b"]))


@case({"w": (D, F), "a": (D, R), "b": (R, F)}, X, w=((1,), ()), a=((1,), ()), b=((1,), ()))
def low_rank_gate(p, x):
    return x @ (p["w"] * jax.nn.sigmoid(p["a"] @ p["b"]))


@case({"w": (F, D), "a": (R, D), "b": (F, R)}, X, w=((0,), ()), a=((0,), ()), b=((0,), ()))
def low_rank_pair_of_torch_merged(p, x):
    return x @ (p["w"] + -(p["b"] @ p["a"]) / 8).T


@case({"v": (D, F), "g": (1, F), "m": (D, F)}, X, v=((1,), ()), g=ROW, m=((1,), ()))
def weight_norm(p, x):
    v = p["v"] - jnp.mean(p["v"], axis=0)
    w = p["g"] * v / jnp.sqrt(jnp.sum(v**2, axis=0, keepdims=True))
    return x @ w + x @ jnp.where(np.tri(D, F) > 0, p["m"], 0)


@case({"w": (F, D)}, X, w=((0,), ()))
def rows_normalized(p, x):
    return x @ (p["w"] / jnp.sum(jnp.abs(p["w"]), axis=1, keepdims=True)).T


@case({"w": (D, F), "s": (F,)}, X, (), w=((1,), ()), s=ROW)
def quantized_and_scaled(p, x, t):
    return x @ (jnp.round(p["w"]).astype("int8").astype("bfloat16") * p["s"] * t)


@case(
    {"probe": (1, 1, D), "q": (D, F), "b": (F,), "k": (D, F)},
    X,
    probe=ROW,
    q=((1,), ()),
    b=ROW,
    k=((1,), ()),
)
def learned_query(p, x):
    q = jnp.tile(p["probe"], (2, 1, 1)) @ p["q"] + p["b"]
    return jnp.einsum("bqf,btf->bqt", q, x @ p["k"])


@case({"token": (1, 1, D), "w": (D, F)}, X, token=ROW, w=((1,), ()))
def token_before_the_words(p, x):
    return jnp.concatenate([jnp.tile(p["token"], (2, 1, 1)), x], axis=1) @ p["w"]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("differentiate", [False, True], ids=["forward", "gradient"])
def test_rows_and_layers_are_as_by_hand(name, differentiate):
    fn, shapes, data, expected = CASES[name]
    if differentiate:
        if name.endswith("in_while") or name == "indexed_by_a_loop":
            pytest.skip("reverse mode needs a fixed number of steps")

        def loss(p, *data):
            return sum(jnp.sum(y.astype("float32")) for y in jax.tree.leaves(fn(p, *data)))

        axes = inferred(jax.value_and_grad(loss), shapes, *data)
    else:
        axes = inferred(fn, shapes, *data)
    assert dict(axes) == {name: Axes(*x) for name, x in expected.items()}
    assert axes.notes == {}


# What cannot be followed has the rows of its name, the last axis, and a note.


def two_uses(p, x):
    return (x @ p["w"]) @ p["w"].T


BY_NAME = {
    "gram": (lambda p, x: x @ (p["w"] @ p["w"].T), "is multiplied by itself"),
    "twisted": (lambda p, x: x @ (p["w"] * p["w"].T), "combines it with a rearrangement of itself"),
    "slices combined": (
        lambda p, x: x @ (p["w"][:, 0] * p["w"][:, 1]),
        "combines it with a rearrangement of itself",
    ),
    "mixed": (lambda p, x: x[..., :4] @ p["w"][:6, :4].reshape(4, 6), "mixes its axes"),
    "accumulated": (lambda p, x: x @ jnp.cumsum(p["w"], 0), "goes through `cumsum`"),
    "split into both": (
        lambda p, x: jnp.einsum("bti,ijk->btjk", x[..., :2], p["w"].T.reshape(2, 4, D)),
        "uses parts of axis 1 in different ways",
    ),
    "reduced": (lambda p, x: x + p["w"].sum(0), "reduced before it meets data"),
    "unused": (lambda p, x: x, "never meets data"),
    "only regularised": (lambda p, x: jnp.sum(p["w"] ** 2) + x.sum(), "never meets data"),
    "branches": (
        lambda p, x: x @ lax.cond(x.sum() > 0, lambda w: w, lambda w: w.T, p["w"]),
        "branches of a `cond`",
    ),
    "changed by a loop": (
        lambda p, x: x @ lax.fori_loop(0, 3, lambda i, w: w / 2, p["w"]),
        "a loop changes it",
    ),
    "kernel from data": (
        lambda p, x: conv(p["w"][None, :, :, None], x[0, :1, None, None, :], "HWIO"),
        "by weights that depend on data",
    ),
}


@pytest.mark.parametrize("name", BY_NAME)
def test_parameters_that_cannot_be_followed_have_rows_by_name_and_a_note(name):
    fn, note = BY_NAME[name]
    axes = inferred(fn, {"w": (D, D)}, X)
    assert axes["w"] == Axes((1,), ())
    assert note in axes.notes["w"]
    assert axes.notes["w"].startswith("rows by name, because ")
    assert f"w: {axes.notes['w']}" in repr(axes)


def test_a_product_of_two_parameters_alone_gets_a_note():
    # Either may be the activation: a learned query of an attention, or a factor of a weight.
    axes = inferred(lambda p, x: x @ (p["a"] @ p["b"]), {"a": (D, R), "b": (R, F)}, X)
    assert axes.notes.keys() == {"a", "b"}
    axes = inferred(
        lambda p, x: jnp.tanh(p["a"] @ p["b"] + p["c"]) @ x.swapaxes(1, 2),
        {"a": (R, F), "b": (F, D), "c": (D,)},
        X,
    )
    assert axes.notes.keys() == {"a", "b"}
    assert all("multiplied by another parameter" in note for note in axes.notes.values())


def test_layers_are_kept_where_rows_are_by_name():
    def scanned(p, x):
        return lax.scan(lambda x, w: (x @ jnp.cumsum(w, 0), None), x, p["embedding"])[0]

    axes = inferred(scanned, {"embedding": (L, D, D)}, X)
    assert axes["embedding"] == Axes((1,), (0,))
    assert axes.notes.keys() == {"embedding"}


def test_the_first_of_several_uses_counts_and_the_others_are_noted():
    def tied(p, ids):
        return jnp.tanh(p["w"][ids]) @ p["w"].T

    axes = inferred(tied, {"w": (V, D)}, IDS)
    assert axes["w"] == Axes((0,), ())
    assert "`gather` (rows (0,), layers ())" in axes.notes["w"]
    assert "also used by `dot_general` (rows (0,), layers ())" in axes.notes["w"]

    axes = inferred(two_uses, {"w": (D, F)}, X)
    assert axes["w"] == Axes((1,), ())
    assert "also used by `dot_general` (rows (0,), layers ())" in axes.notes["w"]


def test_a_backward_pass_is_no_second_use():
    def loss(p, x):
        y, _ = lax.scan(jax.checkpoint(lambda x, w: (x @ w, None)), x, p["w"])
        return jnp.sum(jax.jit(lambda x, v: x @ v)(y, p["v"]))

    axes = inferred(jax.grad(loss), {"w": (L, D, D), "v": (D, F)}, X)
    assert dict(axes) == {"w": Axes((2,), (0,)), "v": Axes((1,), ())}
    assert axes.notes == {}


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


# Properties.


def attention(p, x):
    q = jnp.einsum("btd,hdk->bthk", x, p["w"])
    return jnp.sum(lax.scan(lambda x, w: (jnp.einsum("bthk,hkf->btf", q, w), None), x, p["v"])[0])


BASE = {"w": (H, D, K), "v": (L, H, K, D)}
BASE_AXES = {"w": ((0, 2), ()), "v": ((3,), (0,))}


@pytest.mark.parametrize("seed", range(8))
def test_a_permutation_of_a_parameters_axes_permutes_its_rows_and_layers(seed):
    rng = np.random.default_rng(seed)
    orders = {name: rng.permutation(len(shape)) for name, shape in BASE.items()}

    def permuted(p, x):
        return attention({name: w.transpose(np.argsort(orders[name])) for name, w in p.items()}, x)

    shapes = {name: tuple(BASE[name][i] for i in order) for name, order in orders.items()}
    axes = inferred(permuted, shapes, X)
    for name, order in orders.items():
        rows, layers = (
            tuple(j for j, i in enumerate(order) if i in before) for before in BASE_AXES[name]
        )
        assert axes[name] == Axes(rows, layers)
    assert axes.notes == {}


@pytest.mark.parametrize("seed", range(8))
def test_axes_that_are_split_or_merged_keep_their_use(seed):
    rng = np.random.default_rng(seed)
    # Each axis in two parts of random sizes, and one random pair of the same use merged.
    parts = {"w": [(2, H), (D // 2, 2), (2, 3)], "v": [(L, 1), (1, H), (3, 2), (2, D // 2)]}
    kinds = {"w": "rir", "v": "liir"}
    shapes, expected = {}, {}
    for name, pairs in parts.items():
        pairs = [tuple(rng.permutation(pair)) if rng.random() < 0.5 else pair for pair in pairs]
        flat = [(int(n), kind) for pair, kind in zip(pairs, kinds[name], strict=True) for n in pair]
        same = [i for i in range(len(flat) - 1) if flat[i][1] == flat[i + 1][1]]
        i = int(rng.choice(same))
        flat[i : i + 2] = [(flat[i][0] * flat[i + 1][0], flat[i][1])]
        shapes[name] = tuple(n for n, _ in flat)
        # An axis of length 1 at the border of two uses may count for either.
        expected[name] = {
            kind: {j for j, (n, k) in enumerate(flat) if k == kind and n > 1} for kind in "rl"
        }

    whole = {"w": (2 * H, D, K), "v": (L, H, K, D)}

    def reshaped(p, x):
        w, v = (p[name].reshape(shape) for name, shape in whole.items())
        return attention({"w": w[:H], "v": v}, x)

    axes = inferred(reshaped, shapes, X)
    for name, by_kind in expected.items():
        long = {j for j, n in enumerate(shapes[name]) if n > 1}
        received: Any = axes[name]
        assert set(received.rows) & long == by_kind["r"], (name, shapes)
        assert set(received.layers) & long == by_kind["l"], (name, shapes)
    assert axes.notes == {}


# The interface.


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


def test_random_keys_and_outputs_that_are_no_arrays_do_no_harm():
    def noisy(p, x, key):
        keep = jax.random.bernoulli(key, 0.5, x.shape)
        return {"y": jnp.where(keep, x, 0) @ p["w"], "name": "noisy", "none": None}

    axes = infer_axes(noisy, zeros({"w": (D, F)}), jnp.zeros(X), jax.random.key(0))
    assert axes["w"] == Axes((1,), ())


def test_parameters_may_be_one_array_or_have_leaves_that_are_no_arrays():
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


def test_names_are_matched_exactly_and_parts_of_the_tree_may_be_asked_for():
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
