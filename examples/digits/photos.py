"""Backgrounds cut from the photographs that come with scikit-learn and matplotlib."""

from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

# `flower.jpg` is reserved for the shifted test sets.
PRETRAINING_PHOTOS = ("china.jpg", "grace_hopper.jpg")
HELD_OUT_PHOTOS = ("flower.jpg",)

_REDUCTIONS = (2, 4, 8)  # pixels of the photograph to one of the background


def backgrounds(
    rng: np.random.Generator, count: int, photos: tuple[str, ...], size: int = 16
) -> np.ndarray:
    """Grey patches at random places and scales, `[count, size, size]` in [0, 1]."""
    levels = [_reduced(photo, reduction) for photo in photos for reduction in _REDUCTIONS]
    patches = np.empty((count, size, size), np.float32)
    level = rng.integers(len(levels), size=count)
    place = rng.random((count, 2))
    for i, image in enumerate(levels):
        windows = np.lib.stride_tricks.sliding_window_view(image, (size, size))
        chosen = level == i
        rows, columns = (place[chosen] * windows.shape[:2]).astype(int).T
        patches[chosen] = windows[rows, columns]
    return patches


@cache
def _reduced(photo: str, reduction: int) -> np.ndarray:
    """A photograph in grey, smaller by `reduction`."""
    if photo == "grace_hopper.jpg":
        with Image.open(Path(matplotlib.get_data_path(), "sample_data", photo)) as file:
            image = file.convert("L")
    else:
        image = Image.fromarray(load_sample_image(photo)).convert("L")
    return np.asarray(image.reduce(reduction), np.float32) / 255
