"""What is to be run, in the order in which it matters, and what it will take.

The plan depends on the rows so far: a method's final runs can only be named once its tuning
runs are there. So it is made anew whenever a run has finished.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.study import cells
from benchmarks.study.cells import Cell, setting
from benchmarks.study.methods import DERIVED, METHODS, NEW_HEAD
from benchmarks.study.selection import Validation, candidates, chosen, tuning_cells

# Milliseconds of one core that a step of plain fine-tuning takes, and the time of other methods
# in units of it. Measured roughly, for estimates only.
STEP_MS = {"mlp": 1.5, "conv": 2.5, "vit": 4.5}
RELATIVE = {"linear_probe": 0.4, "lpft": 1.4, "tpgm": 2.1, "tpgm_anchor": 2.2, "zero_shot": 0.0}
RELATIVE |= {"ftp": 1.3, "ftp_anchor": 1.4, "spd": 1.2, "mars_sp": 1.2}
TEST, POSTHOC = 0.05, 0.5


@dataclass(frozen=True)
class Scope:
    """What the plan extends over; the default is the whole study."""

    models: tuple[str, ...] = cells.MODELS
    heads: tuple[str, ...] = cells.HEADS
    pretrain_seeds: tuple[int, ...] = cells.PRETRAIN_SEEDS
    seeds: tuple[int, ...] = cells.SEEDS
    tuning_seeds: tuple[int, ...] = cells.TUNING_SEEDS
    curve: bool = True
    settings: int | None = None  # how many are tried of each method; None: all
    brief: tuple[str, ...] = ()  # models with `BRIEF` and the reused head alone


# Of models that are to be brief, as each method is a program to compile.
BRIEF = ("finetune", "ftp", "tpgm")

# Each method once: no curves, and one setting to choose from. It compiles more than it trains.
FAST = Scope(
    pretrain_seeds=(0,),
    seeds=(0,),
    tuning_seeds=(100,),
    curve=False,
    settings=1,
    brief=("conv", "vit"),
)


class Job(NamedTuple):
    """One training, and the cells that it answers.

    Attributes:
        trained: the training run, as the cell that it would be by itself.
        wanted: the cells, which may be of methods derived from it.
    """

    trained: Cell
    wanted: tuple[Cell, ...]


def trained(cell: Cell) -> Cell:
    """The training that a cell rests on."""
    if cell.method in DERIVED:
        return cell._replace(method=DERIVED[cell.method].source, setting="")
    return cell


def jobs(done: Mapping[Cell, float], scope: Scope) -> list[Job]:
    """What can be run now, in order.

    Args:
        done: the cells there are, each with its validation accuracy.
        scope: of the study.
    """
    wanted: dict[Cell, dict[Cell, None]] = {}
    for cell in ordered(done, scope):
        if cell not in done:
            wanted.setdefault(trained(cell), {})[cell] = None
    return [Job(run, tuple(answers)) for run, answers in wanted.items()]


def ordered(done: Validation, scope: Scope) -> Iterator[Cell]:
    """The cells of the whole study as far as they can be named, what matters most first."""
    first, *others = scope.pretrain_seeds
    trains = (*METHODS, *DERIVED)
    curved = [name for name in trains if METHODS[_source(name)].curve]
    for head in scope.heads:
        reuses = head == "reused"
        if reuses:
            yield from curves(curved, first, done, scope)
        pairs = [
            (model, method)
            for method in trains
            for model in scope.models
            if reuses or method in NEW_HEAD
            if model not in scope.brief or (reuses and _source(method) in BRIEF)
        ]
        for model, method in pairs:
            yield from tuning_cells(model, head, method, scope)
        for seed in scope.pretrain_seeds:
            for model in scope.models if reuses else ():
                yield Cell(model, head, "zero_shot", 0.0, "", seed, 0)
            for model, method in pairs:
                yield from selected(model, head, method, seed, done, scope)
    for seed in others if "reused" in scope.heads else ():
        yield from curves(curved, seed, done, scope)


def curves(
    methods: list[str], pretrain_seed: int, done: Validation, scope: Scope
) -> Iterator[Cell]:
    """The main methods at all learning rates, with the reused head."""
    for method in methods if scope.curve else ():
        for model in scope.models:
            # Where there is a second choice, the curve is at the one chosen.
            if len(METHODS[_source(method)].values) > 1:
                yield from tuning_cells(model, "reused", method, scope)
            yield from curve(model, "reused", method, pretrain_seed, done, scope)


def curve(
    model: str, head: str, method: str, pretrain_seed: int, done: Validation, scope: Scope
) -> Iterator[Cell]:
    """A main method at every learning rate of the curve; WiSE-FT at every alpha, too."""
    if method in DERIVED:
        recipe = DERIVED[method]
        settings = [setting(recipe.name, x) for x in recipe.values]
    elif len(METHODS[method].values) == 1:
        settings = [""]
    else:
        choice = chosen(model, head, method, done, scope)
        if choice is None:
            return
        settings = [choice[1]]
    for rate in METHODS[_source(method)].curve:
        for seed in scope.seeds:
            for text in settings:
                yield Cell(model, head, method, rate, text, pretrain_seed, seed)


def selected(
    model: str, head: str, method: str, pretrain_seed: int, done: Validation, scope: Scope
) -> Iterator[Cell]:
    """A method at the setting that validation prefers, once that is known."""
    choice = chosen(model, head, method, done, scope)
    if choice is not None:
        for seed in scope.seeds:
            yield Cell(model, head, method, *choice, pretrain_seed, seed)


def seconds(job: Job, steps: int) -> float:
    """Of one core, by a rough estimate."""
    unit = STEP_MS[job.trained.model] * steps / 1000
    fits = sum(cell.method == "tpgm_posthoc" for cell in job.wanted)
    relative = RELATIVE.get(job.trained.method, 1.0)
    return unit * (relative + TEST * len(job.wanted) + POSTHOC * fits)


def expected(done: Validation, scope: Scope) -> list[Job]:
    """All jobs, those too that wait for tuning: as if validation chose the first setting."""
    assumed = dict(done)
    for head in scope.heads:
        for model in scope.models:
            for method in (*METHODS, *DERIVED):
                for learning_rate, text in candidates(method, scope):
                    for seed in scope.tuning_seeds:
                        key = Cell(model, head, method, learning_rate, text, 0, seed)
                        assumed.setdefault(key, 0.0)
    tuning = [job for job in jobs(done, scope) if job.trained.seed in scope.tuning_seeds]
    final = [job for job in jobs(assumed, scope) if job.trained.seed not in scope.tuning_seeds]
    return [*tuning, *final]


def _source(method: str) -> str:
    return DERIVED[method].source if method in DERIVED else method
