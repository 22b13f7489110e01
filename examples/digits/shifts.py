"""The thirteen shifted test sets: five of another style, eight of a corruption.

Shifts of images use the in-distribution test set, so that accuracy differs from the in-distribution
accuracy only because of the shift.
"""

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from examples.digits.glyphs import HELD_OUT_FONTS
from examples.digits.photos import HELD_OUT_PHOTOS, backgrounds
from examples.digits.printed import printed
from examples.digits.warps import SIZE, affine, warp

Shift = Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]


def on_photo(rng: np.random.Generator, ink: np.ndarray) -> np.ndarray:
    """Light ink on photographs that pre-training does not use."""
    photo = backgrounds(rng, len(ink), HELD_OUT_PHOTOS)
    return photo + ink * (1 - photo)


def invert(rng: np.random.Generator, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Dark on light."""
    return 1 - images


def photo(rng: np.random.Generator, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Handwriting on a photograph."""
    return on_photo(rng, images)


def fonts(rng: np.random.Generator, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Printed in fonts that pre-training does not use."""
    return printed(rng, labels, HELD_OUT_FONTS, ("regular", "thick"), 0.7)


def outlines(rng: np.random.Generator, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The outlines of those fonts."""
    return printed(rng, labels, HELD_OUT_FONTS, ("outline",), 0.7)


def fonts_photo(rng: np.random.Generator, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Those fonts on a photograph."""
    return on_photo(rng, fonts(rng, images, labels))


def noise(rng: np.random.Generator, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Gaussian noise of standard deviation 0.3."""
    return images + 0.3 * rng.standard_normal(images.shape, np.float32)


def impulse(rng: np.random.Generator, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A fifth of the pixels black or white."""
    return np.where(rng.random(images.shape) < 0.2, rng.integers(2, size=images.shape), images)


def rotate(rng: np.random.Generator, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Turned by 25 to 45 degrees, either way."""
    n = len(images)
    return warp(images, affine(n, rotation=rng.choice((-1, 1), n) * rng.uniform(25, 45, n)))


def shift(rng: np.random.Generator, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Moved by 1 or 2 pixels along both axes."""
    n = len(images)
    by = rng.choice((-1, 1), (n, 2)) * rng.integers(1, 3, (n, 2))
    return warp(images, affine(n, translation=by))


def contrast(rng: np.random.Generator, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A third of the contrast, on a grey from 0.2 to 0.8."""
    grey = rng.uniform(0.2, 0.8, (len(images), 1, 1))
    return grey + (images - 0.5) / 3


def blur(rng: np.random.Generator, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Blurred with a standard deviation of 1.5 pixels."""
    return ndimage.gaussian_filter(images, (0, 1.5, 1.5))


def occlude(rng: np.random.Generator, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A grey square of 6x6 pixels somewhere."""
    n, side = len(images), 6
    corner = rng.integers(SIZE - side + 1, size=(n, 2, 1))
    inside = (np.arange(SIZE) >= corner) & (np.arange(SIZE) < corner + side)
    square = inside[:, 0, :, None] & inside[:, 1, None, :]
    return np.where(square, rng.random((n, 1, 1)), images)


def stripes(rng: np.random.Generator, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Every fourth row or column white."""
    n = len(images)
    line = (np.arange(SIZE) + rng.integers(4, size=(n, 1))) % 4 == 0
    across = rng.random((n, 1, 1)) < 0.5
    return np.where(np.where(across, line[:, :, None], line[:, None, :]), 1.0, images)


STYLE: dict[str, Shift] = {f.__name__: f for f in (invert, photo, fonts, outlines, fonts_photo)}
CORRUPTION: dict[str, Shift] = {
    f.__name__: f for f in (noise, impulse, rotate, shift, contrast, blur, occlude, stripes)
}
SHIFTS = STYLE | CORRUPTION
