"""Runs of the study, of few labels and of the exploration: from a training to rows of the CSV."""

import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import tpgm_jax
from benchmarks.recording import value
from benchmarks.study.methods import CANDIDATES, HEAD, METHODS, RECOMMENDED_ALPHA
from benchmarks.study.models import network
from benchmarks.study.pretraining import Setup, anchor, importance
from benchmarks.study.sets import few, sets
from benchmarks.study.training import Trained, finetune
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
    data = (images, sets().radius), setup
    given: Any = {"exclude": exclusion(run)}
    net, seconds = network(run["model"]), 0.0
    if run.get("method") == "ewc":
        given["importance"] = importance(run["model"], run["pretrain_seed"], setup)
    if run.get("method") == "lpft":
        probing = METHODS["linear_probe"], run | {"learning_rate": PROBE_RATE}
        start, *_, seconds = finetune(net, *probing, start, *data, **given)
    trained = finetune(net, method, run, start, *data, **given)
    return trained._replace(seconds=seconds + trained.seconds)


def derived(row: Row, trained: Trained, start: Any, setup: Setup) -> tuple[Any, float]:
    """The parameters that a row's method makes of a training, and the seconds that takes."""
    method, alpha = row.get("method", row.get("taken", "")), 1.0
    if method == "tpgm_posthoc":
        started = time.perf_counter()
        batches = [sets().radius] * setup.sizes.radius_steps
        loss = held_out_loss(network(row["model"]))
        fit = tpgm_jax.fit_radii(loss, trained.params, start, batches, exclude=exclusion(row))
        return fit.params, time.perf_counter() - started
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
def held_out_loss(net: nn.Module) -> Any:
    """The same function for all runs of a network, so that `fit_radii` is compiled once."""
    return lambda params, split: cross_entropy(net.apply, params, *split)


def accuracy(model: str, params: Any) -> dict[str, float]:
    """In percent, by set."""
    found, predict = {}, predictor(network(model))
    for name, (images, labels) in sets().tested.items():
        right = jnp.argmax(predict(params, images), axis=-1) == labels
        found[name] = 100 * int(right.sum()) / len(labels)
    return found


@cache
def predictor(net: nn.Module) -> Any:
    return jax.jit(net.apply)
