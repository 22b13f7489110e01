"""Reading and cropping of the images of `examples.papers`."""

import numpy as np
import pytest
from papers_loading import RED
from PIL import Image

from examples.papers import images


def test_files_of_every_mode_become_rgb(tmp_path):
    colour = Image.new("RGB", (8, 6), RED)
    palette = colour.copy()
    palette.putpixel((0, 0), (1, 2, 3))
    palette = palette.quantize(2)  # Pillow warns if such a file is not converted to RGBA first
    options = {"palette.png": {"transparency": bytes([10, 128])}, "cmyk.jpg": {"quality": 100}}
    grey = Image.new("L", (8, 6), 77)
    written = {
        "rgb.png": (colour, RED),
        "rgba.png": (Image.new("RGBA", (8, 6), (*RED, 9)), RED),
        "palette.png": (palette, RED),
        "grey.jpg": (grey, (77, 77, 77)),
        "grey_alpha.png": (Image.new("LA", (8, 6), (77, 5)), (77, 77, 77)),
        "bits.png": (Image.new("1", (8, 6), 1), (255, 255, 255)),
        # White less cyan 55, magenta 215, yellow 165.
        "cmyk.jpg": (Image.new("CMYK", (8, 6), (55, 215, 165, 0)), RED),
    }
    for name, (image, expected) in written.items():
        image.save(tmp_path / name, **options.get(name, {}))
        received = images.read(str(tmp_path / name))
        assert received.mode == "RGB"
        # JPEG rounds its coefficients: by 1 at this quality.
        error = np.abs(np.asarray(received, int)[1:] - expected).max()
        assert error <= (1 if name.endswith("jpg") else 0), name


def test_the_orientation_in_exif_is_ignored_as_in_torchvision(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (8, 6)).save(tmp_path / "turned.jpg", exif=exif)
    assert images.read(str(tmp_path / "turned.jpg")).size == (8, 6)


def resample(pixels, size, kernel, support):
    """Pillow's definition: a kernel that is as wide as a new pixel, first along rows.

    For each new pixel, the mean of old ones weighted by the kernel at the distance of centres. Old
    pixels count if their centre is inside the kernel.
    """
    for axis, new in ((1, size[0]), (0, size[1])):
        old = pixels.shape[axis]
        scale = max(old / new, 1)
        centres = (np.arange(new) + 0.5) * old / new
        distance = (np.arange(old) + 0.5 - centres[:, None]) / scale
        weights = np.where(np.abs(distance) < support, kernel(np.abs(distance)), 0)
        weights /= weights.sum(1, keepdims=True)
        pixels = np.moveaxis(np.tensordot(weights, np.moveaxis(pixels, axis, 0), 1), 0, axis)
        pixels = np.clip(pixels, 0, 255)
    return pixels


def triangle(x):
    return 1 - x


def cubic(x):  # a = -1/2
    return np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * (x**3 - 5 * x**2 + 8 * x - 4))


@pytest.mark.parametrize("size", [(61, 40), (40, 61), (20, 33), (17, 17), (7, 9), (100, 31)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_is_the_centre_of_the_resized_image(size, interpolation):
    width, height = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    received = images.evaluation_crop(Image.fromarray(pixels), 28, interpolation)
    assert received.shape == (28, 28, 3)
    # The shorter side becomes 32, and the longer one is cut off to a whole number.
    new = (32, int(32 * height / width)) if width < height else (int(32 * width / height), 32)
    kernel, support = (triangle, 1) if interpolation == "bilinear" else (cubic, 2)
    expected = resample(pixels.astype(float), new, kernel, support)
    left, top = (round((x - 28) / 2) for x in new)
    expected = expected[top : top + 28, left : left + 28]
    # Pillow rounds to integers after each axis: by 1/2, and the second axis multiplies the first
    # error by the sum of absolute weights, at most 1 (bilinear) and 1.3 (bicubic). Its weights have
    # 22 bits, far less than 0.02.
    assert np.abs(received - expected).max() <= (1.02 if interpolation == "bilinear" else 1.17)


def test_a_random_part_has_the_published_sizes_and_half_are_mirrored():
    width, height, size, count = 200, 160, 16, 400
    column, row = np.meshgrid(np.arange(width), np.arange(height))
    ramp = Image.fromarray(np.stack([column, row, row], -1).astype(np.uint8))
    rng = np.random.default_rng(0)
    areas, mirrored = [], 0
    for _ in range(count):
        pixels = images.training_crop(ramp, size, rng).astype(float)
        # Without the borders, where the kernel is cut off, a ramp stays one.
        across = (pixels[8, -3, 0] - pixels[8, 2, 0]) / (size - 5) * size
        down = (pixels[-3, 8, 1] - pixels[2, 8, 1]) / (size - 5) * size
        mirrored += across < 0
        # Differences of integers are off by 1 at most, here 16/11 pixels, of at least 43.
        assert 0.7 < abs(across) / down < 1.4
        areas.append(abs(across) * down / (width * height))
        middle = np.array([pixels[8, 7:9, 0].mean(), pixels[7:9, 8, 1].mean()])
        half = np.array([abs(across), down]) / 2
        assert (middle - half >= -2).all()
        assert (middle + half <= [width + 2, height + 2]).all()
    assert 0.07 < min(areas) < 0.12
    assert 0.9 < max(areas) < 1.04
    # Parts of up to 0.6 always fit, whatever their ratio, and are uniform between 0.08 and 0.6. The
    # standard deviation of the mean of 250 is 0.15 / 16.
    small = [area for area in areas if area < 0.6]
    assert len(small) > 200
    assert abs(np.mean(small) - 0.34) < 4 * 0.0095
    assert abs(mirrored - count / 2) < 4 * np.sqrt(count / 4)  # four standard deviations


def test_the_part_is_cut_out_before_it_is_resized():
    # A white square that fits: no black from around it may be blended in.
    pixels = np.zeros((1000, 10, 3), np.uint8)
    # The image is too long for any random part, so it is the centre: 10 x 10 / (3/4) = 13.
    pixels[493:506] = 255
    received = images.training_crop(Image.fromarray(pixels), 8, np.random.default_rng(0))
    assert received.min() == 255


def test_a_crop_depends_on_the_generator_alone():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    first, again, other = (
        images.training_crop(image, 8, np.random.default_rng(i)) for i in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
