"""Carrying out jobs: from a plan's jobs of one program to rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import tpgm_jax
from benchmarks.study import pretraining
from benchmarks.study.cells import KEYS, NEW_SHIFTS, SHIFTS, Cell, value
from benchmarks.study.methods import HEAD, METHODS, RECOMMENDED_ALPHA
from benchmarks.study.models import network
from benchmarks.study.plan import Job
from benchmarks.study.pretraining import Sizes
from benchmarks.study.sets import DATA_SEED, sets
from benchmarks.study.training import Start, fitter, tester, timed, trainer
from examples.digits.data import Split, generator
from examples.digits.training import shuffled

# Where LP-FT starts: a linear probe at this rate.
PROBE_RATE = 3e-3

RADII_COLUMNS = (*KEYS, "tensor", "radius")


class Outcome(NamedTuple):
    """Rows of the study's CSV, and of the CSV of the radii."""

    rows: list[dict[str, Any]]
    radii: list[dict[str, Any]]


def perform(
    jobs: Sequence[Job], sizes: Sizes, directory: Path, train: Split | None = None
) -> Outcome:
    """Trains and tests jobs that differ in learning rate, setting and seed alone.

    Args:
        jobs: of one model, head and method.
        sizes: how long to train.
        directory: of the pre-trained networks.
        train: other images to train on than the study's.
    """
    train = train or sets().train
    runs = [job.trained for job in jobs]
    model, head, method = runs[0][:3]
    anchor = anchors(runs, sizes, directory)
    if method == "zero_shot":
        return Outcome(_rows(jobs, {"zero_shot": (anchor, 0.0)}), [])

    start = start_of(runs, anchor, sizes, directory, len(train.labels))
    spent = 0.0
    if method == "lpft":
        probe = start._replace(rate=jnp.full(len(runs), PROBE_RATE))
        finished, spent = _train(model, head, "linear_probe", probe, train)
        start = start._replace(params=finished.params)
    finished, seconds = _train(model, head, method, start, train)
    spent = (spent + seconds) / len(runs)

    outcomes = {
        method: (finished.params, spent),
        f"{method}_mean": (finished.mean, spent),
    }
    wanted = [cell for job in jobs for cell in job.wanted]
    if any(cell.method == "tpgm_posthoc" for cell in wanted):
        fit, radius = fitter(model, head, sizes.radius_steps), sets().radius
        (fitted, _), seconds = timed(fit, finished.params, anchor, radius)
        outcomes["tpgm_posthoc"] = (fitted, spent + seconds / len(runs))
    exclude = None if head == "reused" else HEAD
    if any(cell.method == "recommended" for cell in wanted):
        mixed = tpgm_jax.interpolate(finished.mean, anchor, RECOMMENDED_ALPHA, exclude=exclude)
        outcomes["recommended"] = (mixed, spent)
    for text in {cell.setting for cell in wanted if cell.method == "wise"}:
        mixed = tpgm_jax.interpolate(finished.params, anchor, value(text), exclude=exclude)
        outcomes[f"wise {text}"] = (mixed, spent)
    return Outcome(_rows(jobs, outcomes), _radii(runs, finished))


def anchors(runs: Sequence[Cell], sizes: Sizes, directory: Path) -> Any:
    """The pre-trained networks of runs of one model and head, stacked."""
    trees = [
        pretraining.anchor(run.model, run.head, run.pretrain_seed, run.seed, sizes, directory)
        for run in runs
    ]
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def start_of(
    runs: Sequence[Cell], anchor: Any, sizes: Sizes, directory: Path, examples: int
) -> Start:
    """The beginnings of runs of one method, stacked."""
    model, _, method = runs[0][:3]

    def orders(purpose: str, examples: int) -> np.ndarray:
        # Of the seed alone: all methods see the same batches in the same order.
        shape = (examples, sizes.steps, sizes.batch)
        return np.stack(
            [shuffled(generator(DATA_SEED, f"{purpose} {run.seed}"), *shape) for run in runs]
        )

    importance: Any = jnp.zeros(len(runs))
    if method == "ewc":
        trees = [pretraining.importance(model, run.pretrain_seed, sizes, directory) for run in runs]
        importance = jax.tree.map(lambda *x: jnp.stack(x), *trees)
    return Start(
        params=anchor,
        rate=jnp.array([run.learning_rate for run in runs]),
        value=jnp.array([value(run.setting) for run in runs]),
        key=jnp.stack([jax.random.key(run.seed) for run in runs]),
        rows=orders("train", examples),
        held_out_rows=orders("radius", len(sets().radius.labels)),
        importance=importance,
    )


def _train(model: str, head: str, method: str, start: Start, train: Split) -> tuple[Any, float]:
    return timed(trainer(network(model), head, METHODS[method]), start, train, sets().radius)


def _rows(jobs: Sequence[Job], outcomes: dict[str, tuple[Any, float]]) -> list[dict[str, Any]]:
    """Tests what the jobs ask for."""
    test = tester(jobs[0].trained.model, SHIFTS + NEW_SHIFTS)
    tested: dict[str, list[dict[str, float]]] = {}
    rows = []
    for i, job in enumerate(jobs):
        for cell in job.wanted:
            name = f"wise {cell.setting}" if cell.method == "wise" else cell.method
            params, seconds = outcomes[name]
            if name not in tested:
                tested[name] = test(params)
            columns = ("validation", "id", *SHIFTS, *NEW_SHIFTS)
            accuracy = {column: tested[name][i][column] for column in columns}
            rows.append(cell._asdict() | {"seconds": seconds} | accuracy)
    return rows


def _radii(runs: list[Cell], finished: Any) -> list[dict[str, Any]]:
    """Those of methods that have any."""
    rows = []
    for i, run in enumerate(runs):
        if run.method.startswith(("ftp", "tpgm")):
            state, params = jax.tree.map(lambda x, i=i: x[i], (finished.state, finished.params))
            for tensor, radius in tpgm_jax.radii(state, params).items():
                rows.append(run._asdict() | {"tensor": tensor, "radius": radius})
    return rows
