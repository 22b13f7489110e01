"""The rows of the study, and the order of the work."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from benchmarks.recording import setting
from benchmarks.sentiment.methods import DERIVED, METHODS
from examples.sentiment.texts import DOMAINS

SOURCES = ("movie", "amazon")
RATES = (1e-3, 3e-4, 1e-4, 3e-5)
SEEDS = (0, 1, 2, 3, 4)


class Cell(NamedTuple):
    """One run: the columns that identify a row.

    Attributes:
        source: the domain of training and validation.
        head: "probed" starts as a logistic regression on the features, "fresh" at random. No method
            constrains it.
        method: as `methods` names it; "probe" before any fine-tuning.
        learning_rate: the highest; 0 if nothing is trained.
        setting: a method's other choice, such as "weight=0.1"; empty if it has none.
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

    On movies with a probed head, each method has all rates and seeds with its first setting. Its
    other settings, the fresh head and Amazon have two seeds, and not the smallest rate, where most
    methods do little: all of them with five seeds and four rates are 1,082 trainings.
    """
    main, fresh, amazon = ("movie", "probed"), ("movie", "fresh"), ("amazon", "probed")
    for source in SOURCES:
        probe = Cell(source, "probed", "probe", 0.0, "", 0)
        yield Job(probe, (probe,))
    for seed in SEEDS:
        yield from of_seed(*main, seed, first=True, rates=RATES)
    for seed in SEEDS[:2]:
        for start, first in ((fresh, True), (amazon, True), (main, False)):
            yield from of_seed(*start, seed, first=first, rates=RATES[:-1])


def of_seed(
    source: str, head: str, seed: int, first: bool, rates: Sequence[float]
) -> Iterator[Job]:
    """The trainings of one seed, with the first setting of each method, or with the others.

    Adapters are trained on movies with a probed head alone.
    """
    for method, recipe in METHODS.items():
        if recipe.adapters and (source, head) != ("movie", "probed"):
            continue
        for value in recipe.values[:1] if first else recipe.values[1:]:
            for rate in rates:
                key = Cell(source, head, method, rate, setting(recipe.name, value), seed)
                yield Job(key, (key, *derived(key)))


def derived(trained: Cell) -> Iterator[Cell]:
    """The rows of methods that change what this run trained."""
    for method, recipe in DERIVED.items():
        if recipe.source == trained.method and recipe.setting == trained.setting:
            for value in recipe.values:
                yield trained._replace(method=method, setting=setting(recipe.name, value))
