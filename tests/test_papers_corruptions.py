"""The corruptions of `examples.papers`: properties of all types, noise, digital, in the loader."""

import io
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from papers_corrupting import SEVERITIES, corrupt, each_severity, given, spots, whole, write_frost
from papers_images import write_domainnet, write_image
from PIL import Image

from examples.papers import corruptions, lists, weather
from examples.papers.loader import Loader

NOISE = ("gaussian_noise", "shot_noise", "impulse_noise")
BLUR = ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur")
WEATHER = ("snow", "frost", "fog", "brightness")
DIGITAL = ("contrast", "elastic_transform", "pixelate", "jpeg_compression")
NAMES = NOISE + BLUR + WEATHER + DIGITAL


@pytest.fixture(scope="module")
def frost(tmp_path_factory):
    return write_frost(tmp_path_factory.mktemp("frost"))


@pytest.fixture(autouse=True)
def photographs(frost, monkeypatch):
    monkeypatch.setattr(weather, "frost_photographs", lambda: frost)
    return frost


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
