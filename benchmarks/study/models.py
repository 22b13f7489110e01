"""The networks: an MLP, a conv net with GroupNorm, a small vision transformer, and a U-net."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from examples.digits.models import MLP


def layer(x: jax.Array, width: int, stride: int, name: Any) -> jax.Array:
    """A convolution, GroupNorm and ReLU, in a module's `__call__`."""
    x = nn.Conv(width, (3, 3), strides=stride, name=f"conv_{name}")(x)
    return nn.relu(nn.GroupNorm(4, name=f"norm_{name}")(x))


class ConvNet(nn.Module):
    """Convolutions with GroupNorm and ReLU, and a linear head on all of the last one."""

    widths: Sequence[int] = (16, 32, 64)
    strides: Sequence[int] = (2, 2, 1)
    classes: int = 10

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images[..., None]
        for i, (width, stride) in enumerate(zip(self.widths, self.strides, strict=True), 1):
            x = layer(x, width, stride, i)
        return nn.Dense(self.classes, name="head")(x.reshape(len(x), -1))


class ViT(nn.Module):
    """Blocks over 16 patches of 4x4 pixels, pre-norm; a linear head on the mean token."""

    width: int = 32
    depth: int = 2
    heads: int = 2
    classes: int = 10

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        patches = images.reshape(-1, 4, 4, 4, 4).swapaxes(2, 3).reshape(-1, 16, 16)
        x = nn.Dense(self.width, name="patches")(patches)
        x += self.param("positions", nn.initializers.normal(0.02), (1, 16, self.width))
        for i in range(1, self.depth + 1):
            y = nn.LayerNorm(name=f"norm_{i}a")(x)
            x += nn.MultiHeadDotProductAttention(self.heads, name=f"attention_{i}")(y)
            y = nn.LayerNorm(name=f"norm_{i}b")(x)
            y = nn.gelu(nn.Dense(2 * self.width, name=f"up_{i}")(y))
            x += nn.Dense(self.width, name=f"down_{i}")(y)
        return nn.Dense(self.classes, name="head")(nn.LayerNorm(name="norm")(x).mean(axis=1))


class UNet(nn.Module):
    """One class for each pixel, or the background: `[n, 16, 16, classes + 1]`.

    Down to 4x4 and up again by repetition, joined with the layer of the same size on the way down.
    """

    widths: Sequence[int] = (16, 32, 64)
    classes: int = 10

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x, seen = images[..., None], []
        for i, width in enumerate(self.widths):
            x = layer(x, width, 2 if i else 1, f"down_{i}")
            seen.append(x)
        for i in reversed(range(len(self.widths) - 1)):
            x = x.repeat(2, axis=1).repeat(2, axis=2)
            x = layer(jnp.concatenate([x, seen[i]], axis=-1), self.widths[i], 1, f"up_{i}")
        return nn.Dense(self.classes + 1, name="head")(x)


MODELS = {"mlp": MLP, "conv": ConvNet, "vit": ViT}


def network(model: str, classes: int = 10) -> nn.Module:
    """Of `MODELS`, by name."""
    return MODELS[model](classes=classes)
