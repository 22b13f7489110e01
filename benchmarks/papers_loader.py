"""Images per second of the papers' loader, from JPEG files as large as ImageNet's.

The files are 500 x 375 pixels and 110 kB on average, and stay in the cache of the file system: the
disk is not measured. Bound by decoding and resizing, so by cores.

    python -m benchmarks.papers_loader --workers 0 1 2
"""

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.recording import machine
from examples.papers import lists
from examples.papers.loader import Loader


def write_images(root: Path, count: int = 256) -> list[lists.Image]:
    """JPEG files with edges and grain, so that they take as much to decode as photographs."""
    rng = np.random.default_rng(0)
    (root / "class").mkdir(parents=True)
    for i in range(count):
        spots = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(spots).resize((500, 375)), float)
        grain = rng.normal(0, 15, (375, 500, 3))
        pixels = np.clip(smooth + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / "class" / f"{i}.jpg", quality=90)
    return lists.image_folder(root)


def images_per_second(
    images: Sequence[lists.Image],
    *,
    workers: int,
    training: bool,
    batch: int = 64,
    size: int = 224,
    rounds: int = 4,
) -> float:
    """Images per second, once the loader has begun to deliver.

    Args:
        images: read again and again.
        workers: processes; 0 for threads.
        training: random crops, else the evaluation's.
        batch: images in a batch.
        size: height and width.
        rounds: batches that each thread or worker reads while time is taken.
    """
    ahead = workers or min(16, os.cpu_count() or 1)
    steps = (rounds + 1) * ahead
    images = list(itertools.islice(itertools.cycle(images), steps * batch))
    loader = Loader(
        images,
        batch,
        size=size,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        training=training,
        workers=workers,
    )
    batches = iter(loader)
    for _ in range(ahead):
        next(batches)
    start = time.perf_counter()
    for _ in range(rounds * ahead):
        next(batches)
    seconds = time.perf_counter() - start
    batches.close()
    return rounds * ahead * batch / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=Path, help="a folder of classes; default: made-up images")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        given = arguments.images
        images = lists.image_folder(given) if given else write_images(Path(folder, "images"))
        kilobytes = np.mean([os.path.getsize(path) for path, _ in images[:1000]]) / 1000
        print(f"{machine()}; {kilobytes:.0f} kB for each image")
        for training, workers in itertools.product((True, False), arguments.workers):
            speed = images_per_second(images, workers=workers, training=training)
            kind = "training" if training else "evaluation"
            print(f"{kind}, {workers} workers: {speed:.0f} images/s", flush=True)


if __name__ == "__main__":
    main()
