"""The network of the dense prediction.

It has a file of its own, as the pre-trained networks of the others are kept by what is in theirs.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.study.models import Conv


class UNet(nn.Module):
    """A class for each pixel, of which the background is one more: `[n, 16, 16, classes + 1]`.

    Down to 4x4 and up again by repetition, with what was seen on the way down put beside.
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
