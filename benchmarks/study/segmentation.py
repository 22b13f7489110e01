"""Dense prediction: which digit each pixel belongs to, as `robustness_segmentation.csv`.

    python -m benchmarks.study.segmentation

A small U-net, pre-trained on the printed digits of the study and fine-tuned on the handwritten
ones, under the same shifts. A pixel is of its image's digit where there is more than half of the
full ink, else of the background. Measured is the mean intersection over union of the eleven
classes, in percent. Nothing is tuned: each method runs at three learning rates.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from tqdm import tqdm

import tpgm_jax
from benchmarks.study import cells, models, unet
from benchmarks.study.command import parse
from benchmarks.study.methods import METHODS, RECOMMENDED_ALPHA
from benchmarks.study.pretraining import FAST, Sizes
from benchmarks.study.records import Records
from benchmarks.study.sets import DATA_SEED, sets
from benchmarks.study.training import Start, timed, trainer
from benchmarks.study.unet import UNet
from examples.digits import glyphs, printed, shifts, storage, training, warps
from examples.digits.data import Split, generator
from examples.digits.glyphs import DIGITS, PRETRAINING_FONTS, STYLES
from examples.digits.models import Apply

KEYS = ("method", "learning_rate", "setting", "pretrain_seed", "seed")
COLUMNS = (*KEYS, "seconds", "id", *cells.SHIFTS, *cells.NEW_SHIFTS)

NETWORK: nn.Module = UNet()
CLASSES = len(DIGITS) + 1
BACKGROUND = len(DIGITS)
RATES = (1e-3, 3e-3, 1e-2)
RUN = {"finetune": "", "l2sp": "weight=0.01", "ftp": "", "ftp_anchor": "", "tpgm": ""}
# What is made of another method's run: of which, and at which setting.
MADE = {"wise": ("finetune", "alpha=0.5"), "recommended": ("ftp_anchor", "")}
UNTRAINED = "zero_shot"
BLOCK = 5000  # images rendered at once, which bounds the memory

# Shifts that return ink: what they moved or drew is where the digit is.
INK = ("fonts", "outlines", "rotate", "shift", "elastic")


@dataclass(frozen=True)
class Scope:
    """What is run; the default is everything."""

    methods: tuple[str, ...] = (UNTRAINED, *RUN, *MADE)
    rates: tuple[float, ...] = RATES
    seeds: tuple[int, ...] = cells.SEEDS[:3]


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
        ink = clean
        if name in INK:
            ink = images
        elif name == "fonts_photo":  # the same numbers once more, which drew the fonts first
            ink = shifts.fonts(generator(DATA_SEED, name), clean, labels)
        found[name] = masked(images, ink, labels)
    return found


def rendered(rng: np.random.Generator, count: int) -> Split:
    """Printed digits as the study's networks are pre-trained on, with masks."""
    again = copy.deepcopy(rng)
    images, labels = printed.printed_set(rng, count)
    # The set keeps no ink; it was drawn right after the labels.
    assert np.array_equal(labels, again.integers(len(DIGITS), size=count))
    ink = printed.printed(again, labels, PRETRAINING_FONTS, STYLES)
    return masked(images.astype(np.float32) / 255, ink, labels)


def pretrained(seed: int, sizes: Sizes, directory: Path) -> optax.Params:
    """The network before fine-tuning; from `directory` the second time."""
    settings = sizes.pretraining

    def train() -> storage.Arrays:
        rng = generator(seed, "segmentation")
        sizes_of_blocks = [BLOCK] * (settings.pretraining_images // BLOCK)
        rest = settings.pretraining_images % BLOCK
        blocks = [rendered(rng, n) for n in (*sizes_of_blocks, *([rest] if rest else []))]
        split = Split(*(np.concatenate(x) for x in zip(*blocks, strict=True)))
        steps = settings.pretraining_steps
        rows = training.shuffled(rng, len(split.labels), steps, settings.pretraining_batch)
        params = NETWORK.init(jax.random.key(seed), split.images[:1])
        with tqdm(total=steps, desc="pre-training", unit="step") as bar:
            trained, _ = training.train(
                NETWORK.apply,
                params,
                optax.adam,
                np.array([settings.pretraining_learning_rate], np.float32),
                split,
                rows[None],
                progress=bar.update,
            )
        flat = flatten_dict(jax.tree.map(lambda x: np.asarray(x[0]), trained), sep="/")
        return {str(path): array for path, array in flat.items()}

    depends = {"network": repr(NETWORK), "seed": seed, "pretraining": repr(settings)}
    modules = (models, unet, glyphs, printed, training, warps)
    flat = storage.cached(directory, "segmentation", depends, modules, train)
    return unflatten_dict(flat, sep="/")


def learn(run: Mapping[str, Any], sizes: Sizes, directory: Path) -> list[dict[str, Any]]:
    """One training, and a row for it and for each method of `MADE` that is made of it."""
    anchor = pretrained(run["pretrain_seed"], sizes, directory)
    if run["method"] == UNTRAINED:
        return [dict(run) | {"seconds": 0.0} | accuracy(anchor)]
    train, held_out = (
        masked(split.images, split.images, split.labels) for split in (sets().train, sets().radius)
    )

    def order(purpose: str, split: Split) -> Any:
        rng = generator(DATA_SEED, f"{purpose} {run['seed']}")
        return training.shuffled(rng, len(split.labels), sizes.steps, sizes.batch)

    start = Start(
        params=anchor,
        rate=jnp.float32(run["learning_rate"]),
        value=jnp.float32(cells.value(run["setting"])),
        key=jax.random.key(run["seed"]),
        rows=order("train", train),
        held_out_rows=order("radius", held_out),
        importance=jnp.float32(0),
    )
    one = jax.tree.map(lambda x: jnp.asarray(x)[None], start)
    program = trainer(NETWORK, "reused", METHODS[run["method"]])
    finished, seconds = timed(program, one, train, held_out)
    params, mean = (jax.tree.map(lambda x: x[0], x) for x in (finished.params, finished.mean))
    taken = {run["method"]: params}
    if run["method"] == MADE["wise"][0]:
        taken["wise"] = tpgm_jax.interpolate(params, anchor, cells.value(MADE["wise"][1]))
    if run["method"] == MADE["recommended"][0]:
        taken["recommended"] = tpgm_jax.interpolate(mean, anchor, RECOMMENDED_ALPHA)
    settings = {method: setting for method, (_, setting) in MADE.items()}
    return [
        dict(run)
        | {"method": method, "setting": settings.get(method, run["setting"]), "seconds": seconds}
        | accuracy(params)
        for method, params in taken.items()
    ]


def accuracy(params: optax.Params) -> dict[str, float]:
    """Mean intersection over union on each set, in percent."""
    program = _predict()
    return {
        name: 100 * mean_iou(np.asarray(program(params, images)), classes)
        for name, (images, classes) in tested().items()
    }


@cache
def _predict() -> Any:
    apply: Apply = NETWORK.apply
    return jax.jit(lambda params, images: jnp.argmax(apply(params, images), axis=-1))


def mean_iou(predicted: np.ndarray, classes: np.ndarray) -> float:
    """Over all pixels of a set: of each class the intersection over the union, then their mean.

    A class that is neither there nor predicted has none.
    """
    counts = np.zeros((CLASSES, CLASSES))
    np.add.at(counts, (classes.ravel(), predicted.ravel()), 1)
    both = np.diag(counts)
    either = counts.sum(axis=0) + counts.sum(axis=1) - both
    return float(np.mean(both[either > 0] / either[either > 0]))


def run(output: Path, scope: Scope, sizes: Sizes, directory: Path) -> None:
    """Runs what is missing, and appends it."""
    table = Records(output, COLUMNS)
    sources = {method: (method, setting) for method, setting in RUN.items()}
    sources |= {method: (source, RUN[source]) for method, (source, _) in MADE.items()}
    settings = RUN | {method: setting for method, (_, setting) in MADE.items()}
    wanted: list[dict[str, Any]] = [
        dict(zip(KEYS, (method, rate, settings[method], 0, seed), strict=True))
        for rate in scope.rates
        for seed in scope.seeds
        for method in scope.methods
        if method != UNTRAINED
    ]
    if UNTRAINED in scope.methods:
        wanted.append(dict(zip(KEYS, (UNTRAINED, 0.0, "", 0, 0), strict=True)))
    trainings: dict[tuple[Any, ...], list[str]] = {}
    for one in table.missing(wanted, KEYS):
        method, setting = sources.get(one["method"], (one["method"], one["setting"]))
        trained = dict(one) | {"method": method, "setting": setting}
        trainings.setdefault(tuple(trained.values()), []).append(one["method"])
    for training_run, methods in tqdm(trainings.items(), desc="segmentation"):
        made = learn(dict(zip(KEYS, training_run, strict=True)), sizes, directory)
        table.append([row for row in made if row["method"] in methods])
    table.close()


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(__doc__, "segmentation", arguments)
    fast = Scope(rates=(1e-3,), seeds=(0,))
    run(options.output, *((fast, FAST) if options.fast else (Scope(), Sizes())), options.cache)


if __name__ == "__main__":
    main()
