"""The figures of the page, drawn in the colours of a theme."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.study import cells
from benchmarks.study.summary import OOD, Frame
from benchmarks.study.tables import LABELS, MODEL_LABELS

# Colours that show on light and on dark pages, most of them Okabe and Ito's, which colour-blind
# readers can tell apart; the markers differ as well.
STYLES = {
    "finetune": ("#D55E00", "o"),
    "finetune_mean": ("#D55E00", "x"),
    "wise": ("#E69F00", "v"),
    "l2sp": ("#56B4E9", "P"),
    "tpgm_posthoc": ("#CC79A7", "D"),
    "tpgm": ("#009E73", "s"),
    "tpgm_anchor": ("#009E73", "X"),
    "ftp": ("#1F7FD6", "^"),
    "ftp_anchor": ("ink", "h"),
    "ftp_anchor_mean": ("ink", "+"),
    "recommended": ("#A65FE0", "*"),
}
CURVED = [name for name in LABELS if name in STYLES]

Colours = Mapping[str, str]


def over_rates(curves: Frame, colours: Colours) -> Figure:
    """ID and OOD against the learning rate, a column for each model."""
    made, panels = _panels(2, 6.4)
    for model, column in zip(cells.MODELS, panels.T, strict=True):
        for axes, name in zip(column, ("id", OOD), strict=True):
            by_rate = curves.loc[model].groupby(["method", "learning_rate"])[name]
            for method in CURVED:
                x, apart = by_rate.mean()[method], by_rate.std()[method]
                style = _style(method, colours)
                axes.plot(x.index, x, **style)
                shade = {"color": style["color"], "alpha": 0.1, "lw": 0}
                axes.fill_between(x.index, x - apart, x + apart, **shade)
        # One collapsed run would squeeze all others together.
        column[0].set_ylim(bottom=max(column[0].get_ylim()[0], 85))
        column[1].set(xlabel="learning rate of Adam", xscale="log")
        column[1].set_xticks(cells.CURVE_RATES, [f"{x:g}" for x in cells.CURVE_RATES])
        column[1].minorticks_off()
    panels[0, 0].set_ylabel("ID accuracy, %")
    panels[1, 0].set_ylabel("mean accuracy under shift, %")
    return _with_legend(made, colours)


def against_each_other(curves: Frame, colours: Colours) -> Figure:
    """OOD against ID, a line along the learning rates for each method."""
    made, panels = _panels(1, 4.4)
    for axes, model in zip(panels, cells.MODELS, strict=True):
        means = curves.loc[model].groupby(["method", "learning_rate"])[["id", OOD]].mean()
        for method in CURVED:
            (x, y), style = means.loc[method].to_numpy().T, _style(method, colours)
            axes.plot(x, y, **style, alpha=0.8)
            # Larger towards the highest rate.
            sizes = {"s": 14 + 16 * np.arange(len(x)), "marker": style["marker"]}
            axes.scatter(x, y, color=style["color"], **sizes)
        axes.set(xlabel="ID accuracy, %")
        axes.set_xlim(left=max(axes.get_xlim()[0], 90))
    panels[0].set_ylabel("mean accuracy under shift, %")
    return _with_legend(made, colours)


def radii(rows: Frame, colours: Colours) -> Figure:
    """Final radii of each tensor, the mean over runs at learning rate 1e-2 with the reused head."""
    rows = rows[(rows["head"] == "reused") & (rows.learning_rate == 1e-2)]
    rows = rows[rows.seed.isin(cells.SEEDS)].drop_duplicates([*cells.KEYS, "tensor"], keep="last")
    made, panels = _panels(1, 5.4)
    for axes, model in zip(panels, cells.MODELS, strict=True):
        mine = rows[rows.model == model]
        tensors = mine.tensor.unique()
        means = mine.groupby(["method", "tensor"]).radius.mean()
        for method in ("ftp", "ftp_anchor", "tpgm"):
            style = _style(method, colours) | {"ls": ""}
            axes.plot(means[method].reindex(tensors), range(len(tensors)), **style)
        names = [name.removeprefix("params/") for name in tensors]
        axes.set_yticks(range(len(names)), names, fontsize=5 if len(names) > 30 else 8)
        axes.set(xlabel="radius (L1 norm of a row)", xscale="log")
    return _with_legend(made, colours)


def _style(method: str, colours: Colours) -> dict[str, Any]:
    colour, marker = STYLES[method]
    dashes = "--" if method.endswith("_mean") else "-"
    style = {"color": colours.get(colour, colour), "marker": marker, "ms": 5}
    return style | {"ls": dashes, "label": LABELS[method]}


def _panels(rows: int, height: float) -> tuple[Figure, np.ndarray]:
    """A figure with a column for each model."""
    figure = Figure(figsize=(9.6, height), layout="constrained")
    panels = figure.subplots(rows, 3, sharex=rows > 1)
    for axes in panels.flat:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes, label in zip(np.atleast_2d(panels)[0], MODEL_LABELS.values(), strict=True):
        axes.set_title(label)
    return figure, panels


def _with_legend(figure: Figure, colours: Colours) -> Figure:
    legend = figure.axes[0].get_legend_handles_labels()
    style: Any = {"loc": "outside lower center", "labelcolor": colours["ink"]}
    figure.legend(*legend, ncols=3, frameon=False, **style)
    return figure
