"""Continual learning: five tasks of two classes one after another, as `robustness_continual.csv`.

    python -m benchmarks.study.continual

After each task the anchor is moved to where training has come, by `tpgm_jax.set_anchor`, so that
each task is kept near the last one. The ten-way head is trained throughout, and nobody tells it
which task an image is of (`accuracy`), or somebody does (`told`). Forgetting is the mean, over the
tasks but the last, of the accuracy right after the task minus that in the end.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import tpgm_jax
from benchmarks.study import cells, pretraining
from benchmarks.study.command import parse
from benchmarks.study.methods import METHODS, Hyper
from benchmarks.study.models import network
from benchmarks.study.pretraining import FAST, Sizes
from benchmarks.study.records import Records
from benchmarks.study.sets import DATA_SEED, sets
from examples.digits.data import Split, generator
from examples.digits.models import Apply, cross_entropy
from examples.digits.training import shuffled

KEYS = ("model", "method", "learning_rate", "setting", "seed")
MEASURED = ("accuracy", "forgetting", "told", "told_forgetting")
COLUMNS = (*KEYS, "seconds", *MEASURED)

TASKS = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))
RATES = (3e-4, 1e-3, 3e-3)
RUN = {"finetune": "", "l2sp": "weight=0.01", "spd": "strength=1", "ftp": "", "ftp_anchor": ""}
# The network as it was, for what there was to keep.
UNTRAINED = "zero_shot"


@dataclass(frozen=True)
class Scope:
    """What is run; the default is everything."""

    models: tuple[str, ...] = cells.MODELS
    methods: tuple[str, ...] = (UNTRAINED, *RUN)
    rates: tuple[float, ...] = RATES
    seeds: tuple[int, ...] = cells.SEEDS[:3]


@cache
def programs(model: str, method: str, steps: int) -> Any:
    """The start of a run, and its training on one task."""
    apply: Apply = network(model).apply

    def optimizer(rate: Any, value: Any) -> optax.GradientTransformationExtraArgs:
        cosine = optax.cosine_decay_schedule(1.0, steps)
        # A fall to 0 in each task; the count of the steps goes on through all of them.
        hyper = Hyper(lambda t: rate * cosine(t % steps), value, None, None, 1, None)
        return optax.with_extra_args_support(METHODS[method].make(hyper))

    def train(params: Any, state: Any, rate: Any, value: Any, split: Split, rows: Any) -> Any:
        def step(carry: Any, batch: Any) -> Any:
            params, state = carry
            images, labels = (jnp.take(x, batch, axis=0) for x in split)
            grads = jax.grad(lambda p: cross_entropy(apply, p, images, labels))(params)
            updates, state = optimizer(rate, value).update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), rows)[0]

    start = jax.jit(lambda params, rate, value: optimizer(rate, value).init(params))
    return start, jax.jit(train), jax.jit(apply)


def learn(run: Mapping[str, Any], sizes: Sizes, cache_folder: Path) -> dict[str, Any]:
    """One run through all tasks, as a row."""
    if run["method"] == UNTRAINED:
        return untrained(run, sizes, cache_folder)
    steps = max(sizes.steps // len(TASKS), 1)
    start, train, logits = programs(run["model"], run["method"], steps)
    hyper = run["learning_rate"], cells.value(run["setting"])
    params = pretraining.anchor(run["model"], "reused", 0, run["seed"], sizes, cache_folder)
    state, began, after = start(params, *hyper), time.perf_counter(), []
    for number, task in enumerate(TASKS):
        if number and run["method"] != "finetune":
            state = tpgm_jax.set_anchor(state, params)
        split = of_task(sets().train, task)
        rng = generator(DATA_SEED, f"continual {number} {run['seed']}")
        # The same number from every task, so that one program fits all.
        split = jax.tree.map(lambda x: x[:160], split)
        rows = shuffled(rng, len(split.labels), steps, sizes.batch)
        params, state = train(params, state, *hyper, split, rows)
        after.append([right(logits, params, task) for task in TASKS])
    return {**run, "seconds": time.perf_counter() - began, **measured(after)}


def untrained(run: Mapping[str, Any], sizes: Sizes, cache_folder: Path) -> dict[str, Any]:
    """The accuracies before any task, which nothing is forgotten of."""
    params = pretraining.anchor(run["model"], "reused", 0, run["seed"], sizes, cache_folder)
    logits = jax.jit(network(run["model"]).apply)
    always = [right(logits, params, task) for task in TASKS]
    return {**run, "seconds": 0.0, **measured([always for _ in TASKS])}


def measured(after: Sequence[Sequence[tuple[float, float]]]) -> dict[str, float]:
    """From what `right` says `[after task, of task]`."""
    told, untold = (np.array([[x[i] for x in row] for row in after]) for i in (1, 0))
    return dict(zip(MEASURED, (*summary(untold), *summary(told)), strict=True))


def of_task(split: Split, task: tuple[int, int]) -> Split:
    """The images of its two classes."""
    rows = np.isin(split.labels, task)
    return Split(split.images[rows], split.labels[rows])


def right(logits: Any, params: Any, task: tuple[int, int]) -> tuple[float, float]:
    """Accuracy on a task's test images, in percent: among all ten classes, and among its two."""
    images, labels = of_task(sets().tested["id"], task)
    answers = np.asarray(logits(params, images))
    among_two = np.array(task)[answers[:, list(task)].argmax(axis=1)]
    untold = np.mean(answers.argmax(axis=1) == labels)
    return 100 * float(untold), 100 * float(np.mean(among_two == labels))


def summary(accuracy: np.ndarray) -> tuple[float, float]:
    """Mean in the end, and forgetting; `accuracy` is `[after task, of task]`."""
    forgotten = np.diag(accuracy)[:-1] - accuracy[-1, :-1]
    return float(accuracy[-1].mean()), float(forgotten.mean())


def run(output: Path, scope: Scope, sizes: Sizes, cache_folder: Path) -> None:
    """Runs what is missing, and appends it."""
    table = Records(output, COLUMNS)
    wanted: list[dict[str, Any]] = [
        dict(zip(KEYS, (model, method, rate, RUN.get(method, ""), seed), strict=True))
        for model in scope.models
        for method in scope.methods
        for rate in (scope.rates if method != UNTRAINED else (0.0,))
        for seed in (scope.seeds if method != UNTRAINED else (0,))
    ]
    for one in tqdm(table.missing(wanted, KEYS), desc="continual"):
        table.append([learn(one, sizes, cache_folder)])
    table.close()


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(__doc__, "continual", arguments)
    fast = Scope(models=("mlp",), methods=(UNTRAINED, "finetune", "ftp"), rates=(1e-3,), seeds=(0,))
    run(options.output, *((fast, FAST) if options.fast else (Scope(), Sizes())), options.cache)


if __name__ == "__main__":
    main()
