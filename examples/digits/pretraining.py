"""The pre-trained network: trained once on rendered digits, then read from a cache."""

from dataclasses import asdict
from pathlib import Path
from types import ModuleType

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
        rng, blocks = generator(settings.seed, "rendering"), []
        with tqdm(total=count, desc="rendering", unit="image") as bar:
            for start in range(0, count, _BLOCK):
                blocks.append(printed.printed_set(rng, min(_BLOCK, count - start), characters))
                bar.update(len(blocks[-1][1]))
        images, labels = (np.concatenate(arrays) for arrays in zip(*blocks, strict=True))
        return {"images": images, "labels": labels}

    depends = {"seed": settings.seed, "count": count, "block": _BLOCK}
    depends |= {"characters": characters}
    arrays = storage.cached(directory, "printed", depends, _RENDERING, render)
    return Split(arrays["images"].astype(np.float32) / 255, arrays["labels"])


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
    depends = {k: v for k, v in asdict(settings).items() if k.startswith(("seed", "pretraining"))}
    depends |= {"network": repr(network), "block": _BLOCK, "characters": characters}
    flat = storage.cached(
        directory,
        "pretrained",
        depends,
        (*_RENDERING, models, training, *modules),
        lambda: _train(network, settings, directory, characters),
    )
    return unflatten_dict(flat, sep="/")


def _train(
    network: nn.Module, settings: Settings, directory: Path, characters: str
) -> storage.Arrays:
    """Trains with Adam, and returns a dict from path to array."""
    rendered = pretraining_set(settings, directory, characters)
    steps = settings.pretraining_steps
    rng = generator(settings.seed, "pre-training")
    batches = training.shuffled(rng, len(rendered.labels), steps, settings.pretraining_batch)
    params = network.init(jax.random.key(settings.seed), rendered.images[:1])
    with tqdm(total=steps, desc="pre-training", unit="step") as bar:
        trained, _ = training.train(
            network.apply,
            params,
            optax.adam,
            np.array([settings.pretraining_learning_rate], np.float32),
            rendered,
            batches[None],
            progress=bar.update,
        )
    flat = flatten_dict(jax.tree.map(lambda x: np.asarray(x[0]), trained), sep="/")
    return {str(path): array for path, array in flat.items()}
