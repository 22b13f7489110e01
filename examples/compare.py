"""Compares ways to fine-tune, on your own model and data.

    python -m examples.compare [--fast]

runs `compare` on digits, and writes a table and results/compare.png. Copy this file, and hand
`compare` your own functions and batches. Each method gets the same batches in the same order, and
validation chooses its learning rate.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from tqdm import tqdm

import tpgm_jax

Row = dict[str, Any]  # method, rate, validation, chosen, and a score for each test set


def compare(
    loss: Callable[[Any, Any], jax.Array],
    score: Callable[[Any, Any], float],
    pretrained: Any,
    train: Sequence[Any],
    held_out: Sequence[Any],
    validation: Any,
    tests: Mapping[str, Any],
    rates: Sequence[float],
    head: str | None = None,
) -> list[Row]:
    """Fine-tunes with each method at each learning rate.

    Args:
        loss: `loss(params, batch)`, a number to minimize; it is compiled.
        score: `score(params, batch)`, such as accuracy in per cent; higher is better.
        pretrained: a tree of parameters, which all methods start from.
        train: one batch for each step.
        held_out: batches on which TPGM learns its radii; as many as there are steps.
        validation: a batch that chooses learning rates.
        tests: batches to test on, by name: other distributions than `train` too.
        rates: learning rates, the first of a cosine.
        head: a regular expression for the names of new tensors. No method constrains them; LP-FT
            trains them alone first.
    """
    train, held_out = list(train), list(held_out)  # each method reads them again
    if len(train) != len(held_out):
        raise ValueError(f"got {len(train)} batches to train on, and {len(held_out)} held out")
    names: Any = {"exclude": head} if head else {}

    def schedule(rate: float) -> optax.Schedule:
        return optax.cosine_decay_schedule(rate, len(train))

    def trained(tx: optax.GradientTransformation, params: Any) -> Any:
        tx = optax.with_extra_args_support(tx)

        def step(params: Any, state: Any, batch: Any, other: Any) -> Any:
            extra = {"held_out_loss": lambda params: loss(params, other)}  # TPGM alone uses it
            updates, state = tx.update(jax.grad(loss)(params, batch), state, params, **extra)
            return optax.apply_updates(params, updates), state

        step, state = jax.jit(step), tx.init(params)
        for batch, other in zip(train, held_out, strict=True):
            params, state = step(params, state, batch, other)
        return params

    def head_first(rate: float) -> Any:
        body = [tensor.constrained for tensor in tpgm_jax.layout(pretrained, **names).leaves]
        frozen = jax.tree.unflatten(jax.tree.structure(pretrained), body)
        probe = optax.chain(optax.adam(schedule(rate)), optax.masked(optax.set_to_zero(), frozen))
        return trained(optax.adamw(schedule(rate)), trained(probe, pretrained))

    decay = tpgm_jax.add_anchor_decay(0.01, **names)
    methods: dict[str, Callable[[float], Any]] = {
        "fine-tuning": lambda rate: trained(optax.adamw(schedule(rate)), pretrained),
        **({"LP-FT": head_first} if head else {}),
        "L2-SP": lambda rate: trained(optax.chain(decay, optax.adamw(schedule(rate))), pretrained),
        "SPD": lambda rate: trained(tpgm_jax.spd(optax.adamw(schedule(rate)), **names), pretrained),
        "FTP": lambda rate: trained(tpgm_jax.ftp(optax.adamw(schedule(rate)), **names), pretrained),
        "TPGM": lambda rate: trained(
            tpgm_jax.tpgm(optax.adamw(schedule(rate)), **names), pretrained
        ),
    }
    rows: list[Row] = []

    def add(method: str, rate: float, params: Any) -> None:
        scores = {name: float(score(params, batch)) for name, batch in tests.items()}
        validated = float(score(params, validation))
        rows.append({"method": method, "rate": rate, "validation": validated, **scores})

    add("pre-trained", 0.0, pretrained)
    for method, rate in tqdm([(method, rate) for method in methods for rate in rates]):
        params = methods[method](rate)
        add(method, rate, params)
        if method == "fine-tuning":
            add("WiSE-FT 0.8", rate, tpgm_jax.interpolate(params, pretrained, 0.8, **names))
    for method in {row["method"] for row in rows}:
        mine = [row for row in rows if row["method"] == method]
        # A score that is not a number is the worst one.
        best = max(mine, key=lambda row: np.nan_to_num(row["validation"], nan=-np.inf))
        for row in mine:
            row["chosen"] = row is best
    return rows


def show(rows: Sequence[Row], picture: Path) -> None:
    """Prints a table, and draws the mean of all tests against the learning rate."""
    columns = [name for name in rows[0] if name not in ("method", "rate", "chosen")]
    print(f"{'method':12} {'rate':>8}", *(f"{name:>12}" for name in columns))
    order = list(dict.fromkeys(row["method"] for row in rows))
    for row in sorted(rows, key=lambda row: order.index(row["method"])):
        numbers = (f"{row[name]:12.4g}" for name in columns)
        print(f"{row['method']:12} {row['rate']:8.0e}", *numbers, "*" if row["chosen"] else "")
    print("*: the rate that validation chooses")
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for method in order[1:]:
        mine = [row for row in rows if row["method"] == method]
        means = [np.mean([row[name] for name in columns[1:]]) for row in mine]
        axes.plot([row["rate"] for row in mine], means, marker="o", label=method)
    axes.set(xscale="log", xlabel="learning rate", ylabel="mean of the test sets")
    axes.legend(frameon=False)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=150)
    plt.close(figure)
    print(picture)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """The digits of `examples.trainers`: pre-trained on printed ones, fine-tuned on handwritten."""
    from examples.digits.models import MLP, accuracy, cross_entropy
    from examples.trainers.data import batches, load

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fast", action="store_true", help="a rehearsal, in seconds")
    fast = parser.parse_args(arguments).fast
    task = load(["--fast"] if fast else [], __doc__)
    model = MLP()
    params = model.init(jax.random.key(0), task.train.images[:1])

    @jax.jit
    def loss(params: Any, batch: Any) -> jax.Array:
        return cross_entropy(model.apply, params, *batch)

    def score(params: Any, batch: Any) -> float:
        return 100 * float(accuracy(model.apply, params, *batch))

    tx = optax.adam(1e-3)
    state, gradient = tx.init(params), jax.jit(jax.grad(loss))
    for batch in batches(task.printed, task.pretraining_steps, "pre-training"):
        updates, state = tx.update(gradient(params, batch), state, params)
        params = optax.apply_updates(params, updates)
    images = np.concatenate([split.images for split in task.shifted])
    labels = np.concatenate([split.labels for split in task.shifted])
    half = len(task.held_out.labels) // 2
    held_out = type(task.held_out)(*(x[:half] for x in task.held_out))
    rows = compare(
        loss,
        score,
        params,
        list(batches(task.train, task.steps, "training batches")),
        list(batches(held_out, task.steps, "held-out batches")),
        validation=type(held_out)(*(x[half:] for x in task.held_out)),
        tests={"handwritten": task.test, "13 shifted": (images, labels)},
        rates=(1e-3, 1e-2) if fast else (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    )
    show(rows, Path("results/compare.png"))
    return rows


if __name__ == "__main__":
    main()
