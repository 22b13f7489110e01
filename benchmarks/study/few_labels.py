"""Fine-tuning on 1 % and on 10 % of the labels: the main methods, as `robustness_few_labels.csv`.

    python -m benchmarks.study.few_labels

Nothing is tuned again: each method has the setting that was chosen with all labels, and a default
where that is not known yet. The images for radii, 149, are then many more than those trained on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.study import cells, plan
from benchmarks.study.cells import COLUMNS, Cell
from benchmarks.study.command import parse
from benchmarks.study.plan import Job
from benchmarks.study.pretraining import FAST, Sizes
from benchmarks.study.records import Records, cell, read
from benchmarks.study.runs import perform
from benchmarks.study.selection import Validation, chosen
from benchmarks.study.sets import DATA_SEED, sets
from examples.digits.data import Split, generator

TABLE = ("labels", *COLUMNS)

# Of the thousand; the same number of each class.
LABELS = (10, 100)

# With the setting of each where nothing is chosen yet.
METHODS = {
    "zero_shot": (0.0, ""),
    "finetune": (3e-3, ""),
    "wise": (3e-3, "alpha=0.5"),
    "l2sp": (3e-3, "weight=0.01"),
    "ftp": (3e-3, ""),
    "ftp_anchor": (3e-3, ""),
    "tpgm": (3e-3, ""),
    "recommended": (3e-3, ""),
}


@dataclass(frozen=True)
class Scope:
    """What is run; the default is everything."""

    models: tuple[str, ...] = cells.MODELS
    methods: tuple[str, ...] = tuple(METHODS)
    labels: tuple[int, ...] = LABELS
    seeds: tuple[int, ...] = cells.SEEDS


def labelled(count: int, seed: int) -> Split:
    """So many training images, of every class the same number; of the seed's own choice."""
    images, labels = sets().train
    order = generator(DATA_SEED, f"few labels {seed}").permutation(len(labels))
    rows = [order[labels[order] == digit][: count // 10] for digit in range(10)]
    chosen_rows = np.concatenate(rows)
    return Split(images[chosen_rows], labels[chosen_rows])


def setting_of(model: str, method: str, known: Validation) -> tuple[float, str]:
    """What was chosen with all labels, or else the default."""
    if method == "zero_shot":
        return METHODS[method]
    return chosen(model, "reused", method, known, plan.Scope()) or METHODS[method]


def run(output: Path, study: Path, scope: Scope, sizes: Sizes, cache: Path) -> None:
    """Runs what is missing, and appends it."""
    table = Records(output, TABLE)
    done = {(int(row["labels"]), cell(row)) for row in table.rows}
    known = {}
    if study.exists():
        known = {cell(row): float(row["validation"]) for row in read(study, COLUMNS)}
    wanted = [
        (count, Cell(model, "reused", method, *setting, 0, seed))
        for model in scope.models
        for count in scope.labels
        for method in scope.methods
        for setting in [setting_of(model, method, known)]
        for seed in (scope.seeds if method != "zero_shot" else (0,))
    ]
    missing = [pair for pair in wanted if pair not in done]
    for count, one in tqdm(missing, desc="few labels"):
        job = Job(plan.trained(one), (one,))
        (row,) = perform([job], sizes, cache, labelled(count, one.seed)).rows
        table.append([{"labels": count} | row])
    table.close()


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(__doc__, "few_labels", arguments, study=True)
    fast = Scope(
        models=("mlp",), methods=("zero_shot", "finetune", "wise", "ftp"), labels=(10,), seeds=(0,)
    )
    scope, sizes = (fast, FAST) if options.fast else (Scope(), Sizes())
    run(options.output, options.study, scope, sizes, options.cache)


if __name__ == "__main__":
    main()
