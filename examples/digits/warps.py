"""Affine and elastic warps of many small images at once.

A warp is a grid `[n, 2, 16, 16]`: for each pixel of the new image, the row and column in the old
one to read, in pixels of the 16x16 image, from its centre.
"""

import numpy as np
from scipy import ndimage

SIZE = 16


def affine(
    count: int,
    *,
    rotation: np.ndarray | float = 0.0,
    scale: np.ndarray | float = 1.0,
    shear: np.ndarray | float = 0.0,
    stretch: np.ndarray | float = 1.0,
    translation: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Grids, `[count, 2, 16, 16]`. Every argument is one number, or one for each image.

    Args:
        count: how many images.
        rotation: counter-clockwise, in degrees.
        scale: above 1 enlarges.
        shear: columns moved for each row, to the right at the top.
        stretch: width over height.
        translation: `[count, 2]`, rows down and columns right, in pixels.
    """
    angle, scale, shear, stretch = (
        np.broadcast_to(x, (count,)) for x in (np.deg2rad(rotation), scale, shear, stretch)
    )
    translation = np.broadcast_to(translation, (count, 2))
    c, s = np.cos(angle), np.sin(angle)
    # Acts on (row, column), with rows counted downwards: rotates content by `angle`, shears it by
    # `shear`, and scales it.
    turn = np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2)
    zero, one = np.zeros(count), np.ones(count)
    lean = np.stack([np.stack([one, zero], -1), np.stack([-shear, one], -1)], -2)
    size = np.stack([scale / np.sqrt(stretch), scale * np.sqrt(stretch)], -1)
    matrix = turn @ lean * size[:, None, :]
    centre = (SIZE - 1) / 2
    points = np.mgrid[:SIZE, :SIZE].reshape(2, -1) - centre
    source = np.linalg.solve(matrix, points - translation[:, :, None])
    return source.reshape(count, 2, SIZE, SIZE)


def elastic(rng: np.random.Generator, count: int, amplitude: float, smooth: float) -> np.ndarray:
    """Smooth random displacements to add to a grid, `[count, 2, 16, 16]`, in pixels.

    Args:
        rng: the source of randomness.
        count: how many images.
        amplitude: standard deviation of a displacement, in pixels.
        smooth: how far neighbours move together, in pixels.
    """
    noise = rng.standard_normal((count, 2, SIZE, SIZE), np.float32)
    noise = ndimage.gaussian_filter(noise, (0, 0, smooth, smooth), mode="wrap")
    return noise * (amplitude / noise.std())


def warp(
    images: np.ndarray, grid: np.ndarray, *, index: np.ndarray | None = None, zoom: int = 1
) -> np.ndarray:
    """Images read at the points of `grid`, `[count, 16, 16]`; 0 outside.

    Args:
        images: `[n, height, width]`.
        grid: `[count, 2, 16, 16]`, from `affine`.
        index: `[count]`, the image that each grid reads. Default: the one at the same position.
        zoom: pixels of `images` for one of the grid.
    """
    index = np.arange(len(grid)) if index is None else index
    centre = (np.asarray(images.shape[1:]) - 1) / 2
    points = grid * zoom + centre[:, None, None]
    layer = np.broadcast_to(index[:, None, None], points[:, 0].shape)
    # Linear interpolation. Along the first axis points are whole numbers, so it is exact.
    coordinates = np.stack([layer, points[:, 0], points[:, 1]])
    return ndimage.map_coordinates(np.asarray(images, np.float32), coordinates, order=1)
