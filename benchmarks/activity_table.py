"""The runs of `benchmarks.activity`, and numbers from its table of results."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.figure import Figure

# The unit of the radius step, and the step; nothing for AdamW alone.
SETTINGS: dict[str, tuple[Any, float] | None] = {
    "AdamW": None,
    "norm 1e-2": ("norm", 1e-2),
    "anchor 1e-2": ("anchor", 1e-2),
    "anchor 3e-3": ("anchor", 3e-3),
    "anchor 1e-3": ("anchor", 1e-3),
}
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
STEPS = (300, 100)
NETWORKS: tuple[str, ...] = ("MLP", "ViT", "conv net")
RUN = ["network", "steps", "rate", "setting"]
# The fastest network also trains for longer.
TASKS = [(steps, network) for steps in STEPS for network in NETWORKS] + [(1000, "conv net")]
KINDS = {"kernels": True, "other tensors": False}
FROZEN = 1e-3  # of the anchor's size: a radius below is called frozen
COLUMNS = [*RUN, "tensor", "size", "row_length", "anchor", "distance", "pulled_back", "relative"]
COLUMNS += ["machine", "jax"]


def pace(row: Mapping[str, Any]) -> float:
    """How fast a row of AdamW may move, divided by how fast its radius may grow."""
    chosen = SETTINGS[row["setting"]]
    assert chosen is not None
    radius_step = chosen[1] * (float(row["anchor"]) if chosen[0] == "anchor" else 1.0)
    return int(row["row_length"]) * float(row["rate"]) / radius_step


def reach(row: Mapping[str, Any]) -> float:
    """The distance of a run of AdamW alone, divided by its largest possible one.

    Adam rarely moves a weight by more than the learning rate. The rates fall to 0 along a cosine,
    so their sum is half the steps times the first.
    """
    largest = int(row["size"]) ** 0.5 * float(row["rate"]) * int(row["steps"]) / 2
    return float(row["distance"]) / largest


def movements(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[Any, ...], tuple[float, float]]:
    """For each run, and for each of its tensors, the distance with FTP and with AdamW alone.

    Returns:
        By the values of `RUN` and the tensor; `None` as the tensor stands for all of them.
    """
    squares: dict[tuple[Any, ...], float] = defaultdict(float)
    for row in rows:
        for tensor in (row["tensor"], None):
            squares[*(row[x] for x in RUN), tensor] += float(row["distance"]) ** 2
    return {
        (*run, setting, tensor): (square**0.5, squares[*run, "AdamW", tensor] ** 0.5)
        for (*run, setting, tensor), square in squares.items()
        if setting != "AdamW"
    }


def medians(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bins of a third of a decade of `x`: the centres, and the median `y`, of those with points."""
    bins = np.floor(3 * np.log10(x))
    found = np.unique(bins)
    return 10 ** ((found + 0.5) / 3), np.array([np.median(y[bins == i]) for i in found])


def figure(rows: list[dict[str, Any]], colours: Mapping[str, str]) -> Figure:
    """Kernels: how far they went, and how many rows were pulled back, against the pace."""
    moved = movements(rows)
    chosen = [row for row in rows if row["setting"] != "AdamW" and kernel(row)]
    values = {
        "distance, relative to AdamW alone": lambda row: np.divide(
            *moved[*(row[x] for x in RUN), row["tensor"]]
        ),
        "share of rows pulled back": lambda row: float(row["pulled_back"]),
    }
    made = Figure(figsize=(8.4, 3.6), layout="constrained")
    for axes, (label, value) in zip(made.subplots(1, 2), values.items(), strict=True):
        for network, colour in zip(NETWORKS, ("weights", "radius", "third"), strict=True):
            these = [r for r in chosen if r["network"] == network and r["steps"] == str(STEPS[0])]
            x, y = np.array([(pace(row), value(row)) for row in these]).T
            style = {"color": colours[colour], "alpha": 0.4, "mew": 0}
            axes.semilogx(x, y, "o", ms=3, label=f"{network}, {STEPS[0]} steps", **style)
        for steps, line in zip(STEPS, ("-", "--"), strict=True):
            these = [row for row in chosen if row["steps"] == str(steps)]
            x, y = np.array([(pace(row), value(row)) for row in these]).T
            axes.plot(*medians(x, y), line, color=colours["ink"], label=f"median, {steps} steps")
        axes.axvline(1, color=colours["ink"], lw=0.8, ls=":")
        axes.set(xlabel="pace: $n$ · learning rate / radius step", ylabel=label, ylim=(-0.03, 1.4))
        axes.spines[["top", "right"]].set_visible(False)
    made.axes[1].legend(frameon=False, fontsize=8, loc="upper left", labelcolor=colours["ink"])
    return made


def kernel(row: Mapping[str, Any]) -> bool:
    return row["tensor"].endswith(("kernel", "embedding"))


def summary(rows: list[dict[str, Any]]) -> None:
    """Prints the movement of each run, and how well the rule holds."""
    moved = movements(rows)
    for steps, network in TASKS:
        for setting in list(SETTINGS)[1:]:
            pairs = [moved[network, str(steps), str(rate), setting, None] for rate in RATES]
            texts = [f"{a / b:.2f}" for a, b in pairs]
            print(f"{steps:4} {network:8} {setting:11}", *texts)
    for setting in list(SETTINGS)[1:]:
        these = [r for r in rows if (r["setting"], r["steps"]) == (setting, str(STEPS[0]))]
        for name, wanted in KINDS.items():
            parts = [
                [r for r in these if kernel(r) == wanted and r["rate"] == str(x)] for x in RATES
            ]
            shares = [f"{np.mean([float(r['relative']) < FROZEN for r in x]):4.0%}" for x in parts]
            print(f"{STEPS[0]} {name:15} {setting:11} frozen", *shares)
    for steps in map(str, STEPS):
        for rate in map(str, RATES):
            these = [r for r in rows if r["setting"] == "AdamW" and kernel(r)]
            these = [r for r in these if (r["steps"], r["rate"]) == (steps, rate)]
            shares = np.median([reach(r) for r in these])
            print(f"{steps} AdamW at {rate} goes {shares:.2f} of n times the sum of its rates")
    edges = (0, 0.3, 1, 3, 10, 30, 100, math.inf)
    for name, wanted in KINDS.items():
        for low, high in pairwise(edges):
            these = [r for r in rows if r["setting"] != "AdamW" and kernel(r) == wanted]
            these = [r for r in these if low < pace(r) <= high]
            pairs = [moved[*(r[x] for x in RUN), r["tensor"]] for r in these]
            ratios = [a / b for a, b in pairs if b > 0]
            held = np.mean([float(r["pulled_back"]) > 0.01 for r in these])
            frozen = np.mean([float(r["relative"]) < FROZEN for r in these])
            print(f"{name:16} pace {low:3g} to {high:3g}: {len(these):4} tensors, ", end="")
            print(f"median movement {np.median(ratios):.2f}, ", end="")
            print(f"{held:.0%} pulled back, {frozen:.0%} frozen")
