"""Printed digits in many variations, to pre-train the network on."""

import numpy as np
from scipy import ndimage

from examples.digits.glyphs import (
    DIGITS,
    PIXELS_PER_PIXEL,
    PRETRAINING_FONTS,
    SIZE,
    STYLES,
    glyphs,
)
from examples.digits.photos import PRETRAINING_PHOTOS, backgrounds
from examples.digits.warps import affine, elastic, warp


def printed(
    rng: np.random.Generator,
    labels: np.ndarray,
    fonts: tuple[str, ...],
    styles: tuple[str, ...],
    strength: float = 1.0,
    characters: str = DIGITS,
) -> np.ndarray:
    """Ink of warped characters, `[n, 16, 16]` in [0, 1].

    Args:
        rng: the source of randomness.
        labels: `[n]`, indices into `characters`.
        fonts: fonts to choose from at random.
        styles: some of `STYLES`, to choose from at random.
        strength: of the warps; 0 leaves the characters upright and centred.
        characters: the characters that labels index. Default: the digits.
    """
    n = len(labels)
    drawn = glyphs(fonts, styles, characters)
    font, style = rng.integers(len(fonts), size=n), rng.integers(len(styles), size=n)
    index = np.ravel_multi_index((font, style, labels), drawn.shape[:3])
    grid = affine(
        n,
        rotation=strength * rng.normal(0, 10, n),
        scale=1.2 * np.exp(strength * rng.normal(0, 0.1, n)),
        shear=strength * rng.normal(0, 0.12, n),
        stretch=np.exp(strength * rng.normal(0, 0.15, n)),
        translation=strength * rng.normal(0, 1, (n, 2)),
    )
    grid = grid + elastic(rng, n, 0.4 * strength, 3.0)
    return warp(drawn.reshape(-1, SIZE, SIZE), grid, index=index, zoom=PIXELS_PER_PIXEL)


def printed_set(
    rng: np.random.Generator, count: int, characters: str = DIGITS
) -> tuple[np.ndarray, np.ndarray]:
    """Images `[count, 16, 16]`, uint8 grey, and labels `[count]`, int32.

    Half are dark on light or light on dark. Half are on photographs, and half of these are the
    absolute difference of photograph and ink.
    """
    labels = rng.integers(len(characters), size=count).astype(np.int32)
    ink = printed(rng, labels, PRETRAINING_FONTS, STYLES, characters=characters)
    return on_backgrounds(rng, ink), labels


def on_backgrounds(rng: np.random.Generator, ink: np.ndarray) -> np.ndarray:
    """Images of the ink: half on plain paper, half on photographs."""
    count = len(ink)
    paper = rng.random((count, 1, 1), np.float32)
    # A contrast of at least a half, towards the side that has room for it.
    contrast = rng.uniform(0.5, 1, (count, 1, 1)).astype(np.float32)
    pen = np.where(paper < 0.5, paper + contrast, paper - contrast).clip(0, 1)
    photo = backgrounds(rng, count, PRETRAINING_PHOTOS)
    kind = rng.choice(3, size=(count, 1, 1), p=(0.5, 0.25, 0.25))
    background = np.where(kind == 0, paper, photo)
    images = np.where(kind == 2, np.abs(photo - ink), background + ink * (pen - background))

    blurred = ndimage.gaussian_filter(images, (0, 1, 1))
    images = images + rng.random((count, 1, 1), np.float32) * (blurred - images)
    noise = rng.standard_normal(images.shape, np.float32)
    images = images + 0.06 * rng.random((count, 1, 1), np.float32) * noise
    return np.round(images.clip(0, 1) * 255).astype(np.uint8)
