"""At which learning rates FTP holds anything back.

Three networks, pre-trained on printed digits, are fine-tuned on handwritten ones with AdamW, and
with FTP around the same AdamW. For each tensor it records how far the weights went, and which share
of the rows FTP pulled back. The rule to check: a row of `n` weights moves at most `n * rate` in a
step, and a radius grows by about one radius step, so FTP holds nothing back while their quotient,
the `pace`, is below 1.

    make bench-activity
"""

import argparse
import csv
import math
from functools import cache, partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from tqdm import tqdm

import tpgm_jax
from benchmarks import compact_memory
from benchmarks.activity_table import (
    COLUMNS,
    NETWORKS,
    RATES,
    RUN,
    SETTINGS,
    TASKS,
    figure,
    summary,
)
from benchmarks.compact_memory import ConvNet, ViT
from benchmarks.recording import machine, write
from docs.figures.draw import save
from examples.digits.data import Split, generator, load
from examples.digits.models import MLP, Apply, cross_entropy
from examples.digits.pretraining import pretrained
from examples.digits.settings import Settings
from examples.digits.training import shuffled

MODULES: tuple[nn.Module, ...] = (MLP((768, 768)), ViT(), ConvNet())  # of `NETWORKS`
BATCH = 32
SIZES = Settings(pretraining_images=4000, pretraining_steps=600, pretraining_batch=64)
EVERY = 10  # steps between two reports


def optimizer(setting: str, rate: Any, radius_step: Any) -> optax.GradientTransformationExtraArgs:
    adamw, chosen = optax.adamw(rate), SETTINGS[setting]
    if chosen is None:
        return optax.with_extra_args_support(adamw)
    return tpgm_jax.ftp(adamw, radius_optimizer=optax.adam(radius_step), unit=chosen[0])


@cache
def make_step(apply: Apply, setting: str) -> Any:
    """One jitted step. The rates are arguments, so that all runs share a program."""

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, data, rows, rate, radius_step):
        images, labels = (jnp.take(x, rows, axis=0) for x in data)
        grads = jax.grad(lambda p: cross_entropy(apply, p, images, labels))(params)
        updates, state = optimizer(setting, rate, radius_step).update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def run(
    apply: Apply, anchor: Any, data: Split, steps: int, rate: float, setting: str
) -> list[dict[str, Any]]:
    """Fine-tunes once. The numbers of each tensor; AdamW alone has no radii and no groups."""
    chosen = SETTINGS[setting]
    radius_step = chosen[1] if chosen else 0.0
    # Settings that differ only in the radius step share a program.
    step = make_step(apply, next(x for x, y in SETTINGS.items() if unit(y) == unit(chosen)))
    params = jax.tree.map(jnp.array, anchor)
    state = optimizer(setting, rate, radius_step).init(params)
    batches = shuffled(generator(0, "batches"), len(data.labels), steps, BATCH)
    reports: list[tuple[Any, ...]] = []
    for i, rows in enumerate(batches):
        falling = rate * (1 + math.cos(math.pi * i / steps)) / 2
        params, state = step(params, state, data, rows, falling, radius_step)
        if chosen and (i + 1) % EVERY == 0 and i + 1 > steps / 2:
            reports.append(tpgm_jax.report(state, params).groups)
    flat: Any = [flatten_dict(jax.device_get(x), sep="/") for x in (params, anchor)]
    leaves, starts = flat
    numbers = {
        name: {
            "tensor": name.removeprefix("params/"),
            "size": np.size(before),
            "distance": f"{np.linalg.norm(leaves[name] - before):.4g}",
        }
        for name, before in starts.items()
    }
    for groups in zip(*reports, strict=True):
        last = groups[-1]
        numbers[last.name] |= {
            "row_length": numbers[last.name]["size"] // last.rows,
            "anchor": f"{last.radius / last.relative:.4g}",
            "pulled_back": f"{np.mean([group.pulled_back for group in groups]):.4g}",
            "relative": f"{last.relative:.4g}",
        }
    return list(numbers.values())


def unit(setting: tuple[Any, float] | None) -> Any:
    return setting and setting[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=Path("results/activity.csv"))
    parser.add_argument("--cache", type=Path, default=Path("results/activity"))
    options = parser.parse_args()

    rows: list[dict[str, Any]] = []
    if options.output.exists():  # resume an interrupted run
        with options.output.open(newline="") as file:
            rows = list(csv.DictReader(file))
    done = {tuple(str(row[x]) for x in RUN) for row in rows}
    runs = [
        (network, steps, rate, setting)
        for steps, network in TASKS
        for setting in SETTINGS
        for rate in RATES
    ]
    data = jax.device_put(load(0).train)
    modules = dict(zip(NETWORKS, MODULES, strict=True))
    for key in tqdm([x for x in runs if tuple(map(str, x)) not in done], unit="run"):
        network, steps, rate, setting = key
        module = modules[network]
        anchor = pretrained(module, SIZES, options.cache, modules=(compact_memory,))
        where = {"machine": machine(), "jax": jax.__version__}
        for row in run(module.apply, anchor, data, steps, rate, setting):
            rows.append(dict.fromkeys(COLUMNS, "") | dict(zip(RUN, key, strict=True)) | row | where)
        write(rows, COLUMNS, options.output)

    with options.output.open(newline="") as file:  # all numbers as text
        rows = list(csv.DictReader(file))
    summary(rows)
    third = {"third": "#009e73"}  # also one of Okabe and Ito's
    save(lambda x: figure(rows, x | third), options.output.parent, options.output.stem)


if __name__ == "__main__":
    main()
