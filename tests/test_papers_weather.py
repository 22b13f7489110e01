"""The weather of `examples.papers`, against ImageNet-C's definition."""

import colorsys
import itertools

import numpy as np
import pytest
from papers_corrupting import corrupt, each_severity, enlarged, given, spots, whole, write_frost
from PIL import Image

from examples.papers import corruptions, weather


@pytest.fixture(scope="module")
def frost(tmp_path_factory):
    return write_frost(tmp_path_factory.mktemp("frost"))


@pytest.fixture(autouse=True)
def photographs(frost, monkeypatch):
    monkeypatch.setattr(weather, "frost_photographs", lambda: frost)
    return frost


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
