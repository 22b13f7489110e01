"""ResNet-50, as torchvision and MoCoV3 have it, and as CLIP changed it.

Attributes have the names of the PyTorch modules, so `weights` can match tensors by name. Images are
`(batch, height, width, 3)`; PyTorch has the channels first.

References:
    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385
    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
    ICML 2021, arXiv 2103.00020
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

EXPANSION = 4  # channels of a block's output, in units of its width


def _conv(inputs, outputs, size, stride=1, *, dtype, rngs):
    # PyTorch pads both sides alike. "SAME" pads the right side more if the stride is 2.
    padding = [(size // 2, size // 2)] * 2
    strides = (stride, stride)
    shape = (size, size)
    return nnx.Conv(
        inputs, outputs, shape, strides, padding=padding, use_bias=False, dtype=dtype, rngs=rngs
    )


def _norm(channels, *, dtype, rngs):
    return nnx.BatchNorm(channels, momentum=0.9, epsilon=1e-5, dtype=dtype, rngs=rngs)


def _average(x: jax.Array, stride: int) -> jax.Array:
    return nnx.avg_pool(x, (stride, stride), (stride, stride)) if stride > 1 else x


class Block(nnx.Module):
    """A bottleneck: 1x1, 3x3 and 1x1 convolutions, plus the input.

    `antialiased`: average before a stride, in place of a strided convolution (CLIP).
    """

    def __init__(self, inputs: int, width: int, stride: int, antialiased: bool, **keywords: Any):
        self.stride, self.antialiased = stride, antialiased
        outputs = EXPANSION * width
        inner = 1 if antialiased else stride
        self.conv1 = _conv(inputs, width, 1, **keywords)
        self.bn1 = _norm(width, **keywords)
        self.conv2 = _conv(width, width, 3, inner, **keywords)
        self.bn2 = _norm(width, **keywords)
        self.conv3 = _conv(width, outputs, 1, **keywords)
        self.bn3 = _norm(outputs, **keywords)
        self.downsample = nnx.List()
        if stride > 1 or inputs != outputs:
            self.downsample.append(_conv(inputs, outputs, 1, inner, **keywords))
            self.downsample.append(_norm(outputs, **keywords))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = nnx.relu(self.bn2(self.conv2(y)))
        if self.antialiased:
            y = _average(y, self.stride)
        y = self.bn3(self.conv3(y))
        if self.downsample:
            conv, norm = self.downsample
            x = norm(conv(_average(x, self.stride) if self.antialiased else x))
        return nnx.relu(x + y)


def _stages(depths: Sequence[int], width: int, antialiased: bool, **keywords: Any):
    inputs = width
    for stage, depth in enumerate(depths):
        blocks = []
        for index in range(depth):
            stride = 2 if stage and not index else 1
            blocks.append(Block(inputs, width * 2**stage, stride, antialiased, **keywords))
            inputs = EXPANSION * width * 2**stage
        yield nnx.List(blocks)


class ResNet(nnx.Module):
    """ResNet-50 with the stride in the 3x3 convolution, and a new head."""

    def __init__(
        self,
        classes: int,
        *,
        width: int = 64,
        depths: Sequence[int] = (3, 4, 6, 3),
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        """
        Args:
            classes: outputs of the head.
            width: channels of the stem.
            depths: blocks of the four stages.
            dtype: of the arithmetic. Parameters are float32.
            rngs: source of the initial weights.
        """
        keywords = {"dtype": dtype, "rngs": rngs}
        self.conv1 = _conv(3, width, 7, 2, **keywords)
        self.bn1 = _norm(width, **keywords)
        self.layer1, self.layer2, self.layer3, self.layer4 = _stages(
            depths, width, False, **keywords
        )
        self.head = nnx.Linear(EXPANSION * width * 8, classes, **keywords)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images, `(batch, height, width, 3)`, to logits, `(batch, classes)`."""
        x = nnx.relu(self.bn1(self.conv1(x)))
        padding: Any = ((1, 1), (1, 1))  # Flax annotates it as a string alone
        x = nnx.max_pool(x, (3, 3), (2, 2), padding=padding)
        for blocks in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in blocks:
                x = block(x)
        return self.head(jnp.mean(x, axis=(1, 2)))


class AttentionPool(nnx.Module):
    """Attention from the mean over positions to all positions, in place of a mean."""

    def __init__(self, size: int, width: int, heads: int, outputs: int, **keywords: Any):
        self.heads = heads
        rows = size * size + 1
        noise = jax.random.normal(keywords["rngs"].params(), (rows, width))
        self.positional_embedding = nnx.Param(noise / width**0.5)
        self.q_proj = nnx.Linear(width, width, **keywords)
        self.k_proj = nnx.Linear(width, width, **keywords)
        self.v_proj = nnx.Linear(width, width, **keywords)
        self.c_proj = nnx.Linear(width, outputs, **keywords)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = jnp.concatenate([jnp.mean(x, axis=1, keepdims=True), x], axis=1)
        x = x + self.positional_embedding[...].astype(x.dtype)

        def split(y):
            return y.reshape(*y.shape[:2], self.heads, -1)

        query, key, value = split(self.q_proj(x[:, :1])), split(self.k_proj(x)), self.v_proj(x)
        y = jax.nn.dot_product_attention(query, key, split(value))
        return self.c_proj(y.reshape(x.shape[0], -1))


class CLIPResNet(nnx.Module):
    """CLIP's RN50: a stem of three layers, antialiased strides, attention pooling; a new head."""

    def __init__(
        self,
        classes: int,
        *,
        width: int = 64,
        depths: Sequence[int] = (3, 4, 6, 3),
        heads: int = 32,
        features: int = 1024,
        size: int = 224,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        """
        Args:
            classes: outputs of the head.
            width: channels of the stem.
            depths: blocks of the four stages.
            heads: attention heads of the pooling.
            features: numbers that CLIP represents an image by.
            size: pixels of an image's side; a multiple of 32.
            dtype: of the arithmetic. Parameters are float32.
            rngs: source of the initial weights.
        """
        keywords = {"dtype": dtype, "rngs": rngs}
        self.conv1 = _conv(3, width // 2, 3, 2, **keywords)
        self.bn1 = _norm(width // 2, **keywords)
        self.conv2 = _conv(width // 2, width // 2, 3, **keywords)
        self.bn2 = _norm(width // 2, **keywords)
        self.conv3 = _conv(width // 2, width, 3, **keywords)
        self.bn3 = _norm(width, **keywords)
        self.layer1, self.layer2, self.layer3, self.layer4 = _stages(
            depths, width, True, **keywords
        )
        channels = EXPANSION * width * 8
        self.attnpool = AttentionPool(size // 32, channels, heads, features, **keywords)
        self.head = nnx.Linear(features, classes, **keywords)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images, `(batch, size, size, 3)`, to logits, `(batch, classes)`."""
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = nnx.relu(self.bn2(self.conv2(x)))
        x = _average(nnx.relu(self.bn3(self.conv3(x))), 2)
        for blocks in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in blocks:
                x = block(x)
        return self.head(self.attnpool(x))
