"""The pre-trained networks and what else depends on the pre-training set alone."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from benchmarks.study import models
from benchmarks.study.models import network
from examples.digits import storage
from examples.digits.glyphs import DIGITS, LETTERS
from examples.digits.models import cross_entropy
from examples.digits.pretraining import pretrained, pretraining_set
from examples.digits.settings import Settings


@dataclass(frozen=True)
class Sizes:
    """How much of everything a run does.

    Attributes:
        steps: of fine-tuning.
        batch: images to one of them, and to a radius step of TPGM.
        radius_steps: of TPGM post hoc, on all of its split.
        importance_images: from which EWC's importances are computed.
        pretraining: sizes of the pre-training, as the demo's; the seed is not among them.
    """

    steps: int = 1000
    batch: int = 64
    radius_steps: int = 200
    importance_images: int = 1000
    pretraining: Settings = field(default_factory=Settings)


FAST = Sizes(
    steps=10,
    batch=32,
    radius_steps=3,
    importance_images=16,
    pretraining=Settings(pretraining_images=400, pretraining_steps=10, pretraining_batch=32),
)


def anchor(
    model: str, head: str, pretrain_seed: int, seed: int, sizes: Sizes, directory: Path
) -> optax.Params:
    """Where a run starts: the pre-trained network, its head of `seed`'s own if `head` is "new"."""
    body = _pretrained(model, head, pretrain_seed, sizes, directory)
    if head == "reused":
        return body
    images = jnp.zeros((1, 16, 16))
    fresh: Any = network(model).init(jax.random.key(seed), images)
    return {"params": {**body["params"], "head": fresh["params"]["head"]}}


@cache
def _pretrained(model: str, head: str, pretrain_seed: int, sizes: Sizes, directory: Path) -> Any:
    characters = DIGITS if head == "reused" else LETTERS
    settings = _settings(sizes, pretrain_seed)
    net = network(model, len(characters))
    return pretrained(net, settings, directory, characters, (models,))


def _settings(sizes: Sizes, pretrain_seed: int) -> Settings:
    return Settings(
        seed=pretrain_seed,
        pretraining_images=sizes.pretraining.pretraining_images,
        pretraining_steps=sizes.pretraining.pretraining_steps,
        pretraining_batch=sizes.pretraining.pretraining_batch,
    )


@cache
def importance(model: str, pretrain_seed: int, sizes: Sizes, directory: Path) -> optax.Params:
    """EWC's: the diagonal of the Fisher information at the pre-trained weights, with a mean of 1.

    The mean, over images of the pre-training set, of the squared gradient of the log-probability
    of the label. Divided by its mean over all weights, so that one weight suits all models.
    """
    count = sizes.importance_images

    def compute() -> storage.Arrays:
        shown = pretraining_set(_settings(sizes, pretrain_seed), directory)
        params = _pretrained(model, "reused", pretrain_seed, sizes, directory)
        net = network(model)

        @jax.jit
        def squared(image, label):
            def loss(params):
                return cross_entropy(net.apply, params, image[None], label[None])

            return jax.tree.map(jnp.square, jax.grad(loss)(params))

        total: Any = optax.tree.zeros_like(params)
        for image, label in zip(shown.images[:count], shown.labels[:count], strict=True):
            total = jax.tree.map(jnp.add, total, squared(image, label))
        size = sum(x.size for x in jax.tree.leaves(total))
        mean = sum(float(x.sum()) for x in jax.tree.leaves(total)) / size
        flat = flatten_dict(jax.tree.map(lambda x: np.asarray(x) / mean, total), sep="/")
        return {str(path): array for path, array in flat.items()}

    depends = {"model": repr(network(model)), "seed": pretrain_seed, "count": count}
    depends |= {"pretraining": repr(sizes.pretraining)}
    flat = storage.cached(directory, "importance", depends, (models,), compute)
    return unflatten_dict(flat, sep="/")
