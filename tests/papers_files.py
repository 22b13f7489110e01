"""Small data sets and weights in the formats of the published ones."""

from pathlib import Path

import numpy as np
import papers_numpy
from PIL import Image
from safetensors.numpy import save_file

DOMAINS = ("real", "sketch", "painting", "infograph", "clipart")
CLASSES = 4
SIDE = 32  # of the crops; images are larger
RESNET = {"width": 8, "depths": (1, 1, 1, 1), "size": SIDE}
CLIP_RESNET = {**RESNET, "heads": 4, "features": 16}
VIT = {"width": 16, "depth": 1, "heads": 2, "features": 8, "patch": 8, "size": SIDE}


def write_image(path: Path, label: int, seed: int, shift: int = 0) -> None:
    """A noisy JPEG whose colour gives its class. `shift` makes the colours of a domain."""
    rng = np.random.default_rng([seed, label, shift])
    colour = 255 * np.array([label & 1, label >> 1 & 1, 0]) * 0.8 + 10 * shift
    shape = tuple(rng.integers(36, 60, size=2))
    pixels = colour + rng.normal(scale=30, size=(*shape, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def write_domainnet(root: Path, train: int = 88, rest: int = 8) -> None:
    """Five domains with lists; Real also has lists for training and validation."""
    for shift, domain in enumerate(DOMAINS):
        splits = {"test": rest}
        if domain == "real":
            splits = {"train_10_percent_split": train, "val_10_percent_split": rest, "test": rest}
        for part, (split, count) in enumerate(splits.items()):
            lines = []
            for i in range(count):
                label = i % CLASSES
                name = f"{domain}/class{label}/{domain}_{part}_{i:06}.jpg"
                write_image(root / name, label, seed=1000 * part + i, shift=shift)
                lines.append(f"{name} {label}\n")
            (root / f"{domain}_{split}.txt").write_text("".join(lines))


def write_imagenet(root: Path, train: int = 88, rest: int = 8) -> None:
    """Trees as ImageNet's; A has two of the four classes, and V2 names folders by numbers."""
    names = [f"n0000000{i}" for i in range(CLASSES)]
    trees = {
        "train": (names, train),
        "val": (names, rest),
        "imagenet-v2": (["0", "1", "2", "3"], rest),
        "imagenet-a": (names[1:3], rest),
        "imagenet-r": (names[1:3], rest),
        "imagenet-sketch": (names, rest),
    }
    for shift, (tree, (folders, count)) in enumerate(trees.items()):
        for i in range(count):
            folder = folders[i % len(folders)]
            label = int(folder[-1])
            write_image(root / tree / folder / f"{i}.JPEG", label, seed=i, shift=shift)


def write_weights(path: Path, model: str) -> None:
    """Random weights of a tiny model, as the published file has them."""
    if model == "clip-vit-b16":
        shape = {name: VIT[name] for name in ("width", "depth", "patch", "size", "features")}
        tensors = papers_numpy.random_vit(0, **shape)
    else:
        clip = model == "clip-resnet50"
        tensors = papers_numpy.random_resnet(0, 8, RESNET["depths"], clip, SIDE, 16)
    if model != "resnet50":
        tensors = {f"visual.{name}": x for name, x in tensors.items()}
    save_file(tensors, path)
