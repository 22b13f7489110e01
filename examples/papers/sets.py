"""Which images train, which learn radii, and which are in the report."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from examples.papers import corruptions, lists
from examples.papers.lists import Image
from examples.papers.published import SETS
from examples.papers.recipes import Recipe
from examples.pod.settings import Refused

DOMAINNET_CLASSES = 345

# From the published programs, for every backbone.
PREPROCESSING: dict[str, dict[str, Any]] = {
    "domainnet": {
        "mean": (0.5964, 0.5712, 0.5336),
        "std": (0.3228, 0.3165, 0.3374),
        "interpolation": "bilinear",
    },
    "imagenet": {
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "interpolation": "bicubic",
    },
}


class Test(NamedTuple):
    """A data set of the report.

    Attributes:
        images: its images.
        among: its labels, if it has a subset of the classes.
        corruption: name and severity of a corruption of all images.
    """

    images: list[Image]
    among: list[int] | None = None
    corruption: tuple[str, int] | None = None


class Sets(NamedTuple):
    """The images of a run.

    Attributes:
        classes: number of classes.
        train: images to fine-tune on.
        held_out: images that TPGM learns its radii on; empty for other methods.
        tests: data sets of the report, by name.
        missing: data sets of the published tables that are not there, and why.
    """

    classes: int
    train: list[Image]
    held_out: list[Image]
    tests: dict[str, Test]
    missing: list[str]


def find(recipe: Recipe, root: Path) -> Sets:
    """The images of a run.

    Raises:
        Refused: an image list or a folder is missing or wrong.
    """
    try:
        return {"domainnet": _domainnet, "imagenet": _imagenet}[recipe.experiment](recipe, root)
    except (OSError, ValueError) as error:
        raise Refused(f"`--data {root}` cannot be used: {error}") from error


def corrupted(sets: Sets, name: str, severity: int, size: int) -> Sets:
    """The sets, and a data set of the report with each of ImageNet-C's corruptions.

    Args:
        sets: from `find`.
        name: of the data set to corrupt.
        severity: 1 to 5.
        size: pixels of an image's side.
    """
    tests, missing = dict(sets.tests), list(sets.missing)
    for kind in corruptions.CORRUPTIONS:
        try:
            corruptions.check(kind, severity, size)
        except ValueError as error:  # frost needs photographs
            missing.append(f"{name}, {kind}: {error}")
            continue
        tests[f"{name}, {kind}"] = tests[name]._replace(corruption=(kind, severity))
    return sets._replace(tests=tests, missing=missing)


def _domainnet(recipe: Recipe, root: Path) -> Sets:
    """Fine-tuned on Real, tested on all domains."""
    train = lists.domainnet(root, "real", "train", recipe.percent)
    validation = lists.domainnet(root, "real", "validation", recipe.percent)
    tests, missing = {"real, validation": Test(validation)}, []
    for domain in SETS["domainnet"]:
        try:
            tests[domain] = Test(lists.domainnet(root, domain, "test"))
        except ValueError as error:
            missing.append(f"{domain}: {error}")
    train, held_out = _divide(recipe, train, validation)
    every = [train, held_out, *(test.images for test in tests.values())]
    highest = max(image.label for images in every for image in images)
    if highest >= DOMAINNET_CLASSES:
        raise ValueError(f"a list has the label {highest}, and DomainNet has 345 classes from 0.")
    return Sets(DOMAINNET_CLASSES, train, held_out, tests, missing)


def _imagenet(recipe: Recipe, root: Path) -> Sets:
    """Fine-tuned on `train`, tested on `val` and on the folders of the shifted data sets."""
    names = lists.class_names(root / "train")
    train = lists.image_folder(root / "train", names)
    tests, missing = {"imagenet": Test(lists.image_folder(root / "val", names))}, []
    for name in SETS["imagenet"][1:]:
        try:
            images = lists.image_folder(root / name, names)
        except ValueError as error:
            missing.append(f"{name}: {error}")
            continue
        labels = sorted({image.label for image in images})
        # A and R have 200 of the 1000 classes, and are scored among them.
        tests[name] = Test(images, labels if len(labels) < len(names) else None)
    train, held_out = _divide(recipe, train, tests["imagenet"].images)
    return Sets(len(names), train, held_out, tests, missing)


def _divide(
    recipe: Recipe, train: list[Image], validation: list[Image]
) -> tuple[list[Image], list[Image]]:
    """Images to train on and, for TPGM, images to learn radii on.

    The published programs learn radii on validation images, which choose the epoch and on ImageNet
    are in the report. Here a tenth of the training images is held out instead.
    """
    if recipe.method != "tpgm":
        return train, []
    if recipe.as_published:
        return train, validation
    order = np.random.default_rng(recipe.seed).permutation(len(train))
    out = set(order[: max(len(train) // 10, 1)].tolist())
    kept = [image for i, image in enumerate(train) if i not in out]
    return kept, [train[i] for i in sorted(out)]
