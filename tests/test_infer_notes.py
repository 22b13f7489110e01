"""Parameters that `infer_axes` cannot follow, several uses, and properties of all functions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inferred_cases import IDS, D, F, H, K, L, R, V, X, conv, inferred
from jax import lax

from tpgm_jax import Axes, infer_axes

# A parameter that cannot be followed has the rows of its name, the last axis, and a note.


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


def test_a_backward_pass_is_not_a_second_use():
    def loss(p, x):
        y, _ = lax.scan(jax.checkpoint(lambda x, w: (x @ w, None)), x, p["w"])
        return jnp.sum(jax.jit(lambda x, v: x @ v)(y, p["v"]))

    axes = inferred(jax.grad(loss), {"w": (L, D, D), "v": (D, F)}, X)
    assert dict(axes) == {"w": Axes((2,), (0,)), "v": Axes((1,), ())}
    assert axes.notes == {}


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


def test_the_limits_in_the_docstring_hold():
    mask = jnp.tri(4, 5)

    def model(p, x, ids):
        # Read as a dense layer; a sum over experts, which are inputs; a constant, not data.
        one_hot = jax.nn.one_hot(ids, 4) @ p["embedding"]
        mixed = jnp.einsum("bei,eio->bo", x[:, None] * jnp.ones((2, 1)), p["experts"])
        masked = x @ (p["masked"] * mask)
        return one_hot, mixed, masked

    params = {"embedding": jnp.ones((4, 3)), "experts": jnp.ones((2, 4, 6))}
    params["masked"] = jnp.ones((4, 5))
    axes = infer_axes(model, params, jnp.ones((2, 4)), jnp.zeros(2, int))
    assert {name: x.rows for name, x in axes.items()} == {
        "embedding": (1,),
        "experts": (2,),
        "masked": (1,),
    }
    assert axes.notes == {}
