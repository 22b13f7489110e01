"""Models for the parameter trees of `trees.py`: for each preset a loss and a batch.

Plain functions of the same dicts of arrays, so that the optimizer step and the whole training step
are measured on the same tree.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

Params = Mapping[str, jax.Array]


class Model(NamedTuple):
    """The inputs of a training step besides an optimizer.

    Attributes:
        loss: a function of `(params, inputs, labels)`.
        batch: from a seed, `(inputs, labels)`.
    """

    loss: Callable[..., jax.Array]
    batch: Callable[[int], Any]


def within(params: Params, prefix: str) -> Params:
    """The parameters below `prefix`, named from there."""
    start = f"{prefix}/"
    return {k.removeprefix(start): v for k, v in params.items() if k.startswith(start)}


def normalised(x: jax.Array, scale: jax.Array) -> jax.Array:
    """RMS norm; the trees hold small random numbers, so the scale is added to one."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * (1 + scale)


def transformer(p: Params, x: jax.Array, causal: bool) -> jax.Array:
    """One block, heads of 64: `[batch, length, width]` to the same."""
    y = normalised(x, p["norm_1/scale"])
    heads = [
        (y @ p[f"attention/{name}/kernel"] + p["attention/qkv/bias"]).reshape(*y.shape[:2], -1, 64)
        for name in ("query", "key", "value")
    ]
    y = jax.nn.dot_product_attention(*heads, is_causal=causal).reshape(x.shape)
    x = x + y @ p["attention/out/kernel"] + p["attention/out/bias"]
    y = normalised(x, p["norm_2/scale"])
    y = jax.nn.gelu(y @ p["mlp/up/kernel"] + p["mlp/up/bias"])
    return x + y @ p["mlp/down/kernel"] + p["mlp/down/bias"]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def vit_loss(params: Params, images: jax.Array, labels: jax.Array) -> jax.Array:
    kernel = params["patches/kernel"]
    x = convolved(images, kernel, stride=16).reshape(len(images), -1, kernel.shape[-1])
    token = jnp.broadcast_to(params["class_token"], (len(x), 1, x.shape[-1]))
    x = jnp.concatenate([token, x + params["patches/bias"]], axis=1) + params["positions"]
    for i in range(12):
        x = transformer(within(params, f"block_{i}"), x, causal=False)
    return cross_entropy(normalised(x[:, 0], params["norm/scale"]) + params["norm/bias"], labels)


def decoder_loss(
    params: Params,
    tokens: jax.Array,
    targets: jax.Array,
    dtype: Any = jnp.float32,
    place: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> jax.Array:
    """Computes in `dtype` for parameters of any dtype. `place` shards the inputs of blocks."""
    embedding = params["tokens/embedding"].astype(dtype)

    def block(x, p):
        # Cast layer by layer: all at once would be a second copy of the parameters.
        return transformer({k: v.astype(dtype) for k, v in p.items()}, place(x), causal=True), None

    x, _ = jax.lax.scan(jax.checkpoint(block), place(embedding[tokens]), within(params, "layers"))
    logits = normalised(place(x), params["norm/scale"].astype(dtype)) @ embedding.T
    return cross_entropy(logits.astype(jnp.float32), targets)


def resnet_loss(params: Params, images: jax.Array, labels: jax.Array) -> jax.Array:
    x = convolved(images, params["stem/kernel"], stride=2)
    x = jax.nn.relu(grouped(x, within(params, "stem_norm")))
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            parts = [within(params, f"stage_{stage}/block_{block}/conv_{i}") for i in range(4)]
            stride = 2 if block == 0 else 1
            y = jax.nn.relu(grouped(convolved(x, parts[0]["kernel"]), parts[0]))
            y = jax.nn.relu(grouped(convolved(y, parts[1]["kernel"], stride), parts[1]))
            y = grouped(convolved(y, parts[2]["kernel"]), parts[2])
            if block == 0:
                x = grouped(convolved(x, parts[3]["kernel"], stride), parts[3])
            x = jax.nn.relu(x + y)
    return cross_entropy(x.mean(axis=(1, 2)), labels)


def chain_loss(params: Params, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """A thousand residual layers, one after another."""
    x = inputs
    for i in range(len(params) // 2):
        p = within(params, f"layer_{i:04}")
        # Scaled, because a thousand unscaled layers would drown the input and its gradients.
        x = x + 0.1 * jax.nn.relu(x @ p["kernel"] + p["bias"])
    return cross_entropy(normalised(x, jnp.zeros(())), labels)


def convolved(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    strides = (stride, stride)
    return jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=layout)


def grouped(x: jax.Array, p: Params) -> jax.Array:
    """Group norm with 32 groups."""
    groups = x.reshape(len(x), -1, 32, x.shape[-1] // 32)
    groups = groups - groups.mean(axis=(1, 3), keepdims=True)
    groups *= jax.lax.rsqrt(jnp.mean(groups**2, axis=(1, 3), keepdims=True) + 1e-6)
    return groups.reshape(x.shape) * (1 + p["scale"]) + p["bias"]


def images(count: int, size: int, classes: int) -> Callable[[int], Any]:
    def batch(seed: int) -> Any:
        rng = np.random.default_rng(seed)
        pixels = rng.standard_normal((count, size, size, 3), np.float32)
        return jnp.asarray(pixels), jnp.asarray(rng.integers(classes, size=count))

    return batch


def tokens(count: int, length: int, vocabulary: int) -> Callable[[int], Any]:
    def batch(seed: int) -> Any:
        text = np.random.default_rng(seed).integers(vocabulary, size=(count, length + 1))
        return jnp.asarray(text[:, :-1]), jnp.asarray(text[:, 1:])

    return batch


def vectors(count: int, width: int) -> Callable[[int], Any]:
    def batch(seed: int) -> Any:
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((count, width), np.float32)
        return jnp.asarray(x), jnp.asarray(rng.integers(width, size=count))

    return batch


MODELS = {
    "vit_b16": Model(vit_loss, images(16, 224, classes=768)),
    "scanned_decoder": Model(decoder_loss, tokens(4, 256, vocabulary=32000)),
    "resnet50": Model(resnet_loss, images(16, 128, classes=2048)),
    **dict.fromkeys(("small_leaves", "small_leaves_640"), Model(chain_loss, vectors(256, 64))),
}
