"""The pictures of the page."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from benchmarks.study import cells
from benchmarks.study.cells import KEYS
from benchmarks.study.summary import Groups, Row, Study, spread, values
from benchmarks.study.tables import LABELS, MODEL_LABELS, curved

# Okabe and Ito's colours, which the colour-blind tell apart; the markers differ as well.
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


def over_rates(study: Study, shown: Groups) -> Figure:
    """ID and OOD against the learning rate, a column for each model."""
    name, overall = shown.overall
    models = [model for model in cells.MODELS if curved(study, model)]
    made = Figure(figsize=(4.2 * max(len(models), 1), 7.2), dpi=120, layout="constrained")
    panels = made.subplots(2, max(len(models), 1), squeeze=False, sharex=True)
    for column, model in enumerate(models):
        for method, setting in curved(study, model):
            by_rate = study.curve(model, "reused", method, setting)
            for row, sets in enumerate((("id",), overall)):
                runs = [values(x, sets) for x in by_rate.values()]
                colour, marker = STYLES[method]
                label = LABELS[method]  # its setting differs from model to model
                axes = panels[row, column]
                axes.plot(
                    list(by_rate),
                    [x.mean() for x in runs],
                    color=colour,
                    marker=marker,
                    ls="--" if method.endswith("_mean") else "-",
                    label=label,
                )
                apart = [np.nan_to_num(spread(x)) for x in runs]
                axes.fill_between(
                    list(by_rate),
                    [x.mean() - y for x, y in zip(runs, apart, strict=True)],
                    [x.mean() + y for x, y in zip(runs, apart, strict=True)],
                    color=colour,
                    alpha=0.1,
                    lw=0,
                )
        panels[0, column].set_title(MODEL_LABELS[model])
        panels[0, column].set_ylim(bottom=_floor(panels[0, column], 85))
        panels[1, column].set_xlabel("learning rate of Adam")
        panels[1, column].set_xscale("log")
        panels[1, column].set_xticks(cells.CURVE_RATES, [f"{x:g}" for x in cells.CURVE_RATES])
        panels[1, column].minorticks_off()
    for axes in panels.flat:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("ID accuracy, %")
    panels[1, 0].set_ylabel(f"mean accuracy, %: {name}")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return made


def against_each_other(study: Study, shown: Groups) -> Figure:
    """OOD against ID, a line along the learning rates for each method."""
    name, overall = shown.overall
    models = [model for model in cells.MODELS if curved(study, model)]
    made = Figure(figsize=(4.2 * max(len(models), 1), 4.6), dpi=120, layout="constrained")
    panels = made.subplots(1, max(len(models), 1), squeeze=False)[0]
    for axes, model in zip(panels, models, strict=False):
        for method, setting in curved(study, model):
            runs = study.curve(model, "reused", method, setting)
            colour, marker = STYLES[method]
            x = [values(r, ["id"]).mean() for r in runs.values()]
            y = [values(r, overall).mean() for r in runs.values()]
            style = "--" if method.endswith("_mean") else "-"
            axes.plot(x, y, color=colour, marker=marker, ls=style, label=LABELS[method], alpha=0.8)
            sizes = 18 + 22 * np.arange(len(x))  # larger towards the highest rate
            axes.scatter(x, y, s=sizes, color=colour, marker=marker)
        axes.set(title=MODEL_LABELS[model], xlabel="ID accuracy, %")
        axes.set_xlim(left=_floor(axes, 90, "x"))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"mean accuracy, %: {name}")
    handles, labels = panels[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return made


def radii(rows: Sequence[Row]) -> Figure:
    """Final radii of the learned-radius methods, by tensor, at learning rate 1e-2."""
    # A run that was made again, for what is derived from it, is there twice.
    once = {tuple(row[key] for key in (*KEYS, "tensor")): row for row in rows}
    rows = [
        row
        for row in once.values()
        if row["head"] == "reused" and float(row["learning_rate"]) == 1e-2
        if int(row["seed"]) in cells.SEEDS
    ]
    made = Figure(figsize=(13, 5.4), dpi=120, layout="constrained")
    panels = made.subplots(1, len(cells.MODELS))
    methods = [x for x in ("ftp", "ftp_anchor", "tpgm") if any(r["method"] == x for r in rows)]
    for axes, model in zip(panels, cells.MODELS, strict=True):
        mine = [row for row in rows if row["model"] == model]
        tensors = list(dict.fromkeys(row["tensor"] for row in mine))
        for method in methods:
            colour, marker = STYLES[method]
            found = [
                [float(r["radius"]) for r in mine if (r["method"], r["tensor"]) == (method, tensor)]
                for tensor in tensors
            ]
            means = [np.mean(x) if x else np.nan for x in found]
            label = LABELS[method]
            axes.plot(means, range(len(tensors)), marker, color=colour, label=label, ms=4)
        names = [name.removeprefix("params/") for name in tensors]
        axes.set_yticks(range(len(names)), names, fontsize=5 if len(names) > 30 else 8)
        axes.set(title=MODEL_LABELS[model], xlabel="radius (L1 norm of a row)", xscale="log")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    if methods and any(row["model"] == cells.MODELS[0] for row in rows):
        panels[0].legend(frameon=False, fontsize=8)
    return made


def _floor(axes: object, value: float, axis: str = "y") -> float:
    """Not below `value`: one collapsed run would squeeze all others together."""
    low, _ = getattr(axes, f"get_{axis}lim")()
    return max(low, value)
