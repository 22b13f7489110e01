"""Parameter trees in the shapes of real models, filled with random numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import tpgm_jax

Shapes = dict[str, tuple[int, ...]]


def transformer_block(width: int, hidden: int, layers: tuple[int, ...] = ()) -> Shapes:
    """An encoder block with fused heads: 12 tensors."""
    shapes = {f"attention/{x}/kernel": (width, width) for x in ("query", "key", "value", "out")}
    shapes |= {f"attention/{x}/bias": (width,) for x in ("qkv", "out")}
    shapes |= {"mlp/up/kernel": (width, hidden), "mlp/up/bias": (hidden,)}
    shapes |= {"mlp/down/kernel": (hidden, width), "mlp/down/bias": (width,)}
    shapes |= {"norm_1/scale": (width,), "norm_2/scale": (width,)}
    return {name: layers + shape for name, shape in shapes.items()}


def named(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}/{name}": shape for name, shape in shapes.items()}


def vit_b16() -> Shapes:
    """ViT-B/16: 86 M parameters in 150 tensors."""
    shapes: Shapes = {"patches/kernel": (16, 16, 3, 768), "patches/bias": (768,)}
    shapes |= {"positions": (1, 197, 768), "class_token": (1, 1, 768)}
    for i in range(12):
        shapes |= named(f"block_{i}", transformer_block(768, 3072))
    return shapes | {"norm/scale": (768,), "norm/bias": (768,)}


def scanned_decoder(width: int = 512, layers: int = 24) -> Shapes:
    """A decoder of scanned layers. With the defaults, 92 M parameters in 14 tensors."""
    shapes = named("layers", transformer_block(width, 4 * width, layers=(layers,)))
    return shapes | {"tokens/embedding": (32000, width), "norm/scale": (width,)}


def resnet50() -> Shapes:
    """ResNet-50 without its head: 23.5 M parameters in 159 tensors, most of them small."""
    shapes: Shapes = {
        "stem/kernel": (7, 7, 3, 64),
        "stem_norm/scale": (64,),
        "stem_norm/bias": (64,),
    }
    inputs = 64
    for stage, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True)):
        for block in range(blocks):
            convolutions = [(1, inputs, width), (3, width, width), (1, width, 4 * width)]
            if block == 0:
                convolutions.append((1, inputs, 4 * width))
            for i, (size, fan_in, fan_out) in enumerate(convolutions):
                prefix = f"stage_{stage}/block_{block}/conv_{i}"
                shapes[f"{prefix}/kernel"] = (size, size, fan_in, fan_out)
                shapes |= {f"{prefix}/scale": (fan_out,), f"{prefix}/bias": (fan_out,)}
            inputs = 4 * width
    return shapes


def small_leaves(count: int = 2000) -> Shapes:
    """Many small tensors: half kernels of 64 by 64, half biases of 64."""
    return {
        f"layer_{i // 2:04}/{'bias' if i % 2 else 'kernel'}": (64,) if i % 2 else (64, 64)
        for i in range(count)
    }


PRESETS = {
    "vit_b16": vit_b16,
    "scanned_decoder": scanned_decoder,
    "resnet50": resnet50,
    "small_leaves": small_leaves,
    "small_leaves_640": functools.partial(small_leaves, 640),
}
AXES = {"scanned_decoder": {"layers/.*": tpgm_jax.Axes(layers=0)}}


def random_like(shapes: Shapes, seed: int, scale: float) -> dict[str, jax.Array]:
    """Normal numbers, because zeros could be cheaper to process than real data."""
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(scale * rng.standard_normal(shape, np.float32))
        for name, shape in shapes.items()
    }
