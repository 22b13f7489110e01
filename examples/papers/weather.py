"""ImageNet-C's weather: snow, frost, fog and brightness. See `corruptions`.

`x` is `[n, n, 3]` from 0 to 1; results may be outside. `c` are the constants of the severity.
"""

import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from examples.papers.blurs import moved, zoomed

# ImageNet-C draws from the first five of its six photographs of frost.
FROST = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
FROST_HEIGHT = 315  # of the smallest


def snow(x: np.ndarray, c: tuple[Any, ...], rng: np.random.Generator) -> np.ndarray:
    """Enlarged noise above a threshold, falling, on a lighter image."""
    mean, std, zoom, threshold, radius, sigma, share = c
    flakes = zoomed(mean + std * rng.standard_normal(x.shape[:2]), zoom)
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)
    flakes = moved(np.floor(255 * flakes) / 255, radius, sigma, angle=rng.uniform(-135, -45))
    flakes = np.round(255 * flakes)[..., None] / 255
    grey = x @ np.array([0.299, 0.587, 0.114])
    x = share * x + (1 - share) * np.maximum(x, 1.5 * grey[..., None] + 0.5)
    return x + flakes + np.rot90(flakes, 2)


def frost(x: np.ndarray, c: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """The image and a random part of a photograph of frost, added."""
    n = len(x)
    paths = frost_photographs()
    with Image.open(paths[rng.integers(len(paths))]) as file:
        photograph = file.convert("RGB")
    left, top = (int(rng.integers(side - n)) for side in photograph.size)
    part = photograph.crop((left, top, left + n, top + n))
    return c[0] * x + c[1] * (np.asarray(part) / 255)


@functools.cache
def frost_photographs() -> list[str]:
    """Paths of ImageNet-C's photographs of frost, from the package `imagecorruptions`.

    Raises:
        ValueError: it is not installed.
    """
    spec = importlib.util.find_spec("imagecorruptions")
    if spec is None or spec.origin is None:
        raise ValueError(
            '"frost" adds photographs, which only the package imagecorruptions has: '
            "pip install --no-deps imagecorruptions."
        )
    return [str(Path(spec.origin).parent / "frost" / name) for name in FROST]


def fog(x: np.ndarray, c: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """A random landscape, added."""
    amount, decay = c
    n, brightest = len(x), x.max()
    landscape = _plasma(1 << (n - 1).bit_length(), decay, rng)[:n, :n, None]
    return (x + amount * landscape) * brightest / (brightest + amount)


def _plasma(size: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """Heights from 0 to 1 by the diamond-square algorithm, on a torus."""
    heights = np.zeros((size, size))
    step, amplitude = size, 100.0

    def filled(corners):
        noise = rng.uniform(-amplitude, amplitude, corners.shape)
        return corners / 4 + amplitude * noise

    while step >= 2:
        half = step // 2
        old = heights[::step, ::step]
        pairs = old + np.roll(old, -1, 0)
        heights[half::step, half::step] = filled(pairs + np.roll(pairs, -1, 1))
        new = heights[half::step, half::step]
        across = new + np.roll(new, 1, 0) + old + np.roll(old, -1, 1)
        heights[::step, half::step] = filled(across)
        down = new + np.roll(new, 1, 1) + old + np.roll(old, -1, 0)
        heights[half::step, ::step] = filled(down)
        step, amplitude = half, amplitude / decay
    heights -= heights.min()
    return heights / heights.max()


def brightness(x: np.ndarray, added: float, rng: np.random.Generator) -> np.ndarray:
    """`added` to the value V of HSV, the largest of the three colours. H and S stay."""
    value = x.max(-1, keepdims=True)
    lighter = np.minimum(value + added, 1)
    return np.where(value > 0, x * (lighter / np.maximum(value, 1 / 255)), lighter)
