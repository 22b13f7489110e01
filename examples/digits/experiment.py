"""The comparison: every method at every learning rate, on every set."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from tqdm import tqdm

import tpgm_jax
from examples.digits.data import Digits, Split, generator
from examples.digits.methods import LABELS, OPTIMIZERS, tpgm_post_hoc, wise_ft
from examples.digits.models import MLP, Apply, accuracy
from examples.digits.settings import Settings
from examples.digits.training import shuffled, train


def compare(
    network: MLP, anchor: optax.Params, digits: Digits, settings: Settings
) -> dict[str, Any]:
    """Fine-tunes with every method and evaluates.

    Returns:
        `zero_shot`: accuracies of the pre-trained network.
        `methods`: by name a list with one entry for each learning rate. An entry has
        `learning_rate`; `accuracy`, by set a list over the repeats, in [0, 1]; `chosen`, whether
        this learning rate has the best validation accuracy; and for methods with radii `radii`,
        by parameter a list over the repeats, in units of the method's norm.
        `moved`: likewise, the distance that Adam moved, in both norms.
    """
    apply = network.apply
    sets = {"validation": digits.validation, "test": digits.test, **digits.shifted}
    results: dict[str, Any] = {"methods": {}}
    zero_shot = accuracies(apply, jax.tree.map(lambda x: x[None], anchor), sets)
    results["zero_shot"] = {name: values[0] for name, values in zero_shot.items()}

    def record(name: str, params: optax.Params, **lists: Mapping[str, list[float]]) -> None:
        lists = {"accuracy": accuracies(apply, params, sets), **lists}
        results["methods"][name] = by_learning_rate(settings, **lists)

    tuned = {}
    for name in OPTIMIZERS:
        tuned[name], state = fine_tune(apply, anchor, digits, settings, name)
        lists = {} if name == "adam" else {"radii": radii(state, anchor)}
        record(name, tuned[name], **lists)
    results["moved"] = by_learning_rate(settings, **moved(tuned["adam"], anchor))

    record("wise_ft", wise_ft(tuned["adam"], anchor))
    fitted = tpgm_post_hoc(apply, tuned["adam"], anchor, digits.radius, settings.radius_steps)
    record("tpgm_post_hoc", fitted.params, radii=fitted.radii)
    results["methods"] = {name: results["methods"][name] for name in LABELS}
    return results


def fine_tune(
    apply: Apply, anchor: optax.Params, digits: Digits, settings: Settings, method: str
) -> tuple[optax.Params, optax.OptState]:
    """One run for each learning rate and repeat, `[runs, ...]`, repeats innermost.

    All methods and learning rates see the same batches in the same order.
    """

    def orders(split: Split, purpose: str) -> np.ndarray:
        order = [
            shuffled(
                generator(settings.seed, f"{purpose} {repeat}"),
                *(len(split.labels), settings.steps, settings.batch),
            )
            for repeat in range(settings.repeats)
        ]
        return np.stack(order * len(settings.learning_rates))

    with tqdm(total=settings.steps, desc=LABELS[method], unit="step") as bar:
        return train(
            apply,
            anchor,
            OPTIMIZERS[method],
            np.repeat(np.array(settings.learning_rates, np.float32), settings.repeats),
            digits.train,
            orders(digits.train, "train"),
            held_out=digits.radius,
            held_out_batches=orders(digits.radius, "radius"),
            progress=bar.update,
        )


def accuracies(
    apply: Apply, params: optax.Params, sets: Mapping[str, Split]
) -> dict[str, list[float]]:
    """By set, the accuracy of each run; `params` are stacked, `[runs, ...]`."""
    measure = jax.jit(jax.vmap(lambda p, split: accuracy(apply, p, *split), (0, None)))
    return {name: np.asarray(measure(params, split)).tolist() for name, split in sets.items()}


def radii(state: optax.OptState, params: optax.Params) -> dict[str, list[float]]:
    """By parameter, the radius of each run; `state` is stacked, `[runs, ...]`."""
    runs = len(jax.tree.leaves(state)[0])
    one_by_one = [
        tpgm_jax.radii(jax.tree.map(lambda x, run=run: x[run], state), params)
        for run in range(runs)
    ]
    return {name: [run[name] for run in one_by_one] for name in one_by_one[0]}


def moved(tuned: optax.Params, anchor: optax.Params) -> dict[str, dict[str, list[float]]]:
    """By norm and parameter, the distance of each run; for "mars", of its farthest row."""
    distances: dict[str, dict[str, list[float]]] = {"mars": {}, "l2": {}}
    difference = jax.tree.map(lambda w, w0: np.asarray(w) - np.asarray(w0), tuned, anchor)
    for path, d in jax.tree_util.tree_leaves_with_path(difference):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        # `[runs, in, out]`: a row is the weights that feed one output. A bias is one row.
        rows = np.abs(d).sum(axis=1)
        distances["mars"][name] = (rows.max(axis=1) if d.ndim == 3 else rows).tolist()
        l2 = np.sqrt(np.square(d).sum(axis=tuple(range(1, d.ndim))))
        distances["l2"][name] = l2.tolist()
    return distances


def by_learning_rate(
    settings: Settings, **lists: Mapping[str, list[float]]
) -> list[dict[str, Any]]:
    """Divides lists over runs into one entry for each learning rate, and marks the best one.

    The best has the highest validation accuracy, averaged over the repeats. Ties go to the smallest
    learning rate.
    """
    entries = []
    for i, learning_rate in enumerate(settings.learning_rates):
        repeats = slice(i * settings.repeats, (i + 1) * settings.repeats)
        entry: dict[str, Any] = {"learning_rate": learning_rate}
        for what, values in lists.items():
            entry[what] = {name: runs[repeats] for name, runs in values.items()}
        entries.append(entry)
    if "accuracy" in lists:
        # Rounded, because equal numbers of correct answers may differ in their last bit.
        validation = [np.mean(entry["accuracy"]["validation"]).round(6) for entry in entries]
        for i, entry in enumerate(entries):
            entry["chosen"] = i == int(np.argmax(validation))
    return entries
