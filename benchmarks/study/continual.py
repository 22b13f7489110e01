"""Continual learning: five tasks of two classes, one after another.

After each task `tpgm_jax.set_anchor` moves the anchor to the current parameters, so that each task
stays near the previous one. The ten-way head is trained throughout. Accuracy is measured among all
ten classes, and among the two of the task (`told`). Forgetting is the mean, over all tasks but the
last, of the accuracy right after the task minus the final one.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import tpgm_jax
from benchmarks.study.methods import METHODS
from benchmarks.study.models import network
from benchmarks.study.pretraining import Setup, anchor
from benchmarks.study.runs import Row, predictor
from benchmarks.study.sets import sets
from benchmarks.study.training import Trained, finetune
from examples.digits.data import Split

TASKS = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))
IMAGES = 160  # of each task, the same number so that one program fits all


def learn(run: Row, wanted: Sequence[Row], setup: Setup) -> list[Row]:
    """Trains on all tasks in turn. `zero_shot` tests the network before the first task."""
    model, method, seconds = run["model"], run["method"], 0.0
    trained, after = Trained(anchor(run, setup)), []
    sizes = replace(setup.sizes, steps=setup.sizes.steps // len(TASKS))
    of_one = replace(setup, sizes=sizes)
    for number, task in enumerate(TASKS):
        if method != "zero_shot":
            params, state = trained.params, trained.state
            if state is not None and method != "finetune":
                state = tpgm_jax.set_anchor(state, params)
            split = Split(*(x[:IMAGES] for x in of_task(sets().train, task)))
            more = {"order": f"continual {number}", "state": state}
            data = (split, sets().radius), of_one
            trained = finetune(network(model), METHODS[method], run, params, *data, **more)
            seconds += trained.seconds
        after.append(right(model, trained.params))
    among_all, among_two = np.moveaxis(np.array(after), -1, 0)
    names = ("accuracy", "forgetting", "told", "told_forgetting")
    made = (*summary(among_all), *summary(among_two))
    return [run | {"seconds": seconds} | dict(zip(names, made, strict=True))]


def of_task(split: Split, task: tuple[int, int]) -> Split:
    """The images of its two classes."""
    rows = np.isin(split.labels, task)
    return Split(split.images[rows], split.labels[rows])


def right(model: str, params: Any) -> list[tuple[float, float]]:
    """Accuracies on each task's test images in percent: among all classes, and among its two."""
    found = []
    for task in TASKS:
        images, labels = of_task(sets().tested["id"], task)
        logits = np.asarray(predictor(network(model))(params, images))
        among_two = np.array(task)[logits[:, list(task)].argmax(axis=1)]
        answers = logits.argmax(axis=1), among_two
        found.append(tuple(100 * np.mean(x == labels) for x in answers))
    return found


def summary(accuracy: np.ndarray) -> tuple[float, float]:
    """The final mean, and forgetting; `accuracy` is `[after task, of task]`."""
    forgotten = np.diag(accuracy)[:-1] - accuracy[-1, :-1]
    return float(accuracy[-1].mean()), float(forgotten.mean())
