"""The corruptions of `examples.papers`, against ImageNet-C's definition."""

import colorsys
import io
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from papers_images import write_domainnet, write_image
from PIL import Image

from examples.papers import blurs, corruptions, lists, weather
from examples.papers.loader import Loader

SEVERITIES = range(1, 6)
NOISE = ("gaussian_noise", "shot_noise", "impulse_noise")
BLUR = ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur")
WEATHER = ("snow", "frost", "fog", "brightness")
DIGITAL = ("contrast", "elastic_transform", "pixelate", "jpeg_compression")
NAMES = NOISE + BLUR + WEATHER + DIGITAL
each_severity = pytest.mark.parametrize("severity", SEVERITIES)


class Draws:
    """A generator whose draws are given, in order; it keeps what was asked for."""

    def __init__(self, draws):
        self.draws, self.asked = list(draws), []

    def _next(self, *asked):
        self.asked.append(asked)
        return self.draws.pop(0)

    uniform = standard_normal = integers = random = _next


def given(*draws) -> Any:
    return Draws(draws)


@pytest.fixture(scope="module")
def frost(tmp_path_factory):
    """Made-up photographs of frost, as large as the smallest of the real ones."""
    folder = tmp_path_factory.mktemp("frost")
    for i, name in enumerate(weather.FROST):
        write_image(folder / name, 560, weather.FROST_HEIGHT, seed=100 + i)
    return [str(folder / name) for name in weather.FROST]


@pytest.fixture(autouse=True)
def photographs(frost, monkeypatch):
    monkeypatch.setattr(weather, "frost_photographs", lambda: frost)
    return frost


def spots(size=64, seed=0):
    """A smooth image with dark and light colours."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC))


def corrupt(pixels, kind, severity, seed=0):
    return corruptions.corrupt(pixels, kind, severity, np.random.default_rng(seed))


def whole(result):
    """As ImageNet-C makes integers of floats from 0 to 255: cut off."""
    return np.floor(np.clip(result, 0, 255))


# Every type


def test_there_are_the_fifteen_types_of_imagenet_c():
    assert tuple(corruptions.CORRUPTIONS) == NAMES
    assert all(len(constants) == 5 for _, constants in corruptions.CORRUPTIONS.values())


@pytest.mark.parametrize("kind", NAMES)
def test_results_depend_on_the_generator_alone(kind):
    pixels = spots()
    for severity in SEVERITIES:
        before = pixels.copy()
        received = corrupt(pixels, kind, severity)
        assert received.shape == pixels.shape
        assert received.dtype == np.uint8
        np.testing.assert_array_equal(corrupt(pixels, kind, severity), received)
        np.testing.assert_array_equal(pixels, before)
        assert (received != pixels).any()
    deterministic = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate"}
    deterministic |= {"jpeg_compression"}
    same = (corrupt(pixels, kind, 3, seed=1) == corrupt(pixels, kind, 3)).all()
    assert same == (kind in deterministic)


UNEVEN = {"glass_blur", "snow", "frost", "elastic_transform"}  # as ImageNet-C defines them


@pytest.mark.parametrize("kind", sorted(set(NAMES) - UNEVEN))
def test_each_severity_changes_an_image_more(kind):
    pixels = spots(224)
    changes = [np.abs(corrupt(pixels, kind, s) - pixels.astype(float)).mean() for s in SEVERITIES]
    assert all(a < b for a, b in itertools.pairwise(changes)), changes


def test_unknown_types_and_severities_are_errors():
    with pytest.raises(ValueError, match=r"called 'mist': use gaussian_noise, shot_noise"):
        corrupt(spots(), "mist", 1)
    for severity in (0, 6):
        with pytest.raises(ValueError, match=f"severity is {severity}: use 1 to 5"):
            corrupt(spots(), "fog", severity)


# Noise. The expected shares have a standard deviation of at most 1/2 / sqrt(150,000) = 0.0013.
MANY, FOUR_SIGMA = (224, 224, 3), 4 * 0.0013


@each_severity
def test_gaussian_noise_has_the_published_standard_deviation(severity):
    std = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    received = corrupt(np.full(MANY, 128, np.uint8), "gaussian_noise", severity)
    for level in (32, 96, 128, 160, 224):
        z = (level - 128) / 255 / std
        expected = (1 + math.erf(z / math.sqrt(2))) / 2  # the share that is below
        assert abs((received < level).mean() - expected) < FOUR_SIGMA


@each_severity
def test_shot_noise_counts_the_published_number_of_photons(severity):
    photons = (60, 25, 12, 5, 3)[severity - 1]
    received = corrupt(np.full(MANY, 51, np.uint8), "shot_noise", severity)
    mean = 0.2 * photons
    for count in range(photons):
        expected = math.exp(-mean) * mean**count / math.factorial(count)
        share = (received == int(255 * count / photons + 1e-6)).mean()
        assert abs(share - expected) < FOUR_SIGMA


@each_severity
def test_impulse_noise_makes_a_share_black_or_white(severity):
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    received = corrupt(np.full(MANY, 100, np.uint8), "impulse_noise", severity)
    for value, expected in ((0, share / 2), (255, share / 2), (100, 1 - share)):
        assert abs((received == value).mean() - expected) < FOUR_SIGMA
    # Colours are changed apart from each other.
    equal = (received[..., 0] == received[..., 1]).mean()
    assert abs(equal - (1 - share) ** 2 - share**2 / 2) < math.sqrt(3) * FOUR_SIGMA


# Blurs


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


# Weather


@each_severity
def test_snow_lightens_an_image_and_adds_flakes_and_their_half_turn(severity):
    c = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[severity - 1]
    assert corruptions.CORRUPTIONS["snow"][1][severity - 1] == c
    n = 48
    x = spots(n) / 255
    noise = np.random.default_rng(0).standard_normal((n, n))
    draws = given(noise, -90.0)
    received = weather.snow(x, c, draws)
    assert draws.asked == [((n, n),), (-135, -45)]
    flakes = enlarged((c[0] + c[1] * noise)[..., None], c[2])[..., 0]
    flakes = np.floor(255 * np.clip(np.where(flakes < c[3], 0, flakes), 0, 1))
    weights = np.exp(-(np.arange(2 * c[4] + 1) ** 2) / (2 * c[5] ** 2))
    weights /= weights.sum()
    # At -90 degrees, each pixel is the mean of those above it.
    rows = np.arange(n)[:, None] - np.arange(2 * c[4] + 1)
    fallen = np.einsum("k,rkc->rc", weights, flakes[np.maximum(rows, 0)])
    fallen = np.round(fallen)[..., None] / 255
    grey = (x * [0.299, 0.587, 0.114]).sum(-1, keepdims=True)
    lighter = c[6] * x + (1 - c[6]) * np.maximum(x, grey * 1.5 + 0.5)
    expected = lighter + fallen + fallen[::-1, ::-1]
    np.testing.assert_allclose(received, expected, atol=1e-12)
    assert (flakes > 0).any()


@each_severity
def test_frost_adds_a_random_part_of_a_random_photograph(severity, photographs):
    c = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[severity - 1]
    pixels = spots()
    for number, left, top in ((0, 0, 0), (3, 400, 200)):
        draws = given(number, left, top)
        received = corruptions.corrupt(pixels, "frost", severity, draws)
        assert draws.asked == [(5,), (560 - 64,), (315 - 64,)]
        photograph = np.asarray(Image.open(photographs[number]).convert("RGB"), float)
        part = photograph[top : top + 64, left : left + 64]
        expected = whole(c[0] * pixels + c[1] * part + 1e-6)
        np.testing.assert_array_equal(received, expected)


def test_frost_needs_photographs_that_are_larger_than_the_image(monkeypatch):
    with pytest.raises(ValueError, match="images have 315 pixels, and a photograph"):
        corrupt(spots(315), "frost", 1)
    monkeypatch.undo()
    weather.frost_photographs.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps imagecorruptions"):
        corrupt(spots(), "frost", 1)


@each_severity
def test_fog_adds_a_landscape_from_0_to_1(severity):
    amount, decay = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))[severity - 1]
    constants = corruptions.CORRUPTIONS["fog"][1][severity - 1]
    assert constants == (amount, decay)
    received = weather.fog(np.full((64, 64, 3), 0.4), constants, np.random.default_rng(0))
    # (x + amount * landscape) * max / (max + amount), where both x and max are 0.4.
    assert received.min() == pytest.approx(0.4 * 0.4 / (0.4 + amount), abs=1e-12)
    assert received.max() == pytest.approx(0.4, abs=1e-12)
    assert (received[..., :1] == received).all()


def test_the_landscape_of_fog_is_made_of_squares_and_diamonds():
    def part(size):
        return np.random.default_rng(size).uniform(-1, 1, (size, size))

    noise = [part(size) for size in (1, 1, 1, 2, 2, 2, 4, 4, 4)]
    draws = given(*noise)
    received = weather.fog(np.full((8, 8, 3), 0.5), (1, 1.6), draws)
    amplitudes = (100, 62.5, 39.0625)
    assert [asked[:2] for asked in draws.asked] == [(-a, a) for a in amplitudes for _ in range(3)]
    heights = np.zeros((8, 8))

    def fill(row, column, neighbours, noise, amplitude):
        mean = sum(heights[(row + i) % 8, (column + j) % 8] for i, j in neighbours) / 4
        heights[row, column] = mean + amplitude * noise

    for level, (step, amplitude) in enumerate(zip((8, 4, 2), amplitudes, strict=True)):
        centres, tops, sides = noise[3 * level : 3 * level + 3]
        half = step // 2
        corners = [(i, j) for i in (-half, half) for j in (-half, half)]
        beside = [(-half, 0), (half, 0), (0, -half), (0, half)]
        cells = list(itertools.product(range(8 // step), repeat=2))
        for i, j in cells:
            fill(i * step + half, j * step + half, corners, centres[i, j], amplitude)
        for i, j in cells:
            fill(i * step, j * step + half, beside, tops[i, j], amplitude)
        for i, j in cells:
            fill(i * step + half, j * step, beside, sides[i, j], amplitude)
    landscape = (heights - heights.min()) / (heights.max() - heights.min())
    expected = (0.5 + landscape) * 0.5 / 1.5
    np.testing.assert_allclose(received[..., 0], expected, atol=1e-12)


@each_severity
def test_brightness_adds_to_the_value_of_hsv(severity):
    pixels = spots(16)
    pixels = np.concatenate([pixels, np.zeros((1, 16, 3), np.uint8)])[1:]  # and black
    added = (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]
    received = corrupt(pixels, "brightness", severity)
    for row, column in itertools.product(range(16), repeat=2):
        h, s, v = colorsys.rgb_to_hsv(*pixels[row, column] / 255)
        expected = np.array(colorsys.hsv_to_rgb(h, s, min(v + added, 1)))
        # Whole numbers may be cut off at either side.
        assert np.abs(received[row, column] - whole(255 * expected + 1e-6)).max() <= 1e-9


# Digital


@each_severity
def test_contrast_moves_colours_towards_their_means(severity):
    pixels = spots()
    share = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    mean = pixels.reshape(-1, 3).mean(0)
    received = corrupt(pixels, "contrast", severity)
    np.testing.assert_array_equal(received, whole(mean + share * (pixels - mean) + 1e-6))


@each_severity
def test_elastic_transform_moves_pixels_by_the_published_amount(severity):
    amount = (2, 2, 0.05, 0.07, 0.12)[severity - 1] * 244
    corner = (0.1, 0.2, 0.02, 0.02, 0.02)[severity - 1] * 244
    n = 32
    x = spots(n) / 255
    constants = corruptions.CORRUPTIONS["elastic_transform"][1][severity - 1]
    still, up = np.zeros((3, 2)), np.zeros((2, n, n))
    np.testing.assert_allclose(
        corruptions.elastic_transform(x, constants, given(still, up)), x, atol=1e-12
    )
    # Points that all move by (right 2, down 3) move the image.
    draws = given(np.array([[2.0, 3.0]] * 3), up)
    received = corruptions.elastic_transform(x, constants, draws)
    np.testing.assert_allclose(received[3:, 2:], x[:-3, :-2], atol=1e-12)
    np.testing.assert_allclose(received[:3, 2:], x[3:0:-1, :-2], atol=1e-12)  # reflected
    assert draws.asked == [(-corner, corner, (3, 2)), (-1, 1, (2, n, n))]
    # Noise of 5 / amount everywhere stays so when it is smoothed: each pixel reads 5 to the right.
    up[0] = 5 / amount
    received = corruptions.elastic_transform(x, constants, given(still, up))
    np.testing.assert_allclose(received[:, :-5], x[:, 5:], atol=1e-10)


def test_elastic_transform_turns_and_smooths():
    n = 30
    x = spots(n) / 255
    # The three points are the corners of a square, but one. Turned by 90 degrees they are ...
    old = 15 + 10 * np.array([[1, 1], [1, -1], [-1, -1]])
    new = 15 + 10 * np.array([[-1, 1], [1, 1], [1, -1]])
    c = (0.05, 0.01, 0.02)
    received = corruptions.elastic_transform(x, c, given(new - old, np.zeros((2, n, n))))
    # ... so what was at (column, row) = (15 + a, 15 + b) is at (15 - b, 15 + a).
    for a, b in ((3, 5), (-7, 2), (0, 0)):
        np.testing.assert_allclose(received[15 + a, 15 - b], x[15 + b, 15 + a], atol=1e-12)
    # A single displacement of 1 becomes a Gaussian one of standard deviation 2.44 pixels.
    noise = np.zeros((2, n, n))
    noise[0, 15, 15] = 1
    ramp = np.broadcast_to(np.arange(n)[None, :, None] / 100, (n, n, 3))
    moved = corruptions.elastic_transform(ramp, c, given(np.zeros((3, 2)), noise)) - ramp
    distance = np.arange(-7, 8)  # cut off at 3 standard deviations
    gauss = np.exp(-(distance**2) / (2 * 2.44**2))
    expected = 12.2 * np.outer(gauss, gauss) / gauss.sum() ** 2 / 100
    np.testing.assert_allclose(moved[8:23, 8:23, 0], expected, atol=1e-12)


@each_severity
def test_pixelate_makes_blocks(severity):
    pixels = spots(60)
    few = int(60 * (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1])
    received = corrupt(pixels, "pixelate", severity)
    small = Image.fromarray(pixels).resize((few, few), Image.Resampling.BOX)
    expected = np.asarray(small.resize((60, 60), Image.Resampling.BOX))
    np.testing.assert_array_equal(received, expected)
    if 60 % few == 0:
        side = 60 // few
        blocks = pixels.reshape(few, side, few, side, 3).mean((1, 3))
        # Pillow rounds after each axis: by 1/2 twice.
        assert np.abs(received[::side, ::side] - blocks).max() <= 1


@each_severity
def test_jpeg_compression_has_the_published_quality(severity):
    pixels = spots()
    file = io.BytesIO()
    quality = (25, 18, 15, 10, 7)[severity - 1]
    Image.fromarray(pixels).save(file, format="JPEG", quality=quality)
    expected = np.asarray(Image.open(file))
    np.testing.assert_array_equal(corrupt(pixels, "jpeg_compression", severity), expected)


# In the loader


def test_the_loader_corrupts_an_image_by_its_name_alone(tmp_path):
    write_domainnet(tmp_path, "real", "real_test.txt", list(range(6)))
    images = lists.domainnet(tmp_path, "real", "test")

    def load(images, corruption, **options):
        options = {"size": 32, "mean": (0, 0, 0), "std": (1, 1, 1), "training": False} | options
        loader = Loader(images, 2, corruption=corruption, **options)
        batches = list(loader)
        labels = np.concatenate([x["label"] for x in batches])
        pixels = np.concatenate([x["image"] for x in batches])
        return {int(a): b for a, b in zip(labels, pixels, strict=True)}

    plain = load(images, None)
    received = load(images, ("impulse_noise", 2))
    for label in range(6):
        changed = (received[label] != plain[label]).mean()
        assert 0.03 < changed < 0.09  # a share of 0.06 of 3072, give or take four deviations
        assert np.isin(received[label][received[label] != plain[label]], (0, 1)).all()
    masks = {tuple(np.flatnonzero(received[x] != plain[x])) for x in range(6)}
    assert len(masks) == 6
    backwards = load(images[::-1], ("impulse_noise", 2))
    part = load(images, ("impulse_noise", 2), process=1, processes=2)
    for label in part:
        np.testing.assert_array_equal(part[label], received[label])
    for label in range(6):
        np.testing.assert_array_equal(backwards[label], received[label])
    twin = tmp_path / "real/twin" / Path(images[0].path).name  # of another class
    write_image(twin, 40, 50, seed=0)
    twins = load([lists.Image(str(twin), 9), images[0]], ("impulse_noise", 2))
    assert (twins[9] != twins[0]).any()
    other = load(images, ("impulse_noise", 2), seed=1)
    assert any((other[x] != received[x]).any() for x in range(6))
