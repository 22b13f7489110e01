"""Reading images, and the papers' crops. Like torchvision's, which the papers used.

Colours become RGB by Pillow's conversion, whatever the file's mode. (The published DomainNet loader
makes images grey if they have four channels, CMYK or RGBA, or a palette.) As in torchvision, the
orientation in EXIF is ignored.
"""

import math

import numpy as np
from PIL import Image

INTERPOLATION = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of RandomResizedCrop


def read(path: str) -> Image.Image:
    """An image in RGB.

    Raises:
        Exception: of many types, because Pillow's decoders do. Also for a truncated file, and for
            one with more than 179 million pixels; from 89 million, Pillow warns.
    """
    with Image.open(path) as image:
        if image.mode.startswith("I;16"):  # Pillow would cut off values above 255
            raise ValueError("it has 16 bits per channel")
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow warns otherwise
        return image.convert("RGB")


def training_crop(
    image: Image.Image, size: int, rng: np.random.Generator, interpolation: str = "bilinear"
) -> np.ndarray:
    """A random part of the image, resized and half of the time mirrored: `[size, size, 3]`, uint8.

    The part has 8 to 100 % of the area, and a width of 3/4 to 4/3 of its height.
    """
    left, top, width, height = _random_part(image.width, image.height, rng)
    # Not `resize(box=...)`, which would blend pixels from outside the part into its borders.
    part = image.crop((left, top, left + width, top + height))
    part = part.resize((size, size), INTERPOLATION[interpolation])
    pixels = np.asarray(part)
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def _random_part(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, width and height of a random part."""
    for _ in range(10):
        area = width * height * rng.uniform(*SCALE)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    # A long image: the largest part in its centre whose ratio is allowed.
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    w, h = max(w, 1), max(h, 1)
    return (width - w) // 2, (height - h) // 2, w, h


def evaluation_crop(image: Image.Image, size: int, interpolation: str = "bilinear") -> np.ndarray:
    """The centre of the image, whose shorter side becomes 8/7 of `size`: `[size, size, 3]`, uint8.

    For `size=224` that is `Resize(256)`, `CenterCrop(224)`.
    """
    side, shorter = size * 8 // 7, min(image.size)
    width, height = (side * x // shorter for x in image.size)
    if width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise ValueError(f"it is too long: {image.width} x {image.height} pixels")
    image = image.resize((width, height), INTERPOLATION[interpolation])
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))
