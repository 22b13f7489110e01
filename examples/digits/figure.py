"""The results as one picture.

Titles name what is shown. The statements below them are computed from the results, so that they
hold for any seed.
"""

from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from examples.digits.methods import LABELS
from examples.digits.summary import percent

# Okabe and Ito's palette for colour-blind readers. The markers differ too.
STYLES = {
    "adam": ("#D55E00", "o"),
    "wise_ft": ("#E69F00", "v"),
    "tpgm_post_hoc": ("#CC79A7", "D"),
    "tpgm": ("#009E73", "s"),
    "ftp": ("#0072B2", "^"),
}
GREY = "#808080"  # on light and on dark pages

# A radius can collapse to 1e-8. Without a floor it would stretch the axis over all others.
FLOOR = 1e-3

Samples = dict[str, tuple[list[str], list[np.ndarray]]]


def figure(results: dict[str, Any], samples: Samples) -> Figure:
    """Draws the whole picture.

    Args:
        results: as written to `results.json`.
        samples: by heading, a list of names and their images `[n, 16, 16]`.
    """
    made = Figure(figsize=(12.5, 10.6), dpi=140, layout="constrained")
    made.suptitle(
        "A network that reads printed digits is fine-tuned on handwritten ones:\n"
        "what it gains, what it forgets, and how far each layer is allowed to move"
        + ("\n(a rehearsal, trained too little to mean anything)" if results["fast"] else ""),
        fontsize=14,
        fontweight="bold",
    )
    rows = made.subfigures(3, 1, squeeze=False, height_ratios=(1.15, 2.4, 2.0), hspace=0.03)
    top, middle, bottom = rows.ravel()
    show_samples(top, samples)
    show_accuracies(middle, results)
    show_radii(bottom, results)
    return made


def show_samples(figure: SubFigure, samples: Samples) -> None:
    """Examples of each distribution: a column for each kind of image."""
    widths = [len(names) for names, _ in samples.values()]
    panels = figure.subplots(1, len(samples), width_ratios=widths)
    for axes, (heading, (names, columns)) in zip(panels, samples.items(), strict=True):
        # `[names, n, 16, 16]`, each in a white frame, to one image.
        framed = np.pad(columns, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=1)
        side = framed.shape[-1]
        tiles = framed.transpose(1, 2, 0, 3).reshape(-1, len(names) * side)
        axes.imshow(tiles, cmap="gray", vmin=0, vmax=1)
        axes.set_xticks((np.arange(len(names)) + 0.5) * side - 0.5, names, fontsize=8)
        axes.set_yticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(heading, fontsize=11)


def show_accuracies(figure: SubFigure, results: dict[str, Any]) -> None:
    """Accuracy against the learning rate, a panel for each group of sets."""
    titles = {
        "handwritten": "More handwritten digits\n(the training distribution; own scale)",
        "all shifts": "Under shift\n(mean of all 13 sets)",
        "style": "Shifts of style\n(mean of 5 sets)",
        "corruption": "Corruptions\n(mean of 8 sets)",
    }
    rates = [entry["learning_rate"] for entry in results["methods"]["adam"]]
    panels = figure.subplots(1, len(titles))
    for axes, (group, title) in zip(panels, titles.items(), strict=True):
        changes = []
        for name, entries in results["methods"].items():
            colour, marker = STYLES[name]
            runs = np.array([percent(entry["accuracy"], group) for entry in entries])
            axes.plot(rates, runs.mean(1), color=colour, marker=marker, lw=2)
            axes.fill_between(rates, runs.min(1), runs.max(1), color=colour, alpha=0.2, lw=0)
            if name in ("adam", "tpgm", "ftp"):
                change = runs[-1].mean() - runs[0].mean()
                changes.append(f"{LABELS[name]} {change:+.1f}")
        axes.set_title(title, fontsize=11)
        axes.set_xscale("log")
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.minorticks_off()
        axes.set_xlabel(
            f"learning rate\n\nchange from {rates[0]:g} to {rates[-1]:g}, in points:\n"
            + ", ".join(changes),
            fontsize=9,
        )
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        _show_zero_shot(axes, float(percent(results["zero_shot"], group)[0]))
    panels[0].set_ylabel("accuracy (%)")
    # These three share a scale to be compared. On it, the first would be flat.
    lowest = min(axes.get_ylim()[0] for axes in panels[1:])
    highest = max(axes.get_ylim()[1] for axes in panels[1:])
    for axes in panels[1:]:
        axes.set_ylim(lowest, highest)
    handles: list[Artist] = [_key(name, LABELS[name], ls="-") for name in STYLES]
    handles.append(Line2D([], [], color=GREY, ls="--", label="zero-shot (before fine-tuning)"))
    if results["settings"]["repeats"] > 1:
        handles.append(Patch(color=GREY, alpha=0.2, lw=0, label="range of the repeats"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)


def _show_zero_shot(axes: Axes, value: float) -> None:
    """Draws a dashed line, or a note if the value is far below all others."""
    low, high = axes.get_ylim()
    if value > low - 1.5 * (high - low):
        axes.axhline(value, color=GREY, ls="--", lw=1.5)
    else:
        at = {"xycoords": "axes fraction", "color": GREY, "fontsize": 9}
        axes.annotate(f"↓ zero-shot, far below: {value:.1f}", (0.03, 0.03), **at)


def show_radii(figure: SubFigure, results: dict[str, Any]) -> None:
    """The radius of each layer, beside the distance that plain Adam moved."""
    rate = results["methods"]["adam"][-1]["learning_rate"]
    left, right = figure.subfigures(1, 2, squeeze=False, wspace=0.02).ravel()
    for half, norm, methods, title, unit in (
        (left, "mars", ("tpgm", "ftp"), "while training", "L1, for any row"),
        (right, "l2", ("tpgm_post_hoc",), "after training", "L2, for the whole tensor"),
    ):
        half.suptitle(f"Radii learned {title}, at learning rate {rate:g}", fontsize=11)
        moved = {"adam": results["moved"][-1][norm]}
        shown = moved | {method: results["methods"][method][-1]["radii"] for method in methods}
        panels = half.subplots(1, 2)
        for axes, kind, name in zip(panels, ("kernel", "bias"), ("weights", "biases"), strict=True):
            for method, values in shown.items():
                _show_layers(axes, method, kind, values)
            axes.set_title(name, fontsize=10)
            _log_scale(axes)
            axes.grid(axis="y", alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel(f"distance from pre-trained\n({unit})")
        handles = [_key("adam", "how far plain Adam went", ls=":")]
        handles += [
            _key(x, f"radius of {LABELS[x]}: the farthest allowed", ls=":") for x in methods
        ]
        half.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=9, frameon=False)


def _show_layers(axes: Axes, method: str, kind: str, values: dict[str, list[float]]) -> None:
    """One method's radii or distances: the median of the repeats, and their range."""
    names = [name for name in values if name.endswith(kind)]
    names.sort(key=lambda name: ("head" in name, name))
    runs = np.maximum([values[name] for name in names], FLOOR)
    colour, marker = STYLES[method]
    places = np.arange(len(names))
    axes.vlines(places, runs.min(1), runs.max(1), color=colour, lw=1.5)
    axes.plot(places, np.median(runs, 1), color=colour, marker=marker, ls=":", ms=7)
    for place in places[(runs <= FLOOR).any(1)]:
        at = {"xytext": (-7, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
        axes.annotate("≈ 0", (place, FLOOR), color=colour, fontsize=8, **at)
    axes.set_xlim(-0.8, len(names) - 0.5)
    axes.set_xticks(places, [name.split("/")[-2].replace("_", " ") for name in names])
    axes.tick_params(axis="x", labelsize=8)


def _log_scale(axes: Axes) -> None:
    """A logarithmic axis with room at both ends, labelled in plain numbers."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.3, high * 1.3)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _key(method: str, label: str, ls: str) -> Line2D:
    """An entry of a legend."""
    colour, marker = STYLES[method]
    return Line2D([], [], color=colour, marker=marker, ls=ls, label=label)
