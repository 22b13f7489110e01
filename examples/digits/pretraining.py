"""The pre-trained network: trained once on rendered digits, then read from a cache."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from tqdm import tqdm

from examples.digits import data, glyphs, models, photos, printed, storage, training, warps
from examples.digits.data import Split, generator
from examples.digits.glyphs import DIGITS
from examples.digits.settings import Settings

_RENDERING = (data, glyphs, photos, printed, warps)
_BLOCK = 5000  # images rendered at once, which bounds the memory


def pretraining_set(settings: Settings, directory: Path, characters: str = DIGITS) -> Split:
    """Rendered digits, `[pretraining_images, 16, 16]`; cached in `directory`.

    Args:
        settings: the number of images, and the seed.
        directory: folder of the cache.
        characters: characters to render in place of digits.
    """
    count = settings.pretraining_images

    def render() -> storage.Arrays:
        rng = generator(settings.seed, "rendering")
        images, labels = in_blocks(lambda n: printed.printed_set(rng, n, characters), count)
        return {"images": images, "labels": labels}

    depends = {"seed": settings.seed, "count": count, "block": _BLOCK}
    depends |= {"characters": characters}
    arrays = storage.cached(directory, "printed", depends, _RENDERING, render)
    return Split(arrays["images"].astype(np.float32) / 255, arrays["labels"])


def in_blocks(render: Callable[[int], Iterable[np.ndarray]], count: int) -> list[np.ndarray]:
    """`count` rendered images with their labels, some at a time."""
    blocks = []
    with tqdm(total=count, desc="rendering", unit="image") as bar:
        for start in range(0, count, _BLOCK):
            size = min(_BLOCK, count - start)
            blocks.append(render(size))
            bar.update(size)
    return [np.concatenate(arrays) for arrays in zip(*blocks, strict=True)]


def pretrained(
    network: nn.Module,
    settings: Settings,
    directory: Path,
    characters: str = DIGITS,
    modules: tuple[ModuleType, ...] = (),
) -> optax.Params:
    """Parameters trained on `pretraining_set`; cached in `directory`.

    Args:
        network: from images to one logit for each of `characters`.
        settings: the length of the training, and the seed.
        directory: folder of the cache, for the parameters and the set.
        characters: the characters in the set.
        modules: the modules that define the network, if not in `models`.
    """

    def make() -> storage.Arrays:
        shown = pretraining_set(settings, directory, characters)
        return train(network, settings, shown, generator(settings.seed, "pre-training"))

    depends = {k: v for k, v in asdict(settings).items() if k.startswith(("seed", "pretraining"))}
    depends |= {"network": repr(network), "block": _BLOCK, "characters": characters}
    depend_on = (*_RENDERING, models, training, *modules)
    flat = storage.cached(directory, "pretrained", depends, depend_on, make)
    return unflatten_dict(flat, sep="/")


def train(
    network: nn.Module, settings: Settings, data: Split, rng: np.random.Generator
) -> storage.Arrays:
    """Trains with Adam, in an order that `rng` draws, and returns a dict from path to array."""
    steps = settings.pretraining_steps
    batches = training.shuffled(rng, len(data.labels), steps, settings.pretraining_batch)
    schedule = optax.cosine_decay_schedule(settings.pretraining_learning_rate, steps)
    tx = optax.adam(schedule)

    # Called from Python for each step, because XLA's convolutions in a scan are slow on CPU.
    @jax.jit
    def step(params: Any, state: Any, batch: Split) -> Any:
        grads = jax.grad(models.cross_entropy, 1)(network.apply, params, *batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = network.init(jax.random.key(settings.seed), data.images[:1])
    state = tx.init(params)
    for rows in tqdm(batches, desc="pre-training", unit="step"):
        params, state = step(params, state, Split(data.images[rows], data.labels[rows]))
    flat = flatten_dict(jax.tree.map(np.asarray, params), sep="/")
    return {str(path): array for path, array in flat.items()}
