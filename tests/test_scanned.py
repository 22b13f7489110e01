"""A decoder with scanned layers learns the same as the unrolled decoder, layer by layer."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from transforms import STEPS, assert_close

import tpgm_jax
from tpgm_jax import Axes, ftp, tpgm

LAYERS, WIDTH, VOCABULARY = 2, 8, 11
# Attention does not depend on the bias of its keys, so the gradient of this bias is only rounding
# error. With the default `eps`, Adam would scale it up to a full step.
ADAM = optax.adam(0.1, eps=1e-3)
METHODS = {
    "ftp": lambda axes: ftp(ADAM, axes=axes),
    "tpgm by anchor": lambda axes: tpgm(ADAM, every=2, unit="anchor", axes=axes),
}
# Slow. `test_reference.py` covers stacked layers too.
pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.slow]

dense: Any = functools.partial(nn.Dense, param_dtype="float64")
norm: Any = functools.partial(nn.RMSNorm, param_dtype="float64")


class Layer(nn.Module):
    """Causal attention and a perceptron; with the signature that `nn.scan` expects."""

    @nn.compact
    def __call__(self, x, _=None):
        attention = nn.MultiHeadDotProductAttention(
            num_heads=2, param_dtype="float64", name="attention"
        )
        x = x + attention(norm(name="norm_1")(x), mask=nn.make_causal_mask(x[..., 0]))
        y = nn.gelu(dense(2 * WIDTH, name="up")(norm(name="norm_2")(x)))
        return x + dense(WIDTH, name="down")(y), None


class Decoder(nn.Module):
    """Layers stacked along `axis` of each of their parameters; or one by one."""

    axis: int | None

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCABULARY, WIDTH, param_dtype="float64", name="embed")(tokens)
        if self.axis is None:
            for i in range(LAYERS):
                x, _ = Layer(name=f"layers_{i}")(x)
        else:
            scan: Any = nn.scan
            scanned = scan(
                Layer,
                variable_axes={"params": self.axis},
                split_rngs={"params": True},
                length=LAYERS,
            )
            x, _ = scanned(name="layers")(x, None)
        return dense(VOCABULARY, name="head")(x)


def stack_layers(params, axis):
    """Parameters of the unrolled decoder for the scanned one."""
    params = dict(params)
    layers = [params.pop(f"layers_{i}") for i in range(LAYERS)]
    return params | {"layers": jax.tree.map(lambda *x: jnp.stack(x, axis), *layers)}


@functools.cache
def pretrained_params() -> Any:
    """Parameters of the unrolled decoder."""
    return jax.jit(Decoder(None).init)(jax.random.key(0), jnp.zeros((1, 5), int))["params"]


def train(method, axis):
    """Parameters after a few steps, and the radii."""
    decoder, axes = Decoder(axis), None if axis is None else {"layers/.*": Axes(layers=axis)}
    params = pretrained_params() if axis is None else stack_layers(pretrained_params(), axis)
    tokens, held_out = np.random.default_rng(0).integers(0, VOCABULARY, (2, 4, 6))
    tx = method(axes)

    def loss(params, tokens):
        logits: Any = decoder.apply({"params": params}, tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    @jax.jit
    def step(params, state):
        grads = jax.grad(loss)(params, tokens)
        updates, state = tx.update(
            grads, state, params, held_out_loss=lambda params: loss(params, held_out)
        )
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(STEPS):
        params, state = step(params, state)
    return params, tpgm_jax.radii(state, params)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_scanned_decoder_learns_the_same_as_the_unrolled_one(method):
    one_by_one, expected = train(method, None)
    for axis in (0, 1):
        scanned, radii = train(method, axis)
        assert_close(scanned, stack_layers(one_by_one, axis))
        for name, radius in radii.items():
            root, _, rest = name.partition("/")
            if root == "layers":
                one = [expected[f"layers_{i}/{rest}"] for i in range(LAYERS)]
            else:
                one = expected[name]
            assert_close(radius, one)
