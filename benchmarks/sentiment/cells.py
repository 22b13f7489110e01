"""What one row of the study is, and the order of the work."""

from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.recording import setting
from benchmarks.sentiment.methods import DERIVED, METHODS
from examples.sentiment.texts import DOMAINS

SOURCES = ("movie", "amazon")
# "probed": the head starts as a logistic regression on the features. "fresh": it starts at random.
# No method constrains it.
HEADS = ("probed", "fresh")
RATES = (1e-3, 3e-4, 1e-4, 3e-5)
SEEDS = (0, 1, 2, 3, 4)


class Cell(NamedTuple):
    """One run: what identifies a row.

    Attributes:
        source: the domain of training and validation.
        head: of `HEADS`.
        method: as `methods` names it; "probe" before any fine-tuning.
        learning_rate: the highest; 0 if nothing is trained.
        setting: a method's other choice, as "weight=0.1"; empty if it has none.
        seed: of the order of the batches, and of a fresh head.
    """

    source: str
    head: str
    method: str
    learning_rate: float
    setting: str
    seed: int


KEYS = Cell._fields
COLUMNS = (*KEYS, "seconds", "validation", *DOMAINS, *(f"{name}_auc" for name in DOMAINS))


class Job(NamedTuple):
    """One training, and the rows that follow from it."""

    trained: Cell
    rows: tuple[Cell, ...]


def jobs() -> Iterator[Job]:
    """All trainings of the study, the most important first.

    The first setting of each method on movies with a probed head; then the fresh head, then
    Amazon; then two more seeds of each; then the other settings.
    """
    for first in (True, False):
        for seeds in (SEEDS[:1], SEEDS[1:3], SEEDS[3:]):
            for source, head in (("movie", "probed"), ("movie", "fresh"), ("amazon", "probed")):
                for seed in seeds:
                    yield from of_seed(source, head, seed, first)


def of_seed(source: str, head: str, seed: int, first: bool) -> Iterator[Job]:
    """The trainings of one seed, with the first setting of each method, or with the others."""
    if first and head == "probed" and seed == 0:
        probe = Cell(source, head, "probe", 0.0, "", 0)
        yield Job(probe, (probe,))
    # The smallest rate comes last: no method does anything there.
    for rates in (RATES[:-1], RATES[-1:]):
        for method, recipe in METHODS.items():
            chosen = recipe.values[:1] if first else recipe.values[1:]
            for value in chosen:
                for rate in rates:
                    key = Cell(source, head, method, rate, setting(recipe.name, value), seed)
                    yield Job(key, (key, *derived(key)))


def derived(trained: Cell) -> Iterator[Cell]:
    """The rows of methods that change what this run trained."""
    for method, recipe in DERIVED.items():
        if recipe.source == trained.method and recipe.setting == trained.setting:
            for value in recipe.values:
                yield trained._replace(method=method, setting=setting(recipe.name, value))
