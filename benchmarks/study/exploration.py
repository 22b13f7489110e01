"""What was tried on the way to `recommended`, as `robustness_exploration.csv`.

    python -m benchmarks.study.exploration

Each candidate is trained on the two tuning seeds and the first pre-trained network alone, and what
comes of it is taken as it is, as the mean of its iterates, and both of these mixed with the anchor.
Nothing is held back that the study holds back: its sets are not tested at all.

The CSV also has the rows of "anchor, exact gradient", for an option of `ftp` that no longer exists.
The table shows them; they cannot be run again.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import optax
from tqdm import tqdm

import tpgm_jax
from benchmarks.study import cells
from benchmarks.study.cells import Cell
from benchmarks.study.command import parse
from benchmarks.study.methods import METHODS, Hyper, Method
from benchmarks.study.models import network
from benchmarks.study.pretraining import FAST, Sizes
from benchmarks.study.records import Records
from benchmarks.study.runs import anchors, start_of
from benchmarks.study.sets import sets
from benchmarks.study.training import tester, timed, trainer

KEYS = ("model", "candidate", "taken", "learning_rate", "seed")
COLUMNS = (*KEYS, "seconds", "validation", "id", *cells.OPEN_SHIFTS)

RATES = (1e-3, 1e-2)
MIXED = (0.5, 0.7, 0.9)


def ftp(radius_step: float = 1e-2, base: Any = optax.adam, **options: Any) -> Method:
    """FTP in the anchor's unit."""

    def make(h: Hyper) -> optax.GradientTransformation:
        radius_optimizer = options.get("radius_optimizer", optax.adam(radius_step))
        given = {"unit": "anchor", **options, "radius_optimizer": radius_optimizer}
        return tpgm_jax.ftp(base(h.rate), exclude=h.exclude, **given)

    return Method(make)


def sgd(rate: Callable[[Any], Any]) -> optax.GradientTransformation:
    # Ten times Adam's rate is about as much movement here.
    return optax.sgd(lambda step: 10 * rate(step), momentum=0.9, nesterov=True)


CANDIDATES: dict[str, Method] = {
    "fine-tuning": METHODS["finetune"],
    "ftp": ftp(unit="norm"),
    "anchor": ftp(),
    "anchor, step 3e-3": ftp(3e-3),
    "anchor, step 3e-2": ftp(3e-2),
    "anchor, l2": ftp(norm="l2"),
    "anchor, k 0.5": ftp(k=0.5),
    "anchor, starting at 0.03": ftp(initial_radius=0.03),
    "anchor, starting at 1": ftp(initial_radius=1.0),
    "anchor, hyper-gradients averaged over 100 steps": ftp(
        radius_optimizer=optax.adam(1e-2, b1=0.99)
    ),
    "anchor, radius step without momentum": ftp(radius_optimizer=optax.adam(1e-2, b1=0.0)),
    "anchor, weight decay 0.1": ftp(base=lambda rate: optax.adamw(rate, weight_decay=0.1)),
    "anchor, SGD": ftp(base=sgd),
    "tpgm, anchor": METHODS["tpgm_anchor"],
}


def learn(
    model: str, candidate: str, rates: Sequence[float], sizes: Sizes, directory: Path
) -> list[dict[str, Any]]:
    """Trains a candidate at all rates and tuning seeds, and tests all that is taken of it."""
    runs = [
        Cell(model, "reused", "finetune", rate, "", cells.TUNING_PRETRAIN_SEED, seed)
        for rate in rates
        for seed in cells.TUNING_SEEDS
    ]
    split = sets().train
    start = start_of(runs, anchors(runs, sizes, directory), sizes, directory, len(split.labels))
    program = trainer(network(model), "reused", CANDIDATES[candidate])
    finished, seconds = timed(program, start, split, sets().radius)
    taken = {"last": finished.params, "mean": finished.mean}
    taken |= {
        f"{name}, {alpha:g}": jax.vmap(lambda p, a, alpha=alpha: tpgm_jax.interpolate(p, a, alpha))(
            params, start.params
        )
        for name, params in (("last", finished.params), ("mean", finished.mean))
        for alpha in MIXED
    }
    made = []
    for name, params in taken.items():
        for run, accuracy in zip(runs, tester(model, cells.OPEN_SHIFTS)(params), strict=True):
            key = dict(
                zip(KEYS, (model, candidate, name, run.learning_rate, run.seed), strict=True)
            )
            made.append(key | {"seconds": seconds / len(runs)} | accuracy)
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(__doc__, "exploration", arguments)
    table = Records(options.output, COLUMNS)
    models, names = (("mlp",), ("ftp",)) if options.fast else (cells.MODELS, CANDIDATES)
    rates, sizes = (RATES[:1], FAST) if options.fast else (RATES, Sizes())
    wanted = [{"model": model, "candidate": name} for name in names for model in models]
    for one in tqdm(table.missing(wanted, ("model", "candidate")), desc="exploration"):
        table.append(learn(one["model"], one["candidate"], rates, sizes, options.cache))
    table.close()


if __name__ == "__main__":
    main()
