"""The pre-trained networks, and EWC's importances."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from benchmarks.study import models
from benchmarks.study.models import network
from examples.digits.glyphs import DIGITS, LETTERS
from examples.digits.models import cross_entropy
from examples.digits.pretraining import pretrained, pretraining_set
from examples.digits.settings import Settings

IMPORTANCE_IMAGES = 1000


@dataclass(frozen=True)
class Setup:
    """A folder for pre-trained networks, and the sizes of everything, which are the demo's."""

    cache: Path
    sizes: Settings = field(default_factory=Settings)


def anchor(run: Mapping[str, Any], setup: Setup) -> optax.Params:
    """Where a run starts: the pre-trained network. A new head depends on the run's seed."""
    model, head = run["model"], run.get("head", "reused")
    body = body_of(model, head, run.get("pretrain_seed", 0), setup)
    if head == "reused":
        return body
    fresh: Any = network(model).init(jax.random.key(run["seed"]), jnp.zeros((1, 16, 16)))
    return {"params": {**body["params"], "head": fresh["params"]["head"]}}


@cache
def body_of(model: str, head: str, pretrain_seed: int, setup: Setup) -> Any:
    """Pre-trained on digits for a reused head, on letters for a new one."""
    characters = DIGITS if head == "reused" else LETTERS
    settings = replace(setup.sizes, seed=pretrain_seed)
    net = network(model, len(characters))
    return pretrained(net, settings, setup.cache, characters, (models,))


@cache
def importance(model: str, pretrain_seed: int, setup: Setup) -> optax.Params:
    """EWC's: the diagonal of the Fisher information at the pre-trained weights.

    The mean, over pre-training images, of the squared gradient of the log-probability of the
    label, divided by its mean over all weights, so that one weight suits all models.
    """
    shown = pretraining_set(replace(setup.sizes, seed=pretrain_seed), setup.cache)
    params, net = body_of(model, "reused", pretrain_seed, setup), network(model)

    @jax.jit
    def add(total: Any, image: jax.Array, label: jax.Array) -> Any:
        gradient = jax.grad(cross_entropy, 1)(net.apply, params, image[None], label[None])
        return jax.tree.map(lambda x, g: x + g**2, total, gradient)

    total: Any = optax.tree.zeros_like(params)
    for image, label in zip(*(x[:IMPORTANCE_IMAGES] for x in shown), strict=True):
        total = add(total, image, label)
    mean = ravel_pytree(total)[0].mean()
    return jax.tree.map(lambda x: x / mean, total)
