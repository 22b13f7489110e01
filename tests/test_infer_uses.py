"""`infer_axes` on products, embeddings, slices and uses entry by entry."""

import jax
import jax.numpy as jnp
import pytest
from inferred_cases import IDS, ROW, D, E, F, H, K, V, X, cases, check
from jax import lax

CASES, case = cases()


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


@case({"scale": (D,), "both": (7, D)}, X, scale=ROW, both=ROW)
def scaled_by_einsum(p, x):
    return jnp.einsum("i...k,...k->i...k", x, p["scale"]), jnp.einsum("btk,tk->btk", x, p["both"])


@case(
    {"w": (E, D, F), "scale": (F, E)},
    (E, 7, D),
    w=((2,), (0,)),
    scale=((), (1,)),
)
def experts_scaled_by_einsum(p, x):
    return jnp.einsum("enf,fe->enf", x @ p["w"], p["scale"])


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


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("differentiate", [False, True], ids=["forward", "gradient"])
def test_rows_and_layers_equal_those_found_by_hand(name, differentiate):
    check(name, CASES[name], differentiate)
