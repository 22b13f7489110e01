"""The sets of images. Each depends on one seed only.

scikit-learn's 1797 handwritten digits are divided once, at random: 1000 to train on; 149 on which
TPGM learns radii; 148 to choose a learning rate on; 500 to test on. Methods that learn no radii do
not use the 149.
"""

import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from examples.digits.shifts import SHIFTS

SIZES = {"train": 1000, "radius": 149, "validation": 148, "test": 500}


class Split(NamedTuple):
    """Labelled images.

    Attributes:
        images: `[n, 16, 16]`, float32 in [0, 1].
        labels: `[n]`, int32 in 0 ... 9.
    """

    images: np.ndarray
    labels: np.ndarray


class Digits(NamedTuple):
    """Everything but the pre-training set.

    Attributes:
        train: to fine-tune on.
        radius: held-out data on which TPGM learns radii, for no other use.
        validation: to choose a learning rate on, for no other use.
        test: the same distribution, to report.
        shifted: thirteen other distributions, to report.
    """

    train: Split
    radius: Split
    validation: Split
    test: Split
    shifted: dict[str, Split]


def generator(seed: int, purpose: str) -> np.random.Generator:
    """A random generator for one purpose, independent of other purposes."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])


def division(seed: int) -> dict[str, np.ndarray]:
    """For each split its rows of `load_digits()`, disjoint."""
    order = generator(seed, "division").permutation(sum(SIZES.values()))
    cuts = np.cumsum(list(SIZES.values()))[:-1]
    return dict(zip(SIZES, np.split(order, cuts), strict=True))


def load(seed: int) -> Digits:
    """The four splits of the handwritten digits, and the thirteen shifted sets."""
    images, labels = _handwritten()
    splits = {name: Split(images[rows], labels[rows]) for name, rows in division(seed).items()}
    test = splits["test"]
    shifted = {}
    for name, apply in SHIFTS.items():
        moved = apply(generator(seed, name), test.images, test.labels)
        shifted[name] = Split(moved.clip(0, 1).astype(np.float32), test.labels)
    return Digits(**splits, shifted=shifted)


def _handwritten() -> tuple[np.ndarray, np.ndarray]:
    """`load_digits`, from 8x8 in 0 ... 16 to 16x16 in [0, 1]; light ink on black."""
    images, labels = load_digits(return_X_y=True)
    resized = [
        np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BICUBIC))
        for image in images.reshape(-1, 8, 8).astype(np.float32) / 16
    ]
    return np.stack(resized).clip(0, 1), np.asarray(labels, np.int32)
