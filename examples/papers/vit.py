"""The image tower of CLIP's ViT-B/16.

Attributes have the names of OpenAI's PyTorch modules, so `weights` can match tensors by name.

References:
    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
    ICML 2021, arXiv 2103.00020
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def _norm(width, *, dtype, rngs):
    return nnx.LayerNorm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)


class Attention(nnx.Module):
    """Self-attention. As in PyTorch, one matrix makes queries, keys and values."""

    def __init__(self, width: int, heads: int, **keywords: Any):
        self.heads = heads
        self.in_proj = nnx.Linear(width, 3 * width, **keywords)
        self.out_proj = nnx.Linear(width, width, **keywords)

    def __call__(self, x: jax.Array) -> jax.Array:
        query, key, value = (
            y.reshape(*y.shape[:2], self.heads, -1) for y in jnp.split(self.in_proj(x), 3, axis=-1)
        )
        return self.out_proj(jax.nn.dot_product_attention(query, key, value).reshape(x.shape))


class MLP(nnx.Module):
    """Two layers, with CLIP's approximation of GELU, `x sigmoid(1.702 x)`."""

    def __init__(self, width: int, **keywords: Any):
        self.c_fc = nnx.Linear(width, 4 * width, **keywords)
        self.c_proj = nnx.Linear(4 * width, width, **keywords)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.c_fc(x)
        return self.c_proj(x * nnx.sigmoid(1.702 * x))


class Block(nnx.Module):
    """Attention and MLP, each after a layer norm, each added to its input."""

    def __init__(self, width: int, heads: int, **keywords: Any):
        self.ln_1 = _norm(width, **keywords)
        self.attn = Attention(width, heads, **keywords)
        self.ln_2 = _norm(width, **keywords)
        self.mlp = MLP(width, **keywords)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nnx.Module):
    """Blocks, one after another."""

    def __init__(self, width: int, depth: int, heads: int, **keywords: Any):
        self.resblocks = nnx.List([Block(width, heads, **keywords) for _ in range(depth)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.resblocks:
            x = block(x)
        return x


class CLIPViT(nnx.Module):
    """CLIP's ViT-B/16 up to its projection, and a new head."""

    def __init__(
        self,
        classes: int,
        *,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        features: int = 512,
        patch: int = 16,
        size: int = 224,
        normalize: bool = False,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        """
        Args:
            classes: outputs of the head.
            width: numbers to a token.
            depth: blocks.
            heads: attention heads of a block.
            features: numbers that CLIP represents an image by.
            patch: pixels of a patch's side.
            size: pixels of an image's side; a multiple of `patch`.
            normalize: divide the features by their length, as CLIP does before a zero-shot head.
            dtype: of the arithmetic. Parameters are float32.
            rngs: source of the initial weights.
        """
        self.normalize = normalize
        keywords = {"dtype": dtype, "rngs": rngs}

        def normal(*shape):
            return nnx.Param(jax.random.normal(rngs.params(), shape) / width**0.5)

        side = (patch, patch)
        self.conv1 = nnx.Conv(3, width, side, side, padding="VALID", use_bias=False, **keywords)
        self.class_embedding = normal(width)
        self.positional_embedding = normal((size // patch) ** 2 + 1, width)
        self.ln_pre = _norm(width, **keywords)
        self.transformer = Transformer(width, depth, heads, **keywords)
        self.ln_post = _norm(width, **keywords)
        self.proj = normal(width, features)
        self.head = nnx.Linear(features, classes, **keywords)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images, `(batch, size, size, 3)`, to logits, `(batch, classes)`."""
        x = self.conv1(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        first = jnp.broadcast_to(self.class_embedding[...], (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([first.astype(x.dtype), x], axis=1)
        x = self.ln_pre(x + self.positional_embedding[...].astype(x.dtype))
        x = self.ln_post(self.transformer(x)[:, 0])
        x = x @ self.proj[...].astype(x.dtype)
        if self.normalize:
            length = jnp.linalg.norm(x.astype(jnp.float32), axis=-1, keepdims=True)
            x = (x / length).astype(x.dtype)
        return self.head(x)
