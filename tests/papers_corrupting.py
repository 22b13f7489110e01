"""Images and draws for the tests of the corruptions of `examples.papers`."""

import math
from typing import Any

import numpy as np
import pytest
from papers_images import write_image
from PIL import Image

from examples.papers import corruptions, weather

SEVERITIES = range(1, 6)
each_severity = pytest.mark.parametrize("severity", SEVERITIES)


class Draws:
    """A generator whose draws are given, in order; it keeps the arguments of each call."""

    def __init__(self, draws):
        self.draws, self.asked = list(draws), []

    def _next(self, *asked):
        self.asked.append(asked)
        return self.draws.pop(0)

    uniform = standard_normal = integers = random = _next


def given(*draws) -> Any:
    return Draws(draws)


def write_frost(folder):
    """Random images in place of the photographs of frost. They have the smallest one's size."""
    for i, name in enumerate(weather.FROST):
        write_image(folder / name, 560, weather.FROST_HEIGHT, seed=100 + i)
    return [str(folder / name) for name in weather.FROST]


def spots(size=64, seed=0):
    """A smooth image with dark and light colours."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC))


def corrupt(pixels, kind, severity, seed=0):
    return corruptions.corrupt(pixels, kind, severity, np.random.default_rng(seed))


def whole(result):
    """Makes integers of floats from 0 to 255 as ImageNet-C does: cut off."""
    return np.floor(np.clip(result, 0, 255))


def enlarged(x, zoom):
    """Linear interpolation of the centre, whose first and last pixels stay, cut to the size."""
    n = len(x)
    few = math.ceil(n / zoom)
    many = round(few * zoom)
    first = (n - few) // 2
    place = np.arange(many) * (few - 1) / (many - 1)
    low = np.minimum(place.astype(int), few - 2)
    part = x[first : first + few, first : first + few]
    for axis in (0, 1):
        share = (place - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        part = (1 - share) * np.take(part, low, axis) + share * np.take(part, low + 1, axis)
    cut = (many - n) // 2
    return part[cut : cut + n, cut : cut + n]
