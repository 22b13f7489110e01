"""The images that every run trains on and is tested on.

The whole study uses one division of the handwritten digits, so that settings are never chosen on
images on which they are reported.
"""

import io
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from benchmarks.study.cells import SHIFTS
from examples.digits.data import Split, generator, load
from examples.digits.shifts import Shift
from examples.digits.warps import SIZE, affine, elastic, warp

DATA_SEED = 0


class Sets(NamedTuple):
    """All images but the pre-training sets.

    Attributes:
        train: 1000 images to fine-tune on.
        radius: 149 images, only for learning radii with TPGM.
        tested: by column of the CSV: `validation`, 148 images that choose settings, and the sets
            that are reported, 500 images each.
    """

    train: Split
    radius: Split
    tested: dict[str, Split]


@cache
def sets() -> Sets:
    """Computed once in each process."""
    digits = load(DATA_SEED)
    images, labels = digits.test
    tested = {"validation": digits.validation, "id": digits.test}
    tested |= {name: digits.shifted[name] for name in SHIFTS}
    for name, shift in NEW.items():
        moved = shift(generator(DATA_SEED, name), images, labels)
        tested[name] = Split(moved.clip(0, 1).astype(np.float32), labels)
    return Sets(digits.train, digits.radius, tested)


def few(count: int, seed: int) -> Split:
    """`count` training images, equally many of every class, drawn by the seed."""
    images, labels = sets().train
    order = generator(DATA_SEED, f"few labels {seed}").permutation(len(labels))
    rows = np.concatenate([order[labels[order] == x][: count // 10] for x in range(10)])
    return Split(images[rows], labels[rows])


def jpeg(rng: np.random.Generator, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compressed until the blocks of 8x8 pixels show: JPEG of quality 5."""

    def compressed(image: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="jpeg", quality=5)
        return np.asarray(Image.open(file))

    pixels = np.round(images.clip(0, 1) * 255).astype(np.uint8)
    return np.stack([compressed(x) for x in pixels]).astype(np.float32) / 255


def elastically(rng: np.random.Generator, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Every pixel moved by about one pixel, in about the same direction as its neighbours."""
    return warp(images, affine(len(images)) + elastic(rng, len(images), 1.2, 2.0))


def dots(rng: np.random.Generator, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """On a background of dots: light pixels, three apart along both axes."""
    n = len(images)
    rows, columns = ((np.arange(SIZE) + rng.integers(3, size=(n, 1))) % 3 == 0 for _ in range(2))
    dot = rows[:, :, None] & columns[:, None, :]
    return np.where(dot, np.maximum(images, 0.8), images)


NEW: dict[str, Shift] = {"jpeg": jpeg, "elastic": elastically, "dots": dots}
