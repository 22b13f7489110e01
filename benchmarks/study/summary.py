"""From rows to numbers: means over sets, over runs, and of paired differences."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats

from benchmarks.study import cells
from benchmarks.study.cells import Cell
from benchmarks.study.plan import Scope
from benchmarks.study.records import cell
from benchmarks.study.selection import chosen

Row = Mapping[str, str]
Pair = tuple[int, int]  # seeds of the pre-trained network and of the run


class Groups(NamedTuple):
    """Which sets a report averages; `sets` are those it shows one by one."""

    means: dict[str, tuple[str, ...]]
    sets: tuple[str, ...]

    @property
    def overall(self) -> tuple[str, tuple[str, ...]]:
        """The name of the mean over all shifts shown, and those."""
        return next((name, sets) for name, sets in self.means.items() if name.startswith("OOD"))


def groups(hidden: bool = True) -> Groups:
    """All sets; without `hidden`, none of those that nothing may be chosen by."""
    if not hidden:
        style, corruption = (
            tuple(x for x in names if x in cells.OPEN_SHIFTS)
            for names in (cells.STYLE, cells.CORRUPTION)
        )
        means = {"style (4)": style, "corruption (4)": corruption, "OOD (8)": cells.OPEN_SHIFTS}
        return Groups(means, cells.OPEN_SHIFTS)
    means = {
        "style (5)": cells.STYLE,
        "corruption (8)": cells.CORRUPTION,
        "OOD (13)": cells.SHIFTS,
        "held back (5)": cells.HELD_BACK,
        "new (3)": cells.NEW_SHIFTS,
    }
    return Groups(means, cells.SHIFTS + cells.NEW_SHIFTS)


class Study:
    """All rows, by cell."""

    def __init__(self, rows: Iterable[Row], scope: Scope):
        self.rows = {cell(row): row for row in rows}
        self.validation = {key: float(row["validation"]) for key, row in self.rows.items()}
        self.scope = scope

    def chosen(self, model: str, head: str, method: str) -> tuple[float, str] | None:
        """The setting that validation prefers; for what has none to choose, that."""
        if method == "zero_shot":
            return 0.0, ""
        return chosen(model, head, method, self.validation, self.scope)

    def runs(
        self, model: str, head: str, method: str, setting: tuple[float, str]
    ) -> dict[Pair, Row]:
        """The final runs of one setting, by seeds."""
        found = {}
        for pretrain_seed in self.scope.pretrain_seeds:
            for seed in self.scope.seeds:
                key = Cell(model, head, method, *setting, pretrain_seed, seed)
                if key in self.rows:
                    found[pretrain_seed, seed] = self.rows[key]
        return found

    def tuned(self, model: str, head: str, method: str) -> dict[Pair, Row]:
        """The final runs of the setting that validation prefers; none while that is not known."""
        choice = self.chosen(model, head, method)
        return self.runs(model, head, method, choice) if choice else {}

    def methods(self, model: str, head: str) -> list[str]:
        """Those of which there is any row, in the order of the first."""
        return list(dict.fromkeys(x.method for x in self.rows if x[:2] == (model, head)))

    def curve(
        self, model: str, head: str, method: str, setting: str
    ) -> dict[float, dict[Pair, Row]]:
        """By learning rate of the curve the final runs of those seeds that were run at all."""
        by_rate = {
            rate: self.runs(model, head, method, (rate, setting)) for rate in cells.CURVE_RATES
        }
        by_rate = {rate: runs for rate, runs in by_rate.items() if runs}
        shared = set[Pair].intersection(*map(set, by_rate.values())) if by_rate else set()
        return {
            rate: {pair: row for pair, row in runs.items() if pair in shared}
            for rate, runs in by_rate.items()
            if shared
        }


def values(runs: Mapping[Pair, Row], sets: Iterable[str]) -> np.ndarray:
    """Mean over the sets of each run's accuracy, `[runs]`, in percent."""
    names = tuple(sets)
    return np.array([np.mean([float(row[name]) for name in names]) for row in runs.values()])


def spread(x: np.ndarray) -> float:
    """Standard deviation over runs, of one network each; of a single one there is none."""
    return float(x.std(ddof=1)) if len(x) > 1 else float("nan")


class Difference(NamedTuple):
    """A paired difference in points, its 95 % interval, and of how many pairs of runs it is."""

    mean: float
    low: float
    high: float
    pairs: int


def difference(a: Mapping[Pair, Row], b: Mapping[Pair, Row], sets: Iterable[str]) -> Difference:
    """Of `a` and `b` at equal seeds: same network, same batches.

    Student's t over the means of each pre-trained network, as pairs of one network are much more
    alike than others; of a single network, over its pairs.
    """
    shared, names = [pair for pair in a if pair in b], tuple(sets)
    first, second = ({pair: x[pair] for pair in shared} for x in (a, b))
    x = values(first, names) - values(second, names)
    pairs, networks = len(x), np.array([network for network, _ in shared])
    if len(set(networks.tolist())) > 1:
        x = np.array(
            [x[networks == network].mean() for network in dict.fromkeys(networks.tolist())]
        )
    if len(x) < 2:
        return Difference(float(x.mean()) if len(x) else float("nan"), np.nan, np.nan, pairs)
    half = half_interval(x)
    return Difference(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half, pairs)


def half_interval(x: np.ndarray) -> float:
    """Half of the 95 % interval of a mean, by Student's t."""
    return float(stats.t.ppf(0.975, len(x) - 1)) * spread(x) / len(x) ** 0.5
