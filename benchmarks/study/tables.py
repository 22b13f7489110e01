"""The tables of the page, as Markdown."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from benchmarks.study import cells
from benchmarks.study.methods import DEFAULTS
from benchmarks.study.summary import MEANS, OOD, Frame, difference
from benchmarks.tables import markdown

LABELS = {
    "zero_shot": "zero-shot",
    "linear_probe": "linear probe",
    "finetune": "fine-tuning",
    "finetune_sgd": "fine-tuning, SGD",
    "lpft": "LP-FT",
    "llrd": "layer-wise rate decay",
    "wise": "WiSE-FT",
    "l2sp": "L2-SP",
    "ewc": "EWC",
    "mars_sp": "MARS-SP",
    "half": "half fine-tuning",
    "spd": "SPD",
    "ftp": "FTP",
    "tpgm": "TPGM",
    "tpgm_posthoc": "TPGM post hoc",
    "ftp_anchor": "FTP, anchor's unit",
    "ftp_anchor_mean": "the same, mean of iterates",
    "tpgm_anchor": "TPGM, anchor's unit",
    "finetune_mean": "fine-tuning, mean of iterates",
    "recommended": "recommended",
}
MODEL_LABELS = {"mlp": "MLP", "conv": "conv net", "vit": "ViT"}
BASELINES = ("finetune", "wise", "l2sp")


def labelled(table: Frame) -> str:
    """A table whose index is methods: in the order of `LABELS`, numbers with one digit."""
    ordered = table.loc[[name for name in LABELS if name in table.index]]
    text = ordered.map(lambda x: x if isinstance(x, str) else f"{x:.1f}".replace("nan", ""))
    rows = ([LABELS[row[0]], *row[1:]] for row in text.itertuples())
    return markdown(["method", *text.columns], rows)


def at_the_choice(runs: Frame) -> str:
    """Every method at the setting that validation chose; the runs of one model and head."""
    by = runs.groupby("method")
    columns = {
        "rate": by.learning_rate.first().map("{:g}".format).replace("0", ""),
        "setting": by.setting.first(),
        "valid.": by.validation.mean(),
        "ID": by.id.mean(),
        **{name: by[name].mean() for name in MEANS},
    }
    variance = runs.groupby(["method", "pretrain_seed"])[OOD].var()
    columns["± seeds"] = variance.groupby("method").mean() ** 0.5
    return labelled(pd.DataFrame({**columns, "s a run": by.seconds.median()}))


def pairs(means: Frame) -> Frame:
    """Texts such as "97.9 / 70.9", of two columns."""
    return means.apply(lambda x: "{:.1f} / {:.1f}".format(*x), axis=1)


def summary(tuned: Frame, curves: Frame) -> str:
    """All methods at the chosen settings, and the range of OOD over the rates."""
    numbers = ["id", OOD, "held back (5)", "new (3)"]
    means = tuned.xs("reused", level="head").groupby(["model", "method"])[numbers].mean()
    by_rate = curves.groupby(["model", "method", "learning_rate"])[OOD].mean()
    spans = by_rate.groupby(["model", "method"]).agg(["min", "max"])
    spans = spans.apply(lambda x: " ({:.0f} to {:.0f})".format(*x), axis=1)
    shown = means.apply(lambda x: " / ".join(f"{number:.1f}" for number in x), axis=1)
    text = (shown + spans.reindex(means.index, fill_value="")).unstack("model").fillna("")
    rows = ([LABELS[x], *text.loc[x, [*cells.MODELS]]] for x in LABELS if x in text.index)
    return markdown(["", *MODEL_LABELS.values()], rows)


def each_set(runs: Frame) -> str:
    """The same runs as in `at_the_choice`, set by set."""
    means = runs.groupby("method")[["id", *cells.SHIFTS, *cells.NEW_SHIFTS]].mean()
    means.columns = ["ID", *(x.replace("_", " ") for x in means.columns[1:])]
    return labelled(means)


def over_rates(runs: Frame) -> str:
    """ID / OOD at every learning rate, and how far OOD varies; the curves of one model."""
    means = runs.groupby(["method", "learning_rate"])[["id", OOD]].mean()
    by_rate = pairs(means).unstack()
    by_rate.columns = [f"{rate:g}" for rate in by_rate]
    by_rate["OOD varies by"] = means[OOD].groupby("method").agg(np.ptp)
    text = labelled(by_rate)
    for method, setting in runs.groupby("method").setting.first().items():
        label = f"{LABELS[method]}, {setting}" if setting else LABELS[method]
        text = text.replace(f"| {LABELS[method]} |", f"| {label} |")
    return text


def over_baselines(runs: Frame) -> str:
    """Each method minus each of the tuned baselines; the tuned runs of one model and head."""
    table = pd.DataFrame(index=runs.index.unique("method").drop("zero_shot", errors="ignore"))
    for base in BASELINES:
        for name, column in (("ID", "id"), ("OOD", OOD)):
            table[f"{name} over {LABELS[base]}"] = [
                ""
                if x == base
                else interval(*difference(runs.loc[x, column], runs.loc[base, column]))
                for x in table.index
            ]
    return labelled(table)


def interval(mean: float, half: float) -> str:
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"


def targets(tuned: Frame, curves: Frame) -> str:
    """The targets set beforehand: `recommended` minus the best of the methods to compare with.

    In ID accuracy these are fine-tuning at any rate, under shift the baselines as validation tuned
    them.
    """
    compared = [OOD, "held back (5)", "new (3)"]
    rows = []
    for model in cells.MODELS:
        runs, at = tuned.loc[model, "reused"], curves.loc[model]
        fine = [at.loc["finetune", rate] for rate in cells.CURVE_RATES] + [runs.loc["finetune"]]
        baselines = {name: runs.loc[name] for name in BASELINES}
        by_rate = at[OOD].groupby(["method", "learning_rate"]).mean()
        spans = [np.ptp(by_rate[name]) for name in ("recommended", "finetune")]
        choice = runs.loc["recommended"]
        untuned = ("0.01, untuned", at.loc["recommended", 1e-2])
        for label, x in (untuned, (f"{choice.learning_rate.iloc[0]:g}, tuned", choice)):
            below = min(difference(x.id, y.id)[0] for y in fine)
            row = [MODEL_LABELS[model], label, f"{x.id.mean():.1f}", f"{below:+.2f}"]
            row += [f"{x[OOD].mean():.1f}", *(over_the_best(x, baselines, y) for y in compared)]
            rows.append([*row, "{:.1f} ({:.1f})".format(*spans)])
    header = ["model", "rate", "ID", "over the best fine-tuning", "OOD"]
    header += [f"{name}, over the best tuned baseline" for name in compared]
    return markdown([*header, "OOD varies by (fine-tuning)"], rows)


def over_the_best(runs: Frame, others: Mapping[str, Frame], column: str) -> str:
    """The smallest difference from any of the others, and from which."""
    found = [(difference(runs[column], x[column]), name) for name, x in others.items()]
    closest, name = min(found)
    return f"{interval(*closest)} ({LABELS[name]})"


def scenario(rows: Frame, column: str, measured: Mapping[str, tuple[str, str]]) -> str:
    """Two means of each model and method, for each value of a column.

    `measured` has the two columns, by the end of the heading.
    """
    values = [x for x in sorted(rows[column].unique()) if x]
    names = {**MODEL_LABELS, **LABELS}
    identity = [x for x in ("model", "method") if x in rows]
    groups = dict(list(rows.groupby(identity)))
    lines = []
    for key in sorted(groups, key=lambda key: [list(names).index(x) for x in key]):
        # A network before fine-tuning is the same at each learning rate.
        by = [groups[key][groups[key][column].isin([0, x])] for x in values]
        found = [with_spread(x[[*pair]]) for pair in measured.values() for x in by]
        runs = [str(min(map(len, by)))] if column == "labels" else []
        lines.append([*(names[x] for x in key), *found, *runs])
    header = [f"{x:g}{end}" for end in measured for x in values]
    return markdown([*identity, *header, *["runs each"] * (column == "labels")], lines)


def exploration(rows: Frame) -> str:
    """ID / OOD of the candidates, by model and rate. Further mixtures are in the CSV."""
    text = on_open_sets(rows).unstack(["model", "learning_rate"])
    index = [(x, taken) for x in rows.candidate.unique() for taken in ("last", "mean", "mean, 0.9")]
    columns = [(model, rate) for model in cells.MODELS for rate in (1e-3, 1e-2)]
    header = [f"{MODEL_LABELS[model]}, {rate:g}" for model, rate in columns]
    lines = ([*key, *text.loc[key, columns]] for key in index)
    return markdown(["candidate", "taken", *header], lines)


def defaults(rows: Frame) -> str:
    """ID / OOD at the last iterate, at every learning rate, of candidates for a default."""
    text = on_open_sets(rows).xs("last", level="taken").unstack("learning_rate")
    index = [(name, model) for model in cells.MODELS for name in DEFAULTS]
    lines = ([MODEL_LABELS[x[1]], x[0], *text.loc[x, [*cells.CURVE_RATES]]] for x in index)
    return markdown(["model", "candidate", *(f"{x:g}" for x in cells.CURVE_RATES)], lines)


def on_open_sets(rows: Frame) -> Frame:
    """ID / OOD by candidate, iterate, model and rate, on the sets that are not held back."""
    # Use NumPy: many means end in exactly 5, and pandas sums in another order.
    rows = rows.assign(ood=[np.mean(x) for x in rows[[*cells.OPEN_SHIFTS]].to_numpy()])
    return pairs(
        rows.groupby(["candidate", "taken", "model", "learning_rate"])[["id", "ood"]].mean()
    )


def with_spread(runs: Frame) -> str:
    """The mean of each column, with the standard deviation over runs if there are several."""
    means = [f"{x:.1f}" for x in runs.mean()]
    if len(runs) > 1:
        means = [f"{x} ± {std:.1f}" for x, std in zip(means, runs.std(), strict=True)]
    return " / ".join(means)
