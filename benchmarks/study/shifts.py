"""Three more shifted sets, made for this study: nothing was ever chosen by them."""

import io

import numpy as np
from PIL import Image

from examples.digits.shifts import Shift
from examples.digits.warps import SIZE, affine, elastic, warp


def jpeg(rng: np.random.Generator, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compressed until the blocks of 8x8 pixels show: JPEG of quality 5."""
    pixels = np.round(images.clip(0, 1) * 255).astype(np.uint8)
    return np.stack([_compressed(image) for image in pixels]).astype(np.float32) / 255


def _compressed(image: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="jpeg", quality=5)
    return np.asarray(Image.open(file))


def elastically(rng: np.random.Generator, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Every pixel moved by about a pixel either way, neighbours together."""
    return warp(images, affine(len(images)) + elastic(rng, len(images), 1.2, 2.0))


def dots(rng: np.random.Generator, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """On a background of dots: light pixels three apart along both axes."""
    n = len(images)
    rows, columns = ((np.arange(SIZE) + rng.integers(3, size=(n, 1))) % 3 == 0 for _ in range(2))
    dot = rows[:, :, None] & columns[:, None, :]
    return np.where(dot, np.maximum(images, 0.8), images)


NEW: dict[str, Shift] = {"jpeg": jpeg, "elastic": elastically, "dots": dots}
