"""The figures of the page."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.study import cells
from benchmarks.study.summary import OOD, Frame
from benchmarks.study.tables import LABELS, MODEL_LABELS

# Okabe and Ito's colours, which colour-blind readers can tell apart; the markers differ as well.
STYLES = {
    "finetune": ("#D55E00", "o"),
    "finetune_mean": ("#D55E00", "x"),
    "wise": ("#E69F00", "v"),
    "l2sp": ("#56B4E9", "P"),
    "tpgm_posthoc": ("#CC79A7", "D"),
    "tpgm": ("#009E73", "s"),
    "tpgm_anchor": ("#009E73", "X"),
    "ftp": ("#0072B2", "^"),
    "ftp_anchor": ("#000000", "h"),
    "ftp_anchor_mean": ("#000000", "+"),
    "recommended": ("#882255", "*"),
}
CURVED = [name for name in LABELS if name in STYLES]


def over_rates(curves: Frame) -> Figure:
    """ID and OOD against the learning rate, a column for each model."""
    made, panels = _panels(2, 12.6, 7.2)
    for model, column in zip(cells.MODELS, panels.T, strict=True):
        for axes, name in zip(column, ("id", OOD), strict=True):
            by_rate = curves.loc[model].groupby(["method", "learning_rate"])[name]
            for method in CURVED:
                x, apart = by_rate.mean()[method], by_rate.std()[method]
                axes.plot(x.index, x, **_line(method))
                shade = {"color": STYLES[method][0], "alpha": 0.1, "lw": 0}
                axes.fill_between(x.index, x - apart, x + apart, **shade)
        # One collapsed run would squeeze all others together.
        column[0].set_ylim(bottom=max(column[0].get_ylim()[0], 85))
        column[0].set_title(MODEL_LABELS[model])
        column[1].set(xlabel="learning rate of Adam", xscale="log")
        column[1].set_xticks(cells.CURVE_RATES, [f"{x:g}" for x in cells.CURVE_RATES])
        column[1].minorticks_off()
    panels[0, 0].set_ylabel("ID accuracy, %")
    panels[1, 0].set_ylabel(f"mean accuracy, %: {OOD}")
    return _with_legend(made, panels[0, 0])


def against_each_other(curves: Frame) -> Figure:
    """OOD against ID, a line along the learning rates for each method."""
    made, panels = _panels(1, 12.6, 4.6)
    for axes, model in zip(panels, cells.MODELS, strict=True):
        means = curves.loc[model].groupby(["method", "learning_rate"])[["id", OOD]].mean()
        for method in CURVED:
            x, y = means.loc[method].to_numpy().T
            axes.plot(x, y, **_line(method), alpha=0.8)
            colour, marker = STYLES[method]
            # Larger towards the highest rate.
            axes.scatter(x, y, s=18 + 22 * np.arange(len(x)), color=colour, marker=marker)
        axes.set(title=MODEL_LABELS[model], xlabel="ID accuracy, %")
        axes.set_xlim(left=max(axes.get_xlim()[0], 90))
    panels[0].set_ylabel(f"mean accuracy, %: {OOD}")
    return _with_legend(made, panels[0])


def radii(rows: Frame) -> Figure:
    """Final radii of each tensor, the mean over runs at learning rate 1e-2 with the reused head."""
    rows = rows[(rows["head"] == "reused") & (rows.learning_rate == 1e-2)]
    rows = rows[rows.seed.isin(cells.SEEDS)].drop_duplicates([*cells.KEYS, "tensor"], keep="last")
    made, panels = _panels(1, 13, 5.4)
    for axes, model in zip(panels, cells.MODELS, strict=True):
        mine = rows[rows.model == model]
        tensors = mine.tensor.unique()
        means = mine.groupby(["method", "tensor"]).radius.mean()
        for method in ("ftp", "ftp_anchor", "tpgm"):
            colour, marker = STYLES[method]
            found = means[method].reindex(tensors)
            axes.plot(found, range(len(found)), marker, color=colour, label=LABELS[method], ms=4)
        names = [name.removeprefix("params/") for name in tensors]
        axes.set_yticks(range(len(names)), names, fontsize=5 if len(names) > 30 else 8)
        axes.set(title=MODEL_LABELS[model], xlabel="radius (L1 norm of a row)", xscale="log")
    panels[0].legend(frameon=False, fontsize=8)
    return made


def _line(method: str) -> dict[str, str]:
    colour, marker = STYLES[method]
    dashes = "--" if method.endswith("_mean") else "-"
    return {"color": colour, "marker": marker, "ls": dashes, "label": LABELS[method]}


def _panels(rows: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A figure with a column for each model."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    panels = figure.subplots(rows, 3, sharex=rows > 1)
    for axes in panels.flat:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _with_legend(figure: Figure, axes: Axes) -> Figure:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure
