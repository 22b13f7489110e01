"""Numbers from the recorded rows: the settings that validation chose, and their runs."""

from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.study import cells
from benchmarks.tables import half_interval

# pandas declares unions that pyright cannot narrow, such as DataFrame or Series.
Frame = Any

OOD = "OOD (13)"
MEANS = {
    "style (5)": cells.STYLE,
    "corruption (8)": cells.CORRUPTION,
    OOD: cells.SHIFTS,
    "held back (5)": cells.HELD_BACK,
    "new (3)": cells.NEW_SHIFTS,
}
METHOD = ["model", "head", "method"]


def read(path: Path) -> Frame:
    """The rows of a CSV. The mean over each group of test sets is a further column."""
    rows: Frame = pd.read_csv(path, keep_default_na=False)
    for name, sets in MEANS.items():
        if set(sets) <= set(rows):
            rows[name] = rows[list(sets)].mean(axis=1)
    return rows


def chosen(rows: Frame) -> Frame:
    """The learning rate and setting of each method with the best mean validation accuracy.

    Ties are common, because there are 148 images and two seeds. They go to the smallest learning
    rate, then to the setting that stays closest to the anchor.
    """
    tuning = rows[rows.seed.isin(cells.TUNING_SEEDS)]
    tried = tuning.groupby([*METHOD, "learning_rate", "setting"], as_index=False).validation.mean()
    # Rounded, because the means of equal counts may differ in their last digit.
    tried["validation"] = -tried.validation.round(2)
    tried["distance"] = tried.setting.map(distance)
    best = tried.sort_values(["validation", "learning_rate", "distance"])
    return best.drop_duplicates(METHOD)[[*METHOD, "learning_rate", "setting"]]


def distance(setting: str) -> float:
    """Orders the settings of a method from the one that stays closest to the anchor."""
    name, _, number = setting.partition("=")
    # Weights and strengths pull towards the anchor. Alpha, radius and decay weaken the pull.
    return float(number or 0) * (-1 if name in ("weight", "strength") else 1)


def tuned(rows: Frame) -> Frame:
    """The final runs of each method at the chosen setting, and the networks before fine-tuning."""
    final = rows[rows.seed.isin(cells.SEEDS)]
    runs = pd.concat([final[final.method == "zero_shot"], final.merge(chosen(rows))])
    return runs.set_index([*METHOD, "pretrain_seed", "seed"]).sort_index()


def curves(rows: Frame) -> Frame:
    """The final runs at every learning rate, at the setting that was chosen."""
    final = rows[rows.seed.isin(cells.SEEDS) & (rows["head"] == "reused")]
    runs = final.merge(chosen(rows)[[*METHOD, "setting"]])
    runs = runs[runs.learning_rate.isin(cells.CURVE_RATES)]
    rates = runs.groupby(["model", "method"]).learning_rate.transform("nunique")
    index = ["model", "method", "learning_rate", "pretrain_seed", "seed"]
    return runs[rates == len(cells.CURVE_RATES)].set_index(index).sort_index()


def difference(a: Frame, b: Frame) -> tuple[float, float]:
    """The mean difference of runs with equal seeds (the index), and half of its 95 % interval.

    Student's t over the means of the pre-trained networks, because the pairs of one network are
    much more alike than others.
    """
    by_network = (a - b).groupby("pretrain_seed").mean()
    return by_network.mean(), half_interval(by_network.to_numpy())
