"""The network, its loss and its accuracy."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

# `apply(params, images)` to `[n, 10]` logits, as `flax.linen.Module.apply`.
Apply = Callable[..., Any]


class MLP(nn.Module):
    """Hidden layers with ReLU and a linear head: `[n, 16, 16]` images to `[n, 10]` logits."""

    hidden: Sequence[int] = (256, 256, 256, 256)
    classes: int = 10

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images.reshape(len(images), -1)
        for i, width in enumerate(self.hidden, start=1):
            x = nn.relu(nn.Dense(width, name=f"layer_{i}")(x))
        return nn.Dense(self.classes, name="head")(x)


def cross_entropy(apply: Apply, params: optax.Params, images, labels) -> jax.Array:
    """Mean over the images, in nats; `()`."""
    logits = apply(params, images)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def accuracy(apply: Apply, params: optax.Params, images, labels) -> jax.Array:
    """Share of images whose largest logit is the label's; `()` in [0, 1]."""
    return jnp.mean(jnp.argmax(apply(params, images), axis=-1) == labels)
