"""Which setting of a method is used: in-distribution validation decides, and nothing else."""

from collections.abc import Iterator, Mapping
from typing import Protocol

from benchmarks.study.cells import TUNING_PRETRAIN_SEED, Cell, setting
from benchmarks.study.methods import DERIVED, METHODS

# By cell its validation accuracy, in percent.
Validation = Mapping[Cell, float]


class Tuned(Protocol):
    """The part of a plan's scope that matters here."""

    @property
    def tuning_seeds(self) -> tuple[int, ...]: ...
    @property
    def settings(self) -> int | None: ...


def candidates(method: str, scope: Tuned) -> list[tuple[float, str]]:
    """Learning rate and setting of all that is tried, from what keeps closest to the anchor.

    Nine for each method that trains. What is derived from the nine fine-tunings costs no training,
    and may try its own choice on each: five times as many for WiSE-FT.
    """
    recipe = DERIVED[method] if method in DERIVED else METHODS[method]
    rates = METHODS[DERIVED[method].source if method in DERIVED else method].rates
    pairs = [(rate, setting(recipe.name, x)) for rate in rates for x in recipe.values]
    return pairs[: scope.settings]


def tuning_cells(model: str, head: str, method: str, scope: Tuned) -> Iterator[Cell]:
    """The runs from which a setting is chosen."""
    for learning_rate, text in candidates(method, scope):
        for seed in scope.tuning_seeds:
            yield Cell(model, head, method, learning_rate, text, TUNING_PRETRAIN_SEED, seed)


def chosen(
    model: str, head: str, method: str, done: Validation, scope: Tuned
) -> tuple[float, str] | None:
    """The candidate with the highest mean validation accuracy; None while runs are missing.

    Of equals the first: the smallest learning rate, then the strongest pull to the anchor. With
    148 images and two seeds ties are common.
    """
    best, best_accuracy = None, -1.0
    for candidate in candidates(method, scope):
        runs = [
            done.get(Cell(model, head, method, *candidate, TUNING_PRETRAIN_SEED, seed))
            for seed in scope.tuning_seeds
        ]
        known = [x for x in runs if x is not None]
        if len(known) < len(runs):
            return None
        # Rounded, or equal counts of correct answers might differ in their last digit.
        accuracy = round(sum(known) / len(known), 2)
        if accuracy > best_accuracy:
            best, best_accuracy = candidate, accuracy
    return best
