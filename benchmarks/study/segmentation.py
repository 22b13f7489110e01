"""Dense prediction: which digit each pixel belongs to.

A small U-net, pre-trained on the printed digits of the study and fine-tuned on the handwritten
ones, under the same shifts. A pixel belongs to its image's digit if it has more than half of the
full ink, and else to the background. The measure is the mean intersection over union of the eleven
classes, in percent.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import flax.linen as nn
import numpy as np
import optax
from flax.traverse_util import unflatten_dict

from benchmarks.study import cells, models
from benchmarks.study.methods import METHODS
from benchmarks.study.models import UNet
from benchmarks.study.pretraining import Setup
from benchmarks.study.runs import Row, derived, predictor
from benchmarks.study.sets import DATA_SEED, sets
from benchmarks.study.training import Trained, finetune
from examples.digits import glyphs, pretraining, printed, shifts, storage, training, warps
from examples.digits.data import Split, generator
from examples.digits.glyphs import DIGITS, PRETRAINING_FONTS, STYLES

NETWORK: nn.Module = UNet()
BACKGROUND = len(DIGITS)
# Shifts that move or draw ink, so that the mask moves with it.
INK = ("fonts", "outlines", "rotate", "shift", "elastic")


def masked(images: np.ndarray, ink: np.ndarray, labels: np.ndarray) -> Split:
    """Images with a class for each pixel, `[n, 16, 16]`."""
    classes = np.where(ink > 0.5, labels[:, None, None], BACKGROUND)
    return Split(images, classes.astype(np.int32))


@cache
def tested() -> dict[str, Split]:
    """The study's test sets by column, with masks."""
    clean, labels = sets().tested["id"]
    found = {}
    for name in ("id", *cells.SHIFTS, *cells.NEW_SHIFTS):
        images, _ = sets().tested[name]
        ink = images if name in INK else clean
        if name == "fonts_photo":  # the same random numbers again; they drew the fonts first
            ink = shifts.fonts(generator(DATA_SEED, name), clean, labels)
        found[name] = masked(images, ink, labels)
    return found


def rendered(rng: np.random.Generator, count: int) -> Split:
    """Printed digits as in the study's pre-training, with masks."""
    labels = rng.integers(len(DIGITS), size=count).astype(np.int32)
    ink = printed.printed(rng, labels, PRETRAINING_FONTS, STYLES)
    return masked(printed.on_backgrounds(rng, ink).astype(np.float32) / 255, ink, labels)


@cache
def pretrained(seed: int, setup: Setup) -> optax.Params:
    """The network before fine-tuning; from the cache the second time."""
    settings = replace(setup.sizes, seed=seed)

    def train() -> storage.Arrays:
        rng = generator(seed, "segmentation")
        shown = pretraining.in_blocks(lambda n: rendered(rng, n), settings.pretraining_images)
        return pretraining.train(NETWORK, settings, Split(*shown), rng)

    depends = {"network": repr(NETWORK), "seed": seed, "pretraining": repr(setup.sizes)}
    modules = (models, glyphs, printed, training, warps)
    flat = storage.cached(setup.cache, "segmentation", depends, modules, train)
    return unflatten_dict(flat, sep="/")


def learn(run: Row, wanted: Sequence[Row], setup: Setup) -> list[Row]:
    """Trains once, and tests all rows of `wanted`, which rest on this training."""
    anchor = pretrained(run["pretrain_seed"], setup)
    trained = Trained(anchor)
    if run["method"] != "zero_shot":
        train, radius = (masked(x.images, x.images, x.labels) for x in sets()[:2])
        trained = finetune(NETWORK, METHODS[run["method"]], run, anchor, (train, radius), setup)
    return [
        row | {"seconds": trained.seconds} | accuracy(derived(row, trained, anchor, setup)[0])
        for row in wanted
    ]


def accuracy(params: optax.Params) -> dict[str, float]:
    """Mean intersection over union on each set, in percent."""
    found = {}
    for name, (images, classes) in tested().items():
        logits = np.asarray(predictor(NETWORK)(params, images))
        found[name] = 100 * mean_iou(logits.argmax(axis=-1), classes)
    return found


def mean_iou(predicted: np.ndarray, classes: np.ndarray) -> float:
    """Intersection over union of each class over all pixels of a set, then the mean.

    A class that is neither there nor predicted does not count.
    """
    counts = np.zeros((BACKGROUND + 1, BACKGROUND + 1))
    np.add.at(counts, (classes.ravel(), predicted.ravel()), 1)
    both = np.diag(counts)
    either = counts.sum(axis=0) + counts.sum(axis=1) - both
    return float(np.mean(both[either > 0] / either[either > 0]))
