"""A decoder in Flax NNX, its layers stacked along axis 0 of each parameter."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import PartitionSpec

from examples.pod.settings import Settings
from tpgm_jax import Axes

VOCABULARY = 256  # bytes

# Each layer gets its own radius. `tpgm_jax` infers the rows from Flax's names.
AXES = {"layers/.*": Axes(layers=0)}


class Layer(nnx.Module):
    """Causal attention and a feed-forward network, each behind a norm."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.norm_1 = nnx.RMSNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            heads, width, use_bias=False, decode=False, rngs=rngs
        )
        self.norm_2 = nnx.RMSNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm_1(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norm_2(x))))


class Decoder(nnx.Module):
    """Tokens `[rows, length]` to logits of the next ones, `[rows, length, 256]`."""

    def __init__(self, settings: Settings, *, rngs: nnx.Rngs):
        width = settings.width
        self.embed = nnx.Embed(VOCABULARY, width, rngs=rngs)
        self.position = nnx.Embed(settings.length, width, rngs=rngs)
        stack = nnx.vmap(lambda rngs: Layer(width, settings.heads, rngs=rngs))
        self.layers = stack(rngs.split(settings.layers))
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, VOCABULARY, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        mask = nnx.make_causal_mask(tokens)

        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def through(x, layer):
            return _by_rows(layer(x, mask))

        x = self.embed(tokens) + self.position(jnp.arange(tokens.shape[1]))
        return self.head(self.norm(through(_by_rows(x), self.layers)))


def _by_rows(x: jax.Array) -> jax.Array:
    """Keeps activations divided by rows, so that devices exchange weights instead."""
    return jax.lax.with_sharding_constraint(x, PartitionSpec("fsdp"))


def init(settings: Settings) -> optax.Params:
    """Fresh parameters, a dict of dicts of arrays."""
    model = Decoder(settings, rngs=nnx.Rngs(settings.seed))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def loss(params: optax.Params, tokens: jax.Array, settings: Settings) -> jax.Array:
    """Mean cross-entropy of each token given those before it, in nats; `()`."""
    graph = nnx.graphdef(nnx.eval_shape(lambda: Decoder(settings, rngs=nnx.Rngs(0))))
    logits = nnx.merge(graph, params)(tokens[:, :-1])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]))
