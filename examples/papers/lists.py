"""Which images, with which label: DomainNet's split lists, and folders of one class each.

DomainNet's lists are text files beside the folders of the domains, one image a line:

    real/bottlecap/real_038_000441.jpg 37

| split | name of the list |
|---|---|
| train, 10 % | `real_train_10_percent_split.txt` |
| train, 100 % | `real_train_100_percent_split.txt` or `real_train_split.txt` |
| validation | the same with `val` instead of `train` |
| test | `real_test.txt` |
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_PART = {"train": "train", "validation": "val"}


class Image(NamedTuple):
    """An image's file and the number of its class.

    A `str`, because a million of them take a tenth of the memory of a million `Path`s.
    """

    path: str
    label: int


def domainnet(root: Path, domain: str, split: str, percent: int = 100) -> list[Image]:
    """Images of a list, in its order.

    Args:
        root: folder of the lists, and of the folders "real", "sketch" and so on.
        domain: "real", "sketch", "painting", "infograph", "clipart" or "quickdraw".
        split: "train", "validation" or "test".
        percent: share of the training and validation images. "test" has one list only.

    Raises:
        ValueError: there is no such list, or one of its lines is no image, or its first image is
            not in `root`.
    """
    if split == "test":
        names = [f"{domain}_test.txt"]
    elif split in _PART:
        names = [f"{domain}_{_PART[split]}_{percent}_percent_split.txt"]
        names += [f"{domain}_{_PART[split]}_split.txt"] if percent == 100 else []
    else:
        raise ValueError(f'`split` is {split!r}: use "train", "validation" or "test".')
    found = [Path(root, name) for name in names if Path(root, name).is_file()]
    if not found:
        raise ValueError(
            f"{root} has no list {' or '.join(names)}: put DomainNet's split lists there, beside "
            "the folders of its domains."
        )
    images = []
    for number, line in enumerate(found[0].read_text("utf-8").splitlines(), 1):
        path, _, label = line.rpartition(" ")
        if not (path and label.isdecimal()):
            raise ValueError(
                f"{found[0]}, line {number}: {line!r} is not an image and its label, such as "
                "'real/bottlecap/real_038_000441.jpg 37'."
            )
        images.append(Image(os.path.join(root, path), int(label)))
    if not images:
        raise ValueError(f"{found[0]} is empty: download it again.")
    if not os.path.isfile(images[0].path):
        raise ValueError(
            f"{images[0].path} is missing, the first image of {found[0].name}: unpack the domain "
            f"{domain!r} in {root}."
        )
    return images


def image_folder(root: Path, classes: Sequence[str] | None = None) -> list[Image]:
    """Images of a tree with a folder for each class, sorted by path.

    If the names of all folders are numbers (ImageNetV2), they are the labels, because in the order
    of the alphabet "10" comes before "2".

    Args:
        root: for example `ILSVRC/train`, with the folders `n01440764` and so on.
        classes: names of all classes, in the order of their labels. So a subset of 200 classes
            keeps the labels of the 1000: `image_folder(imagenet_r, class_names(imagenet_train))`.
            Default: the folders' names in order.

    Raises:
        ValueError: there are no such folders, or a folder has no image, or is not in `classes`.
    """
    names = class_names(root)
    if all(name.isdecimal() for name in names):
        labels = {name: int(name) for name in names}
        unknown = [x for x in names if classes is not None and labels[x] >= len(classes)]
    else:
        labels = {name: i for i, name in enumerate(names if classes is None else classes)}
        unknown = [name for name in names if name not in labels]
    if unknown:
        more = f" and {len(unknown) - 3} more folders" if len(unknown) > 3 else ""
        raise ValueError(
            f"{', '.join(unknown[:3])}{more} in {root} are not among the {len(classes or ())} "
            "classes: give the data set that these classes belong to."
        )
    images = []
    for name in names:
        walk = os.walk(os.path.join(root, name), followlinks=True)
        paths = [os.path.join(folder, file) for folder, _, files in walk for file in files]
        paths = sorted(path for path in paths if path.lower().endswith(SUFFIXES))
        if not paths:
            raise ValueError(f"{Path(root, name)} has no images: remove it, or fill it.")
        images += [Image(path, labels[name]) for path in paths]
    return images


def class_names(root: Path) -> list[str]:
    """Names of the folders in `root`, in order: the classes of an ImageNet tree."""
    if not os.path.isdir(root):
        raise ValueError(f"{root} is not a folder: give one that has a folder for each class.")
    with os.scandir(root) as entries:
        names = sorted(x.name for x in entries if x.is_dir() and not x.name.startswith("."))
    if not names:
        raise ValueError(
            f"{root} has no folders: sort its images into a folder for each class first."
        )
    return names
