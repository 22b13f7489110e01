"""ImageNet-C's blurs: defocus, glass, motion and zoom. See `corruptions`.

`x` is `[n, n, 3]` from 0 to 1; results may be outside. `c` are the constants of the severity.
"""

import math

import numpy as np
from scipy import ndimage, signal


def defocus_blur(x: np.ndarray, c: tuple[int, float], rng: np.random.Generator) -> np.ndarray:
    """Convolution with a disk, whose own edge is blurred."""
    radius, sigma = c
    half = max(8, radius)
    row = np.arange(-half, half + 1) ** 2
    disk = (row + row[:, None] <= radius**2).astype(float)
    disk /= disk.sum()
    near = np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
    gauss = np.exp(-(near**2) / (2 * sigma**2))
    for axis in (0, 1):  # where the disk touches the border, its sum becomes larger than 1
        disk = ndimage.correlate1d(disk, gauss / gauss.sum(), axis, mode="mirror")
    padded = np.pad(x, ((half, half), (half, half), (0, 0)), mode="reflect")
    return np.asarray(signal.fftconvolve(padded, disk[..., None], "valid", axes=(0, 1)))


def glass_blur(x: np.ndarray, c: tuple[float, int, int], rng: np.random.Generator) -> np.ndarray:
    """Pixels copied from up to `reach` pixels away, one after the other, between two blurs.

    (The paper says "exchanged"; its program copies, because it assigns views to each other.)
    """
    sigma, reach, times = c
    n = len(x)
    x = np.floor(255 * ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest")) / 255
    places = np.arange(n * n).reshape(n, n)
    to = places[n - reach : reach : -1, n - reach : reach : -1].ravel()
    source = list(range(n * n))
    for _ in range(times):
        down, right = rng.integers(-reach, reach, (2, len(to)))
        for place, other in zip(to.tolist(), (to + n * down + right).tolist(), strict=True):
            source[place] = source[other]
    x = x.reshape(n * n, 3)[source].reshape(n, n, 3)
    return ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest")


def motion_blur(x: np.ndarray, c: tuple[int, float], rng: np.random.Generator) -> np.ndarray:
    return np.round(255 * moved(x, *c, angle=rng.uniform(-45, 45))) / 255


def moved(x: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """ImageMagick's motion blur: half a Gaussian, along a line of whole pixels."""
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    turned = np.deg2rad(angle)
    down, right = (np.ceil(steps * f(turned) - 0.5).astype(int) for f in (np.sin, np.cos))
    far = len(steps)
    padded = np.pad(x, [(far, far)] * 2 + [(0, 0)] * (x.ndim - 2), mode="edge")
    n = len(x)
    parts = (
        w * padded[far + i : far + i + n, far + j : far + j + n]
        for w, i, j in zip(weights / weights.sum(), down, right, strict=True)
    )
    return sum(parts, np.zeros_like(x))


def zoom_blur(x: np.ndarray, zooms: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mean of the image and of its enlargements."""
    return (x + sum(zoomed(x, zoom) for zoom in zooms)) / (len(zooms) + 1)


def zoomed(x: np.ndarray, zoom: float) -> np.ndarray:
    """The centre, enlarged to the size of the whole."""
    n = len(x)
    size = math.ceil(n / zoom)
    first = (n - size) // 2
    part = x[first : first + size, first : first + size]
    large = np.asarray(ndimage.zoom(part, (zoom, zoom) + (1,) * (x.ndim - 2), order=1))
    first = (len(large) - n) // 2
    return large[first : first + n, first : first + n]
