"""The models by name. Each computes logits from parameters, batch statistics and images."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from safetensors import SafetensorError

from examples.papers import weights
from examples.papers.resnet import CLIPResNet, ResNet
from examples.papers.vit import CLIPViT
from examples.pod.settings import Refused
from tpgm_jax import Axes

MODELS: dict[str, Any] = {
    "clip-resnet50": CLIPResNet,
    "resnet50": ResNet,
    "clip-vit-b16": CLIPViT,
}
# Errors for files that are not archives, are incomplete, or have other objects than tensors.
_DAMAGED = (zipfile.BadZipFile, pickle.UnpicklingError, SafetensorError)
SIZE = 224  # pixels of an image's side
NEW_HEAD = "head/.*"

# Names do not determine the axis of these rows. A position's vector is a row; `proj` is
# `(inputs, outputs)`.
AXES = {
    "clip-resnet50": {"attnpool/positional_embedding": Axes(rows=0)},
    "resnet50": {},
    "clip-vit-b16": {"positional_embedding": Axes(rows=0), "proj": Axes(rows=-1)},
}


class Network(NamedTuple):
    """A model without its numbers.

    Attributes:
        name: one of `MODELS`.
        training: graph that normalizes by the batch and updates the statistics.
        evaluation: graph that normalizes by the stored statistics.
        make: returns the module with random weights, from a seed.
    """

    name: str
    training: Any
    evaluation: Any
    make: Any

    def train(self, params: Any, stats: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        """Logits, and the statistics after this batch."""
        model = nnx.merge(self.training, params, stats)
        logits = model(images)
        return logits, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    def evaluate(self, params: Any, stats: Any, images: jax.Array) -> jax.Array:
        """Logits."""
        return nnx.merge(self.evaluation, params, stats)(images)


def network(
    name: str,
    classes: int,
    precision: str = "float32",
    shape: Mapping[str, Any] | None = None,
    normalize: bool = False,
) -> Network:
    """
    Args:
        name: one of `MODELS`.
        classes: outputs of the head.
        precision: dtype of the arithmetic.
        shape: other widths and depths than the papers'.
        normalize: give the head features of length 1, as CLIP's zero-shot heads expect.
    """
    keywords = dict(shape or {}, dtype=precision)
    if name == "resnet50":
        keywords.pop("size", None)  # it averages over all positions
    elif normalize:
        keywords["normalize"] = True

    def make(seed: int) -> nnx.Module:
        return MODELS[name](classes, rngs=nnx.Rngs(seed), **keywords)

    def graph(training: bool) -> Any:
        model = nnx.eval_shape(lambda: make(0))
        (model.train if training else model.eval)()
        return nnx.split(model, nnx.Param, nnx.BatchStat)[0]

    return Network(name, graph(True), graph(False), make)


def pretrained(
    network: Network, file: str | Path, head: str | Path | None, seed: int
) -> tuple[Any, Any, str]:
    """Parameters, batch statistics, and text that lists the loaded tensors.

    Args:
        network: the model.
        file: published weights; see `weights`.
        head: file with the head's weights. Default: the head is random.
        seed: of the random head.

    Raises:
        Refused: a file cannot be read, or does not fit the model.
    """
    model = network.make(seed)
    try:
        text = str(weights.load(model, file))
    except (OSError, ValueError, ImportError, RuntimeError, *_DAMAGED) as error:
        raise Refused(f"`--weights {file}` cannot be used, because of this: {error}") from error
    if head is not None:
        kernel = read_head(head)
        if kernel.shape != model.head.kernel.shape:
            raise Refused(
                f"`--head {head}` has a matrix of shape {kernel.shape}, and the model needs "
                f"{model.head.kernel.shape}, features by classes: make it with the model of "
                "`--weights`."
            )
        model.head.kernel[...] = kernel
        model.head.bias[...] = np.zeros(kernel.shape[1:], np.float32)
        text = f"{text}, then the head loaded from {head}"
    return *arrays(model), text


def arrays(model: nnx.Module) -> tuple[Any, Any]:
    """A model's parameters and batch statistics, dicts of dicts of arrays."""
    _, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(stats)


def read_head(path: str | Path) -> np.ndarray:
    """The matrix `kernel`, `(features, classes)`, of a `.npz` or `.safetensors` file.

    CLIP's zero-shot head: each class's text embedding has length 1, times 100.

    Raises:
        Refused: the file cannot be read, or has no such matrix.
    """
    try:
        if Path(path).suffix == ".safetensors":
            from safetensors.numpy import load_file

            tensors = load_file(path)
        else:
            tensors = np.load(path)
        return np.asarray(tensors["kernel"], np.float32)
    except Exception as error:  # safetensors and NumPy raise many kinds
        raise Refused(
            f"`--head {path}` cannot be read, because of {error!r}: give a .npz or .safetensors "
            "file with the matrix `kernel`, features by classes."
        ) from error
