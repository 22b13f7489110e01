"""The blurs of `examples.papers`, against ImageNet-C's definition."""

import itertools
import math

import numpy as np
import pytest
from papers_corrupting import SEVERITIES, corrupt, each_severity, enlarged, given, spots

from examples.papers import blurs, corruptions


def point(size=41):
    x = np.zeros((size, size, 3))
    x[size // 2, size // 2] = 1
    return x


@each_severity
def test_defocus_blur_spreads_a_point_over_a_disk(severity):
    radius, sigma = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    constants = corruptions.CORRUPTIONS["defocus_blur"][1][severity - 1]
    received = blurs.defocus_blur(point(), constants, np.random.default_rng(0))[..., 1]
    half = max(8, radius)
    inside = [(i, j) for i in range(-half, half + 1) for j in range(-half, half + 1)]
    inside = [(i, j) for i, j in inside if i * i + j * j <= radius * radius]
    near = range(-1, 2) if radius <= 8 else range(-2, 3)
    weights = {k: math.exp(-k * k / (2 * sigma * sigma)) for k in near}

    def disk(i, j):  # outside of the kernel, OpenCV reflects at its last pixel
        i, j = (2 * half - abs(k) if abs(k) > half else k for k in (i, j))
        return (abs(i), abs(j)) in inside

    for i, j in itertools.product(range(-half - 1, half + 2), repeat=2):
        expected = sum(weights[a] * weights[b] * disk(i + a, j + b) for a in near for b in near)
        expected /= len(inside) * sum(weights.values()) ** 2
        if max(abs(i), abs(j)) > half:
            expected = 0
        # The Fourier transform of SciPy rounds numbers of up to 1 to 1e-16.
        assert abs(received[20 + i, 20 + j] - expected) < 1e-14


def test_defocus_blur_reflects_at_the_border():
    x = np.zeros((20, 20, 3))
    x[:, 1] = 1
    received = blurs.defocus_blur(x, (3, 0.1), np.random.default_rng(0))
    # A disk of radius 3 has 29 pixels, 5 of them in each column beside its centre. Column -1 is a
    # reflection of column 1, at the centre of column 0.
    np.testing.assert_allclose(received[10, 0], 10 / 29, atol=1e-12)


def test_blurs_leave_an_even_image_as_it_is():
    even = np.full((32, 32, 3), 90, np.uint8)
    for kind in ("glass_blur", "motion_blur", "zoom_blur", "elastic_transform"):
        for severity in SEVERITIES:
            # Sums of weights may be below 1 by rounding; ImageNet-C cuts off.
            assert np.isin(corrupt(even, kind, severity), (89, 90)).all(), kind
    for severity in (1, 2, 3):  # then the disk touches its border, and adds up to more than 1
        assert (corrupt(even, "defocus_blur", severity) == 90).all()


def test_glass_blur_copies_one_pixel_after_the_other():
    n, reach, times = 12, 2, 3
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (n, n, 3)) / 255
    sigma = 1e-3  # so narrow that the two blurs change nothing
    received = blurs.glass_blur(x, (sigma, reach, times), np.random.default_rng(1))
    rng, expected = np.random.default_rng(1), np.round(255 * x)
    for _ in range(times):
        side = n - 2 * reach
        draws = rng.integers(-reach, reach, (2, side**2))
        down, right = draws.reshape(2, side, side)
        for i, row in enumerate(range(n - reach, reach, -1)):
            for j, column in enumerate(range(n - reach, reach, -1)):
                expected[row, column] = expected[row + down[i, j], column + right[i, j]]
    # The first blur is cut off to integers, so a value that rounding has put below is one lower.
    assert np.abs(255 * received - expected).max() < 1 + 1e-9
    constants = corruptions.CORRUPTIONS["glass_blur"][1]
    assert constants == ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))


@pytest.mark.parametrize("sigma", [0.7, 1.5])
def test_glass_blur_blurs_before_and_after(sigma):
    # Even columns: copies up or down change nothing. In units of 255, before is cut off.
    line = np.zeros(31)
    line[15] = 255.0
    distance = np.arange(-15, 16)
    near = np.abs(distance) <= int(4 * sigma + 0.5)
    gauss = np.where(near, np.exp(-(distance**2) / (2 * sigma**2)), 0)
    gauss /= gauss.sum()
    once = np.floor(np.convolve(line, gauss, "same") + 1e-9)
    expected = np.convolve(once, gauss, "same")
    x = np.broadcast_to(line[None, :, None] / 255, (31, 31, 3))
    received = blurs.glass_blur(x, (sigma, 1, 0), np.random.default_rng(0))
    np.testing.assert_allclose(255 * received[15, :, 2], expected, atol=1e-9)


@pytest.mark.parametrize(
    ("angle", "step"), [(0, (0, 1)), (90, (1, 0)), (45, (1, 1)), (-45, (-1, 1)), (-90, (-1, 0))]
)
def test_motion_blur_is_half_a_gaussian_along_a_line(angle, step):
    radius, sigma = 4, 3
    received = blurs.moved(point(), radius, sigma, angle)[..., 0]
    weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(2 * radius + 1)]
    expected = np.zeros((41, 41))
    for i, weight in enumerate(weights):
        # Along diagonals, ImageMagick rounds each pixel's place to whole pixels.
        down, right = (round(i * k / math.hypot(*step)) for k in step)
        expected[20 - down, 20 - right] += weight / sum(weights)
    np.testing.assert_allclose(received, expected, atol=1e-15)


@each_severity
def test_motion_blur_has_the_published_width_and_a_random_angle(severity):
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    draws = given(0.0)
    constants = corruptions.CORRUPTIONS["motion_blur"][1][severity - 1]
    received = 255 * blurs.motion_blur(point(101), constants, draws)[50, :51, 0]
    assert draws.asked == [(-45, 45)]
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    expected = np.zeros(51)
    expected[50 - np.arange(2 * radius + 1)] = 255 * weights / weights.sum()
    np.testing.assert_allclose(received, np.round(expected), atol=1e-9)


def test_motion_blur_repeats_the_border():
    x = np.zeros((20, 20, 3))
    x[:, -1] = 1
    received = blurs.moved(x, 4, 3, 0)[3, :, 0]
    assert received[-1] == pytest.approx(1, abs=1e-15)
    assert received[-2] == pytest.approx(1 - 1 / sum(math.exp(-i * i / 18) for i in range(9)))


@each_severity
def test_zoom_blur_is_the_mean_of_enlargements(severity):
    x = spots(40) / 255
    steps = ((11, 0.01), (16, 0.01), (11, 0.02), (13, 0.02), (11, 0.03))[severity - 1]
    # By rounding, `np.arange(1, 1.11, 0.01)` has 1.11, and the other ranges do not have their ends.
    count = steps[0] + (severity == 1)
    expected = (x + sum(enlarged(x, 1 + i * steps[1]) for i in range(count))) / (count + 1)
    constants = corruptions.CORRUPTIONS["zoom_blur"][1][severity - 1]
    received = blurs.zoom_blur(x, constants, np.random.default_rng(0))
    np.testing.assert_allclose(received, expected, atol=1e-12)
