"""Batches of images, each a function of the seed and its step; `grain` reads them ahead.

The order of an epoch is a permutation of all images, drawn from the seed and the epoch. Each
process has one slice of the rows of each batch. The crop of an image is drawn from the seed, the
epoch and the place of the image in the list. So a checkpoint stores one number, the step, and a
resumed run is equal to an uninterrupted one with any number of processes and of workers.
"""

import dataclasses
import functools
import hashlib
import multiprocessing
import os
import threading
import zlib
from collections.abc import Generator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from examples.papers import corruptions
from examples.papers import images as transforms
from examples.papers.lists import Image


class Loader:
    """Batches of one process: dicts of

    - `image`, `[batch / processes, size, size, 3]`, float32, `(pixel / 255 - mean) / std`,
    - `label`, `[batch / processes]`, int32,
    - `mask`, `[batch / processes]`, bool: False at rows to ignore. Their images and labels are 0.

    In training every epoch has a new order, and the images that do not fill its last batch are left
    out of that epoch: fewer than `batch`, and others in each epoch. (The published DomainNet loader
    makes a smaller batch of them, and so one step more.) In evaluation the last batch is
    filled up with rows to ignore, so every image counts once.

    Attributes:
        steps_per_epoch: batches of an epoch, the same for all processes.
        skipped: by path, why an image could not be read; images of this process only. Their rows
            have `mask` False.
    """

    def __init__(
        self,
        images: Sequence[Image],
        batch: int,
        *,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        training: bool,
        seed: int = 0,
        process: int = 0,
        processes: int = 1,
        workers: int = 0,
        on_error: str = "fatal",
        epochs: int | None = None,
        interpolation: str = "bilinear",
        corruption: tuple[str, int] | None = None,
    ):
        """
        Args:
            images: from `lists`.
            batch: images in a batch of all processes together.
            size: height and width.
            mean: of each colour, from 0 to 1.
            std: of each colour.
            training: random crops in random order; else the centres in the order of the list.
            seed: of the order and of the crops.
            process: number of this process, from 0.
            processes: how many share a batch. Process `i` has the `i`th slice of its rows.
            workers: processes that read ahead. 0: threads of this process do. Each worker has up to
                three batches in shared memory, 154 MB for 256 images of 224 pixels. (Docker's
                default of 64 MB is too little: `docker run --shm-size`.)
            on_error: how to treat an image that cannot be read: "fatal" or "skip".
            epochs: default: without end in training, 1 in evaluation.
            interpolation: "bilinear" or "bicubic".
            corruption: name and severity of one of ImageNet-C's corruptions, such as ("fog", 3).
                Evaluation only. Each image has its own, drawn from `seed` and its name.

        Raises:
            ValueError: an argument is not as above, or there are fewer images than `batch` in
                training.
        """
        if corruption is not None:
            corruptions.check(*corruption, size)
            if training:
                raise ValueError("`corruption` is for evaluation: use `training=False`.")
        if batch < 1 or batch % processes:
            raise ValueError(
                f"`batch` is {batch}, and {processes} processes share it: use a multiple of "
                f"{processes}."
            )
        if not 0 <= process < processes:
            raise ValueError(f"`process` is {process}: use 0 to {processes - 1}.")
        if on_error not in ("fatal", "skip"):
            raise ValueError(f'`on_error` is {on_error!r}: use "fatal" or "skip".')
        if interpolation not in transforms.INTERPOLATION:
            known = " or ".join(transforms.INTERPOLATION)
            raise ValueError(f"`interpolation` is {interpolation!r}: use {known}.")
        if len(images) < (batch if training else 1):
            raise ValueError(
                f"there are {len(images)} images for batches of {batch}: give more images, or a "
                "smaller `batch`."
            )
        whole, rest = divmod(len(images), batch)
        self.steps_per_epoch = whole if training else whole + bool(rest)
        self.skipped: dict[str, str] = {}
        self._training, self._workers, self._on_error = training, workers, on_error
        epochs = 1 if epochs is None and not training else epochs
        self._end = 2**62 if epochs is None else epochs * self.steps_per_epoch
        self._step = 0
        self._identity = {"images": _digest(images), "seed": seed, "batch": batch}
        self._batches = _Batches(
            paths=[os.fspath(path) for path, _ in images],
            labels=np.array([label for _, label in images], np.int32),
            batch=batch,
            rows=range(process * batch // processes, (process + 1) * batch // processes),
            steps_per_epoch=self.steps_per_epoch,
            size=size,
            shift=255 * np.asarray(mean, np.float32),
            scale=255 * np.asarray(std, np.float32),
            training=training,
            seed=seed,
            interpolation=interpolation,
            corruption=corruption,
        )

    def __iter__(self) -> Generator[dict[str, np.ndarray], None, None]:
        """The next batches. In training they follow the last one that was delivered or restored;
        in evaluation they start with the first image. `close()` ends the workers.

        Raises:
            ValueError: an image cannot be read, and `on_error="fatal"`.
        """
        if not self._training:
            self._step = 0
        batches = iter(self._dataset())
        try:
            for batch, failures in batches:
                self.skipped.update(failures)
                if failures and self._on_error == "fatal":
                    (path, reason), *more = failures.items()
                    others = f" ({len(more)} more in the same batch)" if more else ""
                    raise ValueError(
                        f"{path} cannot be read, because {reason}{others}: repair it, take it off "
                        'the list, or use `on_error="skip"`.'
                    )
                self._step += 1
                yield batch
        finally:
            batches.close()

    def _dataset(self) -> Any:
        """Grain's dataset of the batches from the next one on."""
        threads = min(16, os.cpu_count() or 1) if self._workers == 0 else 1
        ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        steps = grain.MapDataset.range(self._step, self._end)
        batches = steps.map(self._batches).to_iter_dataset(ahead)
        if self._workers == 0:
            return batches
        if not flags.FLAGS.is_parsed():  # grain's workers read flags, which only absl.app parses
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=self._workers)
        return batches.mp_prefetch(options, worker_init_fn=_end_with_parent)

    def state(self) -> dict[str, Any]:
        """The position after the last batch that was delivered, as JSON, for `restore`."""
        return {"step": self._step, **self._identity}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where another loader was, of any number of processes and workers.

        Raises:
            ValueError: that loader had other images, another seed or another batch.
        """
        for name, value in self._identity.items():
            if state[name] != value:
                raise ValueError(
                    f"the checkpoint's `{name}` is {state[name]}, and this run's {value}: the "
                    f"order of images depends on it. Use the same `{name}`, or start anew."
                )
        self._step = state["step"]


def _digest(images: Sequence[Image]) -> str:
    """Hash of a list of images, wherever their common folder is."""
    paths = [os.fspath(path) for path, _ in images]
    folder = os.path.commonpath({os.path.dirname(path) for path in paths})
    lines = (
        f"{path[len(folder) :]} {label}" for path, (_, label) in zip(paths, images, strict=True)
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _end_with_parent(worker: int, workers: int) -> None:
    """Ends this worker if the process that started it is killed; it would wait for it forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait():
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@dataclasses.dataclass(frozen=True)
class _Batches:
    """Computes the batch of a step, for one process. Workers receive a copy."""

    paths: list[str]
    labels: np.ndarray
    batch: int
    rows: range
    steps_per_epoch: int
    size: int
    shift: np.ndarray
    scale: np.ndarray
    training: bool
    seed: int
    interpolation: str
    corruption: tuple[str, int] | None

    def __call__(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """A batch, and for each of its unreadable images the path and the reason."""
        epoch, step = divmod(step, self.steps_per_epoch)
        image = np.zeros((len(self.rows), self.size, self.size, 3), np.float32)
        label = np.zeros(len(self.rows), np.int32)
        mask = np.zeros(len(self.rows), bool)
        failures = {}
        first = step * self.batch
        indices = self._order(epoch)[first + self.rows.start : first + self.rows.stop]
        for row, index in enumerate(indices):
            try:
                pixels = self._crop(epoch, int(index))
            except Exception as error:  # Pillow's decoders raise errors of many types
                failures[self.paths[index]] = str(error) or type(error).__name__
                continue
            if self.corruption is not None:
                pixels = self._corrupted(pixels, self.paths[index], *self.corruption)
            np.subtract(pixels, self.shift, out=image[row])
            image[row] /= self.scale
            label[row], mask[row] = self.labels[index], True
        return {"image": image, "label": label, "mask": mask}, failures

    def _order(self, epoch: int) -> np.ndarray:
        """Indices of all images, in the order of an epoch."""
        return _permutation(len(self.paths), self.seed, epoch if self.training else None)

    def _crop(self, epoch: int, index: int) -> np.ndarray:
        image = transforms.read(self.paths[index])
        if not self.training:
            return transforms.evaluation_crop(image, self.size, self.interpolation)
        # The last number is 0 for the order of the epoch.
        rng = np.random.default_rng([self.seed, epoch, 1 + index])
        return transforms.training_crop(image, self.size, rng, self.interpolation)

    def _corrupted(self, pixels: np.ndarray, path: str, kind: str, severity: int) -> np.ndarray:
        # By name of class and image, so that neither the list nor its folder changes the result.
        name = "/".join(path.split(os.sep)[-2:])
        rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        return corruptions.corrupt(pixels, kind, severity, rng)


@functools.lru_cache(maxsize=2)  # batches that are read ahead may be of the next epoch
def _permutation(size: int, seed: int, epoch: int | None) -> np.ndarray:
    if epoch is None:
        return np.arange(size)
    return np.random.default_rng([seed, epoch, 0]).permutation(size)
