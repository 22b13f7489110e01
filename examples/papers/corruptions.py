"""The 15 common corruptions of ImageNet-C, in 5 severities, of square images.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019, https://arxiv.org/abs/1903.12261. Constants and the order of
operations come from the program that made ImageNet-C. Differences:

1. All randomness comes from one generator, so results do not depend on threads or processes.
2. Results are not saved as JPEG files of quality 85, so scores differ slightly from scores on the
   published files.
3. ImageMagick computed motion blur in 16-bit integers; here it is in floats, and rounded once.

Packages that have these corruptions draw from NumPy's global generator, and for some types from
generators that cannot be seeded; they need OpenCV and scikit-image.
"""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from examples.papers import blurs, weather


def corrupt(pixels: np.ndarray, kind: str, severity: int, rng: np.random.Generator) -> np.ndarray:
    """A corrupted image.

    Args:
        pixels: `[n, n, 3]`, uint8. ImageNet-C's constants are for `n = 224`.
        kind: a key of `CORRUPTIONS`, for example "fog".
        severity: 1 to 5.
        rng: the source of randomness.

    Returns:
        `[n, n, 3]`, uint8.

    Raises:
        ValueError: see `check`.
    """
    check(kind, severity, len(pixels))
    function, constants = CORRUPTIONS[kind]
    result = function(pixels / 255, constants[severity - 1], rng)
    # ImageNet-C cuts digits off and does not round. The margin is for whole numbers.
    return (255 * np.clip(result, 0, 1) + 1e-6).astype(np.uint8)


def check(kind: str, severity: int, size: int) -> None:
    """Raises `ValueError` if there is no such corruption for images of this size."""
    if kind not in CORRUPTIONS:
        raise ValueError(f"no corruption is called {kind!r}: use {', '.join(CORRUPTIONS)}.")
    if severity not in range(1, 6):
        raise ValueError(f"the severity is {severity}: use 1 to 5.")
    if kind == "frost":
        weather.frost_photographs()
        if size >= weather.FROST_HEIGHT:
            raise ValueError(
                f"images have {size} pixels, and a photograph of frost has {weather.FROST_HEIGHT}: "
                "use smaller images."
            )


def gaussian_noise(x: np.ndarray, std: float, rng: np.random.Generator) -> np.ndarray:
    return x + std * rng.standard_normal(x.shape)


def shot_noise(x: np.ndarray, photons: float, rng: np.random.Generator) -> np.ndarray:
    return rng.poisson(x * photons) / photons


def impulse_noise(x: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A share of all values becomes 0 or 1."""
    changed, white = rng.random(x.shape) < share, rng.random(x.shape) < 0.5
    return np.where(changed, white, x)


def contrast(x: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A share of the distance from the mean of each colour."""
    mean = x.mean((0, 1))
    return mean + share * (x - mean)


def elastic_transform(
    x: np.ndarray, c: tuple[float, float, float], rng: np.random.Generator
) -> np.ndarray:
    """A random affine map, and then smooth random displacements."""
    amount, smooth, corner = (244 * value for value in c)  # 244 is ImageNet-C's own slip
    n = len(x)
    centre, side = n // 2, n // 3
    # Columns and rows of three points, and where they go.
    old = centre + side * np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    new = old + rng.uniform(-corner, corner, (3, 2))
    ones = np.ones((3, 1))
    back = np.linalg.solve(np.hstack([new, ones]), old)  # reads each pixel at its origin
    column, row = np.meshgrid(np.arange(n), np.arange(n))
    places = np.stack([column, row, np.ones((n, n))], -1) @ back
    x = _read(x, places[..., 1], places[..., 0], mode="mirror")
    right, down = (
        amount * ndimage.gaussian_filter(noise, smooth, mode="reflect", truncate=3)
        for noise in rng.uniform(-1, 1, (2, n, n))
    )
    return _read(x, row + down, column + right, mode="reflect")


def _read(x: np.ndarray, row: np.ndarray, column: np.ndarray, mode: str) -> np.ndarray:
    """Linear interpolation at given places."""
    colours = [
        ndimage.map_coordinates(x[..., i], [row, column], order=1, mode=mode) for i in range(3)
    ]
    return np.stack(colours, -1)


def pixelate(x: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    n, few = len(x), int(len(x) * share)
    image = _image(x).resize((few, few), Image.Resampling.BOX)
    return np.asarray(image.resize((n, n), Image.Resampling.BOX)) / 255


def jpeg_compression(x: np.ndarray, quality: int, rng: np.random.Generator) -> np.ndarray:
    file = io.BytesIO()
    _image(x).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)) / 255


def _image(x: np.ndarray) -> Image.Image:
    return Image.fromarray(np.round(255 * x).astype(np.uint8))


CORRUPTIONS: dict[str, tuple[Callable[..., np.ndarray], tuple[Any, ...]]] = {
    "gaussian_noise": (gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (shot_noise, (60, 25, 12, 5, 3)),
    "impulse_noise": (impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus_blur": (blurs.defocus_blur, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
    "glass_blur": (
        blurs.glass_blur,
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    ),
    "motion_blur": (blurs.motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "zoom_blur": (
        blurs.zoom_blur,
        tuple(
            np.arange(1, *end)
            for end in ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))
        ),
    ),
    "snow": (
        weather.snow,
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "frost": (weather.frost, ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))),
    "fog": (weather.fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
    "brightness": (weather.brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "elastic_transform": (
        elastic_transform,
        ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
    ),
    "pixelate": (pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": (jpeg_compression, (25, 18, 15, 10, 7)),
}
