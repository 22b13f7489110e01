"""LoRA: trained adapters of low rank beside frozen linear layers (Hu et al., 2021)."""

import re
from typing import Any

import jax
import optax
from flax import nnx

from examples.sentiment.encoder import Classifier

RANK = 8
FIRST_FACTOR = r".*/lora_a"
TRAINED = re.compile(r"head/|.*/lora_[ab]\b")
LAYERS = ("query", "key", "value", "out", "up", "down")


def with_adapters(model: Classifier, seed: int) -> Classifier:
    """A copy whose linear layers compute `x @ kernel + bias + x @ lora_a @ lora_b`.

    `lora_b` is 0 first, so the copy computes what the model computes. `lora_a` is random.
    """
    copy, rngs = nnx.clone(model), nnx.Rngs(seed)
    for block in copy.encoder.blocks:
        for name in LAYERS:
            layer = getattr(block, name)
            sizes = layer.in_features, RANK, layer.out_features
            setattr(block, name, nnx.LoRA(*sizes, base_module=layer, rngs=rngs))
    return copy


def without_adapters(model: Classifier) -> Classifier:
    """A copy with the adapters added to the kernels; it computes what the model computes."""
    copy = nnx.clone(model)
    for block in copy.encoder.blocks:
        for name in LAYERS:
            adapter = getattr(block, name)
            layer = adapter.base_module
            layer.kernel[...] += adapter.lora_a[...] @ adapter.lora_b[...]
            setattr(block, name, layer)
    return copy


def of_adapters(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`tx` for adapters and head; everything else is frozen."""

    def trained(params: Any) -> Any:
        def matches(path: Any, _: Any) -> bool:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return TRAINED.match(name) is not None

        return jax.tree_util.tree_map_with_path(matches, params)

    return optax.partition({True: tx, False: optax.set_to_zero()}, trained)
