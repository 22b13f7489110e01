"""The data that all examples here are pre-trained, fine-tuned and tested on.

The digits of the demo, `examples.digits`: printed digits in many variations, handwritten digits,
and thirteen shifted sets, for which printed digits prepare better than handwritten ones.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from examples.digits import data
from examples.digits.data import Split
from examples.digits.printed import printed_set
from examples.digits.training import shuffled

BATCH = 64


class Task(NamedTuple):
    """Images `[n, 16, 16]` in [0, 1] with labels in 0 ... 9, and how long to train.

    Attributes:
        printed: to pre-train on.
        train: handwritten, to fine-tune on.
        held_out: handwritten, to learn radii on.
        test: handwritten, to report.
        shifted: thirteen other distributions, to report.
        pretraining_steps: batches of `printed`.
        steps: batches of `train`.
    """

    printed: Split
    train: Split
    held_out: Split
    test: Split
    shifted: tuple[Split, ...]
    pretraining_steps: int
    steps: int


def load(arguments: Sequence[str] | None, program: str | None) -> Task:
    """The task, in the size that the command line selects.

    Args:
        arguments: command-line arguments. `None`: `sys.argv`.
        program: the docstring of the program, for `--help`.
    """
    parser = argparse.ArgumentParser(
        description=program, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fast", action="store_true", help="a rehearsal, in seconds")
    fast = parser.parse_args(arguments).fast
    count, pretraining_steps, steps = (4000, 200, 100) if fast else (20_000, 3000, 500)
    images, labels = printed_set(data.generator(0, "rendering"), count)
    digits = data.load(0)
    return Task(
        printed=Split(images.astype(np.float32) / 255, labels),
        train=digits.train,
        held_out=digits.radius,
        test=digits.test,
        shifted=tuple(digits.shifted.values()),
        pretraining_steps=pretraining_steps,
        steps=steps,
    )


def batches(split: Split, steps: int, title: str, size: int = BATCH) -> Iterator[Split]:
    """Shuffled batches, every image once in each epoch, behind a progress bar."""
    order = shuffled(data.generator(0, title), len(split.labels), steps, size)
    for rows in tqdm(order, desc=title, unit="step"):
        yield Split(split.images[rows], split.labels[rows])


def accuracies(
    predict: Callable[[Any, np.ndarray], Any], models: Mapping[str, Any], task: Task
) -> dict[str, tuple[float, float]]:
    """Accuracy of each model in per cent on the handwritten test digits, and mean on shifted sets.

    Args:
        predict: maps a model and images to logits.
        models: models for `predict`, by name.
        task: the data to test on.
    """

    def per_cent(model: Any, split: Split) -> float:
        answers = np.argmax(predict(model, split.images), axis=-1)
        return 100 * float(np.mean(answers == split.labels))

    return {
        name: (
            per_cent(model, task.test),
            float(np.mean([per_cent(model, split) for split in task.shifted])),
        )
        for name, model in models.items()
    }


def report(rows: Mapping[str, tuple[float, float]], radii: Mapping[str, Any]) -> None:
    """Prints accuracies by model, and radii by parameter."""
    print(f"{'accuracy, per cent':24}  handwritten  13 shifted sets")
    for name, (test, shifted) in rows.items():
        print(f"{name:24}  {test:11.1f}  {shifted:15.1f}")
    print("radii:", ", ".join(f"{name} {radius:.3g}" for name, radius in radii.items()))
