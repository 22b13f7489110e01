"""`infer_axes` on convolutions, experts, loops, calls and products of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inferred_cases import IDS, ROW, D, E, F, H, K, L, R, V, X, cases, check, conv
from jax import lax

CASES, case = cases()


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
def test_rows_and_layers_equal_those_found_by_hand(name, differentiate):
    check(name, CASES[name], differentiate)
