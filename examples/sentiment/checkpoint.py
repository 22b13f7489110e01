"""Reads an encoder from a Hugging Face folder: `config.json` and `model.safetensors`."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from examples.sentiment.encoder import Config, Encoder

# The names of `transformers` for our modules, and for the kinds of parameters.
MODULES = {
    "word": "embeddings.word_embeddings",
    "position": "embeddings.position_embeddings",
    "segment": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
}
BLOCK_NORM = "output.LayerNorm"
LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}

# Tensors that an encoder without pooler and pre-training heads does not read.
UNUSED = re.compile(r"embeddings\.position_ids|pooler\..*|cls\..*|classifier\..*")


class Report(NamedTuple):
    """The tensors of a file, and their places in the model.

    Attributes:
        loaded: path in the model to name in the file.
        unused: names of known tensors that the encoder does not have.
    """

    loaded: dict[str, str]
    unused: list[str]

    def __str__(self) -> str:
        unused = ", ".join(self.unused) or "none"
        return f"{len(self.loaded)} tensors loaded; not used: {unused}"


def load(folder: Path) -> tuple[Encoder, Report]:
    """An encoder in float32 with the weights of a folder.

    Args:
        folder: has `config.json` and `model.safetensors` of a BERT model.

    Returns:
        The encoder, and which tensors it read.

    Raises:
        ValueError: if the file lacks a tensor, has one that no BERT encoder has, or has one of
            another shape; the message names all of them.
    """
    config = Config.from_json(json.loads((folder / "config.json").read_text()))
    tensors = load_file(folder / "model.safetensors")
    # Models with a pre-training head or a classifier store the encoder under "bert.".
    tensors = {name.removeprefix("bert."): value for name, value in tensors.items()}

    encoder = nnx.eval_shape(lambda: Encoder(config, nnx.Rngs(0)))
    graph, params = nnx.split(encoder)
    wanted = dict(nnx.to_flat_state(params))
    names = {path: name_in_file(path) for path in wanted}
    _check_names(set(names.values()), set(tensors))

    arrays, wrong = {}, []
    for path, name in names.items():
        # PyTorch stores the weights of a linear layer as [out, in].
        array = tensors[name].T if path[-1] == "kernel" else tensors[name]
        if array.shape != wanted[path].shape:
            wrong.append(f"{name}: {tensors[name].shape}")
        arrays[path] = jnp.asarray(np.ascontiguousarray(array), jnp.float32)
    if wrong:
        raise ValueError(f"These shapes contradict `config.json`: {'; '.join(wrong)}.")
    filled = jax.tree.unflatten(jax.tree.structure(params), [arrays[path] for path in wanted])
    report = Report(
        loaded={"/".join(map(str, path)): name for path, name in names.items()},
        unused=sorted(set(tensors) - set(names.values())),
    )
    return nnx.merge(graph, filled), report


def name_in_file(path: Sequence[Any]) -> str:
    """The name in `transformers` of one of our parameters.

    Examples:
        >>> name_in_file(("blocks", 3, "down", "kernel"))
        'encoder.layer.3.output.dense.weight'
        >>> name_in_file(("norm", "scale"))
        'embeddings.LayerNorm.weight'
    """
    *module, leaf = path
    if module[0] != "blocks":
        return f"{MODULES[str(module[0])]}.{LEAVES[str(leaf)]}"
    _, layer, part = module
    name = BLOCK_NORM if part == "norm" else MODULES[str(part)]
    return f"encoder.layer.{layer}.{name}.{LEAVES[str(leaf)]}"


def _check_names(wanted: set[str], found: set[str]) -> None:
    missing = sorted(wanted - found)
    unknown = sorted(name for name in found - wanted if not UNUSED.fullmatch(name))
    if missing or unknown:
        raise ValueError(
            "`model.safetensors` does not fit `config.json`. "
            f"Missing: {', '.join(missing) or 'none'}. Unknown: {', '.join(unknown) or 'none'}."
        )
