"""A BERT encoder, and a classifier on the mean of its outputs, in Flax NNX."""

from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

Array = jax.Array | np.ndarray


class Config(NamedTuple):
    """The sizes of an encoder, named as in a `config.json` of `transformers`.

    Attributes:
        vocab_size: rows of the table of word pieces.
        hidden_size: width of a token's vector.
        num_hidden_layers: blocks.
        num_attention_heads: heads of each block, which share the width.
        intermediate_size: width inside the feed-forward part of a block.
        max_position_embeddings: the longest text, in tokens.
        type_vocab_size: segments; all texts here are segment 0.
        layer_norm_eps: added to the variance by layer norms.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Raises `ValueError` if the values describe another architecture."""
        expected = {"model_type": "bert", "hidden_act": "gelu"}
        for name, value in expected.items():
            if values.get(name) != value:
                raise ValueError(
                    f"`{name}` must be {value!r} for this encoder, got {values.get(name)!r}."
                )
        position = values.get("position_embedding_type", "absolute")
        if position != "absolute":
            raise ValueError(f"`position_embedding_type` must be 'absolute', got {position!r}.")
        return cls(*(values[name] for name in cls._fields))


class Block(nnx.Module):
    """Self-attention, then a feed-forward part; a layer norm after each (post-norm)."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        width, inner = config.hidden_size, config.intermediate_size
        self.heads = config.num_attention_heads
        self.query = nnx.Linear(width, width, rngs=rngs)
        self.key = nnx.Linear(width, width, rngs=rngs)
        self.value = nnx.Linear(width, width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.attention_norm = nnx.LayerNorm(width, epsilon=config.layer_norm_eps, rngs=rngs)
        self.up = nnx.Linear(width, inner, rngs=rngs)
        self.down = nnx.Linear(inner, width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=config.layer_norm_eps, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        by_head = (*x.shape[:2], self.heads, -1)
        q, k, v = (part(x).reshape(by_head) for part in (self.query, self.key, self.value))
        mixed = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None, :])
        x = self.attention_norm(x + self.out(mixed.reshape(x.shape)))
        return self.norm(x + self.down(nnx.gelu(self.up(x), approximate=False)))


class Encoder(nnx.Module):
    """BERT without its pooler."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        width = config.hidden_size
        self.word = nnx.Embed(config.vocab_size, width, rngs=rngs)
        self.position = nnx.Embed(config.max_position_embeddings, width, rngs=rngs)
        self.segment = nnx.Embed(config.type_vocab_size, width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=config.layer_norm_eps, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs) for _ in range(config.num_hidden_layers)])

    def __call__(self, tokens: Array, mask: Array) -> list[jax.Array]:
        """Hidden states: the embeddings, then the output of each block.

        Args:
            tokens: `[n, length]`, numbers of word pieces.
            mask: `[n, length]`, False for padding.

        Returns:
            Arrays `[n, length, hidden_size]`. What stands at padding means nothing.
        """
        tokens, mask = jnp.asarray(tokens), jnp.asarray(mask)
        x = self.word(tokens) + self.position(jnp.arange(tokens.shape[1]))
        states = [self.norm(x + self.segment(jnp.zeros_like(tokens)))]
        for block in self.blocks:
            states.append(block(states[-1], mask))
        return states


class Classifier(nnx.Module):
    """One logit for each text: positive for positive sentiment."""

    def __init__(self, encoder: Encoder, head: nnx.Linear):
        self.encoder = encoder
        self.head = head

    def features(self, tokens: Array, mask: Array) -> jax.Array:
        """The mean of the last hidden state over the tokens of a text, `[n, hidden_size]`."""
        weights = jnp.asarray(mask, jnp.float32)[..., None]
        total = jnp.sum(self.encoder(tokens, mask)[-1] * weights, axis=1)
        return total / jnp.sum(weights, axis=1)

    def __call__(self, tokens: Array, mask: Array) -> jax.Array:
        """Logits `[n]`."""
        return self.head(self.features(tokens, mask))[:, 0]
