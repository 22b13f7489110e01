"""Lists of images, crops, and the loader of `examples.papers`."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from papers_images import write_domainnet
from PIL import Image

from examples.papers import images, lists
from examples.papers.loader import Loader

MEAN, STD = (0.5964, 0.5712, 0.5336), (0.3228, 0.3165, 0.3374)
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONWARNINGS": "error"}
COUNT, BATCH = 22, 4  # 5 batches, and 2 images left


@pytest.fixture(scope="module")
def listed(tmp_path_factory) -> list[lists.Image]:
    """Images whose label is their place in the list, so that a batch shows which it has."""
    root = tmp_path_factory.mktemp("domainnet")
    write_domainnet(root, "real", "real_train_split.txt", list(range(COUNT)))
    return lists.domainnet(root, "real", "train")


def make(listed, training=True, batch=BATCH, **options) -> Loader:
    return Loader(listed, batch, size=16, mean=MEAN, std=STD, training=training, **options)


def same(received, expected):
    assert len(received) == len(expected)
    for a, b in zip(received, expected, strict=True):
        assert a.keys() == b.keys()
        for name in b:
            np.testing.assert_array_equal(a[name], b[name])


def joined(parts):
    """Batches of all processes, put together."""
    return [
        {name: np.concatenate([x[name] for x in rows]) for name in rows[0]}
        for rows in zip(*parts, strict=True)
    ]


# Lists


def test_a_split_list_gives_paths_and_labels_in_order(tmp_path):
    names = {
        ("train", 10): "real_train_10_percent_split.txt",
        ("train", 100): "real_train_split.txt",
        ("validation", 100): "real_val_100_percent_split.txt",
        ("test", 100): "real_test.txt",
    }
    for i, ((split, percent), name) in enumerate(names.items()):
        labels = [3, 1, 37 + i]
        lines = write_domainnet(tmp_path, "real", name, labels)
        received = lists.domainnet(tmp_path, "real", split, percent)
        assert [label for _, label in received] == labels
        assert [path for path, _ in received] == [f"{tmp_path}/{x.split()[0]}" for x in lines]


def test_paths_of_a_list_may_have_spaces(tmp_path):
    (tmp_path / "real_test.txt").write_text("a b/c d.jpg 4\n")
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b/c d.jpg").touch()
    assert lists.domainnet(tmp_path, "real", "test") == [(f"{tmp_path}/a b/c d.jpg", 4)]


def test_a_missing_list_of_a_share_is_not_replaced_by_the_list_of_all(tmp_path):
    write_domainnet(tmp_path, "real", "real_train_split.txt", [0, 1])
    with pytest.raises(ValueError, match="no list real_train_10_percent_split"):
        lists.domainnet(tmp_path, "real", "train", 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"no list sketch_train_100_percent_split.txt or sketch_train_split.txt: put"),
        ("", "is empty"),
        ("sketch/a/1.jpg 3\nsketch/a/2.jpg\n", r"line 2: 'sketch/a/2.jpg' is not an image and its"),
        ("sketch/a/1.jpg -1\n", "line 1"),
        ("sketch/a/1.jpg 3\n", r"sketch/a/1.jpg is missing, .* unpack the domain 'sketch'"),
    ],
)
def test_a_list_that_cannot_be_used_is_an_error(tmp_path, text, message):
    if text is not None:
        (tmp_path / "sketch_train_split.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        lists.domainnet(tmp_path, "sketch", "train")


def test_an_unknown_split_is_an_error(tmp_path):
    with pytest.raises(ValueError, match='`split` is \'val\': use "train", "validation" or "test"'):
        lists.domainnet(tmp_path, "real", "val")


def folder(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def relative(root, received):
    return [(str(Path(path).relative_to(root)), label) for path, label in received]


def test_a_folder_of_classes_is_labelled_in_alphabetical_order(tmp_path):
    names = [f"n01/{i}.jpg" for i in (5, 2, 8, 1, 9, 3)]
    root = folder(tmp_path, "n02/b.JPEG", "n02/more/a.png", *names, "n02/notes.txt", ".git/x.jpg")
    expected = [(f"n01/{i}.jpg", 0) for i in (1, 2, 3, 5, 8, 9)]
    expected += [("n02/b.JPEG", 1), ("n02/more/a.png", 1)]
    assert relative(root, lists.image_folder(root)) == expected


def test_a_subset_keeps_the_labels_of_all_classes(tmp_path):
    whole = folder(tmp_path / "imagenet", *(f"n{i:02}/0.JPEG" for i in range(12)))
    subset = folder(tmp_path / "imagenet_r", "n03/0.jpg", "n11/0.jpg")
    received = lists.image_folder(subset, lists.class_names(whole))
    assert relative(subset, received) == [("n03/0.jpg", 3), ("n11/0.jpg", 11)]
    other = folder(tmp_path / "other", "n03/0.jpg", "bird/0.jpg")
    with pytest.raises(ValueError, match=r"bird in .* are not among the 12 classes"):
        lists.image_folder(other, lists.class_names(whole))


def test_folders_named_by_numbers_have_them_as_labels(tmp_path):
    root = folder(tmp_path, "0/a.jpeg", "2/a.jpeg", "10/a.jpeg")
    expected = [("0/a.jpeg", 0), ("10/a.jpeg", 10), ("2/a.jpeg", 2)]
    assert relative(root, lists.image_folder(root)) == expected
    assert lists.image_folder(root, [f"n{i}" for i in range(11)]) == lists.image_folder(root)
    with pytest.raises(ValueError, match=r"10 in .* are not among the 10 classes"):
        lists.image_folder(root, [f"n{i}" for i in range(10)])


def test_a_folder_without_classes_or_images_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="missing is no folder"):
        lists.image_folder(tmp_path / "missing")
    with pytest.raises(ValueError, match="sort its images into a folder for each class"):
        lists.image_folder(folder(tmp_path / "flat", "a.jpg"))
    with pytest.raises(ValueError, match="n01 has no images"):
        lists.image_folder(folder(tmp_path / "empty", "n01/a.txt"))


# Reading and crops

RED = (200, 40, 90)


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


# Batches


def test_pixels_are_normalized(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (9, 9), RED).save(tmp_path / "a/0.png")
    (batch,) = make(lists.image_folder(tmp_path), training=False, batch=1)
    assert batch["image"].shape == (1, 16, 16, 3)
    assert [batch[x].dtype for x in ("image", "label", "mask")] == [np.float32, np.int32, bool]
    expected = (np.array(RED) / 255 - MEAN) / STD
    # Two operations in float32 on numbers up to 255, divided by 0.3 * 255: 255 * 2^-24 / 77.
    np.testing.assert_allclose(batch["image"][0, 5, 5], expected, atol=4e-7)


def test_an_epoch_has_every_image_at_most_once_and_leaves_out_less_than_a_batch(listed):
    loader = make(listed, epochs=3)
    assert loader.steps_per_epoch == COUNT // BATCH
    labels = np.array([x["label"] for x in loader]).reshape(3, -1)
    assert labels.shape[1] == 20
    for epoch in labels:
        assert len(set(epoch)) == 20
    missing = [tuple(set(range(COUNT)) - set(epoch)) for epoch in labels]
    assert len(set(missing)) > 1
    assert not (labels[0] == labels[1]).all()


def test_batches_are_a_function_of_the_seed(listed):
    first = list(make(listed, epochs=2, seed=5))
    same(list(make(listed, epochs=2, seed=5)), first)
    other = list(make(listed, epochs=2, seed=6))
    assert any((a["label"] != b["label"]).any() for a, b in zip(first, other, strict=True))
    # Seed 6's first epoch is not seed 5's second.
    assert any((a["label"] != b["label"]).any() for a, b in zip(first[5:], other, strict=False))


def test_an_image_has_another_crop_in_each_epoch(listed):
    pixels = [{}, {}]
    for i, batch in enumerate(make(listed, epochs=2)):
        for label, image in zip(batch["label"], batch["image"], strict=True):
            pixels[i // 5][int(label)] = image
    shared = pixels[0].keys() & pixels[1].keys()
    assert len(shared) >= 18
    assert all((pixels[0][x] != pixels[1][x]).any() for x in shared)


def test_training_has_no_end_by_default(listed):
    batches = iter(make(listed))
    assert len([next(batches) for _ in range(12)]) == 12
    batches.close()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batches_of_one(listed, training, processes):
    options = {"training": training, "epochs": 2 if training else None}
    whole = list(make(listed, **options))
    parts = [
        list(make(listed, process=i, processes=processes, **options)) for i in range(processes)
    ]
    assert all(len(x["image"]) == BATCH // processes for x in parts[0])
    same(joined(parts), whole)


def test_evaluation_counts_every_image_once_in_order(listed):
    loader = make(listed, training=False, batch=8)
    for _ in range(2):  # again from the start
        batches = list(loader)
        assert len(batches) == loader.steps_per_epoch == 3
        mask = np.concatenate([x["mask"] for x in batches])
        labels = np.concatenate([x["label"] for x in batches])
        assert labels[mask].tolist() == list(range(COUNT))
        assert mask.tolist() == [True] * COUNT + [False] * 2
        assert not batches[-1]["image"][~batches[-1]["mask"]].any()
    even = make(listed[:16], training=False, batch=8)
    assert [x["mask"].all() for x in even] == [True, True]


def test_the_last_process_may_have_nothing_but_rows_to_ignore(listed):
    parts = [make(listed[:5], training=False, batch=8, process=i, processes=2) for i in range(2)]
    (first,), (second,) = parts
    assert first["mask"].sum() == 4
    assert second["mask"].tolist() == [True, False, False, False]
    (last,) = make(listed[:3], training=False, batch=8, process=1, processes=2)
    assert not last["mask"].any()


# Resuming


@pytest.mark.parametrize("stop", [0, 3, 5, 7])
@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (4, 2)])
def test_a_resumed_run_is_equal_to_an_uninterrupted_one(listed, stop, before, after):
    whole = list(make(listed, epochs=2))
    first = [make(listed, epochs=2, process=i, processes=before) for i in range(before)]
    iterators = [iter(x) for x in first]
    received = joined([[next(x) for _ in range(stop)] for x in iterators])
    for iterator in iterators:
        iterator.close()
    state = json.loads(json.dumps(first[-1].state()))
    assert all(x.state() == state for x in first)  # any process may save it
    second = [make(listed, epochs=2, process=i, processes=after) for i in range(after)]
    for loader in second:
        loader.restore(state)
    same(received + joined([list(x) for x in second]), whole)


def test_a_loop_that_is_left_goes_on_after_its_last_batch(listed):
    loader, received = make(listed, epochs=2), []
    while len(received) < 10:
        for batch in loader:
            received.append(batch)
            if len(received) % 3 == 0:
                break
    same(received, list(make(listed, epochs=2)))
    assert list(loader) == []


def test_another_list_seed_or_batch_is_refused(listed):
    state = make(listed).state()
    for name, loader in {
        "images": make(listed[:-1]),
        "seed": make(listed, seed=1),
        "batch": make(listed, batch=2),
    }.items():
        with pytest.raises(
            ValueError, match=f"`{name}` is .* Use the same `{name}`, or start anew"
        ):
            loader.restore(state)
    relabelled = [*listed[:-1], lists.Image(listed[-1].path, 0)]
    with pytest.raises(ValueError, match="`images`"):
        make(relabelled).restore(state)


def test_images_may_be_in_another_folder_after_a_restart(listed, tmp_path):
    shutil.copytree(Path(listed[0].path).parents[2], tmp_path / "moved")
    moved = make(lists.domainnet(tmp_path / "moved", "real", "train"), epochs=1)
    moved.restore(make(listed).state())
    same(list(moved), list(make(listed, epochs=1)))


# Images that cannot be read


@pytest.fixture(scope="module")
def broken(listed, tmp_path_factory):
    """A copy of the list, some of whose images are broken, and by path why."""
    root = tmp_path_factory.mktemp("broken") / "domainnet"
    shutil.copytree(Path(listed[0].path).parents[2], root)
    copied = lists.domainnet(root, "real", "train")
    files = [Path(path) for path, _ in copied]
    data = files[1].read_bytes()
    files[1].write_bytes(data[:-100])
    files[4].write_text("no image")
    files[6].write_bytes(b"")
    files[9].unlink()
    Image.new("1", (20000, 20000)).save(files[12], "PNG")  # 50 kB, and 400 million pixels
    Image.new("I;16", (5, 5)).save(files[15], "PNG")
    reasons = {
        1: "truncated",
        4: "cannot identify",
        6: "cannot identify",
        9: "No such file",
        12: "exceeds limit of 178956970 pixels",
        15: "16 bits per channel",
    }
    return copied, {str(files[i]): reason for i, reason in reasons.items()}


@pytest.mark.parametrize("training", [True, False])
def test_images_that_cannot_be_read_are_skipped_and_named(broken, training):
    images, reasons = broken
    loader = make(images, training=training, batch=11, on_error="skip", epochs=1)
    batches = list(loader)
    assert loader.skipped.keys() == reasons.keys()
    for path, reason in reasons.items():
        assert reason in loader.skipped[path]
    good = sorted(label for x in batches for label in x["label"][x["mask"]])
    assert good == [i for i, (path, _) in enumerate(images) if path not in reasons]
    for batch in batches:
        assert batch["image"][batch["mask"]].any((1, 2, 3)).all()
        assert not batch["image"][~batch["mask"]].any()
        assert not batch["label"][~batch["mask"]].any()


def test_other_images_are_the_same_whether_or_not_some_are_skipped(listed, broken):
    images, _ = broken
    whole = list(make(listed, epochs=1))
    for a, b in zip(make(images, on_error="skip", epochs=1), whole, strict=True):
        np.testing.assert_array_equal(a["image"][a["mask"]], b["image"][a["mask"]])


def test_an_image_that_cannot_be_read_is_fatal_by_default(broken):
    images, _ = broken
    loader = make(images, training=False, batch=11)
    message = r"000001.jpg cannot be read, because .*truncated.*\(3 more .*`on_error=.skip"
    with pytest.raises(ValueError, match=message):
        list(loader)
    assert loader.state()["step"] == 0


def test_an_image_that_would_become_huge_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    assert images.evaluation_crop(Image.new("RGB", (4, 20)), 28).shape == (28, 28, 3)
    with pytest.raises(ValueError, match="too long: 4 x 400 pixels"):
        images.evaluation_crop(Image.new("RGB", (4, 400)), 28)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"batch": 5, "processes": 2},
            "`batch` is 5, and 2 processes share it: use a multiple of 2",
        ),
        ({"batch": 0}, "`batch` is 0"),
        ({"batch": 23}, "there are 22 images for batches of 23"),
        ({"process": 2, "processes": 2}, "`process` is 2: use 0 to 1"),
        ({"on_error": "ignore"}, '`on_error` is \'ignore\': use "fatal" or "skip"'),
        ({"corruption": ("fog", 3)}, "`corruption` is for evaluation"),
        ({"corruption": ("smog", 3), "training": False}, "no corruption is called 'smog'"),
        ({"interpolation": "nearest"}, "`interpolation` is 'nearest': use bilinear or bicubic"),
    ],
)
def test_wrong_options_are_errors(listed, options, message):
    with pytest.raises(ValueError, match=message):
        make(listed, **options)


def test_no_images_are_an_error():
    with pytest.raises(ValueError, match="there are 0 images"):
        make([], training=False)


# Workers


@pytest.mark.slow
def test_workers_change_nothing(broken):
    images, reasons = broken
    whole = list(make(images, epochs=2, on_error="skip"))
    loader = make(images, epochs=2, on_error="skip", workers=2)
    batches = iter(loader)
    received = [next(batches) for _ in range(4)]
    batches.close()
    assert multiprocessing.active_children() == []
    second = make(images, epochs=2, on_error="skip", workers=1)
    second.restore(loader.state())
    same(received + list(second), whole)
    assert loader.skipped.keys() | second.skipped.keys() == reasons.keys()
    with pytest.raises(ValueError, match=r"000001\.jpg cannot be read"):
        list(make(images, training=False, workers=1))
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_training_with_workers_has_no_end_by_default(listed):
    batches = iter(make(listed, workers=1))
    assert len([next(batches) for _ in range(12)]) == 12
    batches.close()


PROGRAM = """
import hashlib, json, multiprocessing, sys
from pathlib import Path
from examples.papers import lists
from examples.papers.loader import Loader
if __name__ == "__main__":
    root, state, workers = sys.argv[1:]
    images = lists.domainnet(Path(root), "real", "train")
    loader = Loader(images, 4, size=16, mean=(0.5,) * 3, std=(0.3,) * 3, training=True, epochs=20,
                    workers=int(workers))
    if state:
        loader.restore(json.loads(state))
    for batch in loader:
        digest = hashlib.sha256(batch["image"].tobytes() + batch["label"].tobytes()).hexdigest()
        children = [child.pid for child in multiprocessing.active_children()]
        print(json.dumps([digest, loader.state(), children]), flush=True)
"""


def runs(process):
    """Whether a process runs. One that has ended and was not waited for has no command."""
    command = Path(f"/proc/{process}/cmdline")
    return command.exists() and command.read_bytes() != b""


@pytest.mark.slow
def test_a_killed_program_goes_on_as_if_it_had_not_been(listed, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    root = Path(listed[0].path).parents[2]

    def start(state, workers):
        command = [sys.executable, str(program), str(root), state, workers]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)

    with start("", "0") as uninterrupted:
        assert uninterrupted.stdout is not None
        expected = [json.loads(line)[0] for line in uninterrupted.stdout]
    with start("", "2") as killed:
        assert killed.stdout is not None
        lines = [json.loads(killed.stdout.readline()) for _ in range(13)]
        killed.kill()
    *_, (_, state, children) = lines
    assert len(children) == 2
    with start(json.dumps(state), "0") as resumed:
        assert resumed.stdout is not None
        rest = [json.loads(line)[0] for line in resumed.stdout]
    assert len(expected) == 20 * 5
    assert [digest for digest, *_ in lines] + rest == expected
    deadline = time.monotonic() + 60
    while any(map(runs, children)):
        assert time.monotonic() < deadline, "workers of the killed program still run"
        time.sleep(0.1)
