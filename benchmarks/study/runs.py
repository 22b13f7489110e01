"""Runs of the study, of few labels and of the exploration: from a training to rows of the CSV."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import optax

import tpgm_jax
from benchmarks.recording import value
from benchmarks.study.methods import CANDIDATES, HEAD, METHODS, RECOMMENDED_ALPHA, Method
from benchmarks.study.models import network
from benchmarks.study.pretraining import Setup, anchor, importance
from benchmarks.study.sets import few, sets
from benchmarks.study.training import Trained, finetune, timed
from examples.digits.data import Split
from examples.digits.models import cross_entropy

PROBE_RATE = 3e-3  # of the linear probe that LP-FT starts from

Row = dict[str, Any]


def learn(run: Row, wanted: Sequence[Row], setup: Setup) -> list[Row]:
    """Trains once, and tests all rows of `wanted`, which rest on this training."""
    start = anchor(run, setup)
    trained = Trained(start) if run.get("method") == "zero_shot" else train(run, start, setup)
    rows = []
    for row in wanted:
        params, more = derived(row, trained, start, setup)
        rows.append(row | {"seconds": trained.seconds + more} | accuracy(row["model"], params))
    return rows


def radii(run: Row, wanted: Sequence[Row], setup: Setup) -> list[Row]:
    """Trains once, and returns the radius of each tensor of `wanted`."""
    trained = train(run, anchor(run, setup), setup)
    found = tpgm_jax.radii(trained.state, trained.params)
    return [row | {"radius": found[row["tensor"]]} for row in wanted]


def exclusion(run: Row) -> str | None:
    """No method constrains a new head."""
    return HEAD if run.get("head") == "new" else None


def train(run: Row, start: optax.Params, setup: Setup) -> Trained:
    """One training."""
    images = few(run["labels"], run["seed"]) if "labels" in run else sets().train
    method = CANDIDATES[run["candidate"]] if "candidate" in run else METHODS[run["method"]]

    def tuned(method: Method, run: Row, start: optax.Params, weights: Any = 0.0) -> Trained:
        data, net = ((images, sets().radius), setup), network(run["model"])
        given = {"exclude": exclusion(run), "importance": weights}
        return finetune(net, method, run, start, *data, **given)

    if run.get("method") == "lpft":
        probe = tuned(METHODS["linear_probe"], run | {"learning_rate": PROBE_RATE}, start)
        trained = tuned(method, run, probe.params)
        return trained._replace(seconds=probe.seconds + trained.seconds)
    if run.get("method") == "ewc":
        return tuned(method, run, start, importance(run["model"], run["pretrain_seed"], setup))
    return tuned(method, run, start)


def derived(row: Row, trained: Trained, start: Any, setup: Setup) -> tuple[Any, float]:
    """The parameters that a row's method makes of a training, and the seconds that takes."""
    method, alpha = row.get("method", row.get("taken", "")), 1.0
    if method == "tpgm_posthoc":
        fit = fitter(row["model"], exclusion(row), setup.sizes.radius_steps)
        return timed(fit, trained.params, start, sets().radius)
    if method == "wise":
        alpha = value(row["setting"])
    if method == "recommended":
        alpha = RECOMMENDED_ALPHA
    if ", " in method:  # of the exploration, such as "mean, 0.9"
        alpha = float(method.partition(", ")[2])
    params = trained.mean if "mean" in method or method == "recommended" else trained.params
    if alpha < 1:
        params = tpgm_jax.interpolate(params, start, alpha, exclude=exclusion(row))
    return params, 0.0


@cache
def fitter(model: str, exclude: str | None, steps: int) -> Any:
    """`tpgm_jax.fit_radii` as one program from tuned parameters and anchor to the outcome.

    TPGM's first update from the anchor, with the whole way to the tuned parameters as the step.
    `fit_radii` itself would be compiled again for each run.
    """
    apply = network(model).apply
    tx = tpgm_jax.tpgm(optax.identity(), steps=steps, norm="l2", exclude=exclude)

    @jax.jit
    def fit(tuned: Any, anchor: Any, radius: Split) -> Any:
        way = jax.tree.map(jnp.subtract, tuned, anchor)
        updates, _ = tx.update(
            way, tx.init(anchor), anchor, held_out_loss=lambda x: cross_entropy(apply, x, *radius)
        )
        return optax.apply_updates(anchor, updates)

    return fit


def accuracy(model: str, params: Any) -> dict[str, float]:
    """In percent, by set."""
    found = {}
    for name, (images, labels) in sets().tested.items():
        right = jnp.argmax(predictor(model)(params, images), axis=-1) == labels
        found[name] = 100 * int(right.sum()) / len(labels)
    return found


@cache
def predictor(model: str) -> Any:
    return jax.jit(network(model).apply)
