"""The networks: an MLP, a conv net with GroupNorm, a small vision transformer, and a U-net.

Convolution and attention are written as matrix products, because XLA on CPU runs convolutions in a
loop on one core, and has a fast routine only for two-dimensional products.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from examples.digits.models import MLP


class Conv(nn.Module):
    """`flax.linen.Conv` with 3x3 windows and zero padding: same parameters, same results."""

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (3, 3, x.shape[-1], self.features)
        # The variance of `nn.Conv`'s default, over the 9 * channels inputs of an output.
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        height, width, s = x.shape[1], x.shape[2], self.stride
        # "SAME": with a stride of 2 and an even size, the one row of zeros is at the end.
        before = 1 if s == 1 else 0
        padded = jnp.pad(x, ((0, 0), (before, 1), (before, 1), (0, 0)))
        windows = [
            padded[:, i : i + height - s + 1 : s, j : j + width - s + 1 : s]
            for i in range(3)
            for j in range(3)
        ]
        patches = jnp.concatenate(windows, axis=-1)
        return patches @ kernel.reshape(-1, self.features) + bias


class ConvNet(nn.Module):
    """Convolutions with GroupNorm and ReLU, and a linear head on all of the last one."""

    widths: Sequence[int] = (16, 32, 64)
    strides: Sequence[int] = (2, 2, 1)
    classes: int = 10

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images[..., None]
        for i, (width, stride) in enumerate(zip(self.widths, self.strides, strict=True), 1):
            x = Conv(width, stride, name=f"conv_{i}")(x)
            x = nn.relu(nn.GroupNorm(4, name=f"norm_{i}")(x))
        return nn.Dense(self.classes, name="head")(x.reshape(len(x), -1))


class Attention(nn.Module):
    """`flax.linen.MultiHeadDotProductAttention` on itself: same parameters, same results."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        count, length, width = x.shape
        size = width // self.heads
        flat = x.reshape(-1, width)
        q, k, v = (
            Dense(width, (width, self.heads, size), name=name)(flat)
            .reshape(count, length, self.heads, size)
            .swapaxes(1, 2)
            for name in ("query", "key", "value")
        )
        weights = nn.softmax((q / size**0.5) @ k.swapaxes(2, 3))
        mixed = (weights @ v).swapaxes(1, 2).reshape(-1, width)
        return Dense(width, (self.heads, size, width), name="out")(mixed).reshape(x.shape)


class Dense(nn.Module):
    """`flax.linen.Dense` of `features` outputs, whose kernel is kept in another `shape`."""

    features: int
    shape: Sequence[int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        matrix = (x.shape[-1], self.features)

        def initial(key, shape):
            return nn.initializers.lecun_normal()(key, matrix).reshape(shape)

        bias_shape = self.shape[1:] if self.shape[0] == matrix[0] else self.shape[-1:]
        kernel = self.param("kernel", initial, tuple(self.shape))
        bias = self.param("bias", nn.initializers.zeros_init(), tuple(bias_shape))
        return x @ kernel.reshape(matrix) + bias.reshape(-1)


class ViT(nn.Module):
    """Blocks over 16 patches of 4x4 pixels, pre-norm; a linear head on the mean token."""

    width: int = 32
    depth: int = 2
    heads: int = 2
    classes: int = 10

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        patches = images.reshape(-1, 4, 4, 4, 4).swapaxes(2, 3).reshape(-1, 16)
        x = nn.Dense(self.width, name="patches")(patches).reshape(-1, 16, self.width)
        x += self.param("positions", nn.initializers.normal(0.02), (1, 16, self.width))
        for i in range(1, self.depth + 1):
            y = nn.LayerNorm(name=f"norm_{i}a")(x)
            x += Attention(self.heads, name=f"attention_{i}")(y)
            y = nn.LayerNorm(name=f"norm_{i}b")(x).reshape(-1, self.width)
            y = nn.gelu(nn.Dense(2 * self.width, name=f"up_{i}")(y))
            x += nn.Dense(self.width, name=f"down_{i}")(y).reshape(x.shape)
        return nn.Dense(self.classes, name="head")(nn.LayerNorm(name="norm")(x).mean(axis=1))


class UNet(nn.Module):
    """One class for each pixel, or the background: `[n, 16, 16, classes + 1]`.

    Down to 4x4 and up again by repetition, joined with the layer of the same size on the way down.
    """

    widths: Sequence[int] = (16, 32, 64)
    classes: int = 10

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        def layer(x: jax.Array, width: int, stride: int, name: str) -> jax.Array:
            x = Conv(width, stride, name=f"conv_{name}")(x)
            return nn.relu(nn.GroupNorm(4, name=f"norm_{name}")(x))

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
