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
SUMMARISED = ("zero_shot", *BASELINES, "ftp", "tpgm", "ftp_anchor", "recommended")


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


def summary(tuned: Frame, curves: Frame) -> str:
    """ID / OOD of the main methods at the chosen settings, and the range of OOD over the rates."""
    runs = tuned.xs("reused", level="head").groupby(["model", "method"])[["id", OOD]].mean()
    by_rate = curves.groupby(["model", "method", "learning_rate"])[OOD].mean()
    spans = by_rate.groupby(["model", "method"]).agg(["min", "max"])

    def text(key: tuple[str, str]) -> str:
        pair = "{:.1f} / {:.1f}".format(*runs.loc[key])
        return pair + (" ({:.0f} to {:.0f})".format(*spans.loc[key]) if key in spans.index else "")

    rows = [[LABELS[x], *(text((model, x)) for model in cells.MODELS)] for x in SUMMARISED]
    return markdown(["", *MODEL_LABELS.values()], rows)


def each_set(runs: Frame) -> str:
    """The same runs as in `at_the_choice`, set by set."""
    means = runs.groupby("method")[["id", *cells.SHIFTS, *cells.NEW_SHIFTS]].mean()
    means.columns = ["ID", *(x.replace("_", " ") for x in means.columns[1:])]
    return labelled(means)


def over_rates(runs: Frame) -> str:
    """ID / OOD at every learning rate, and how far OOD varies; the curves of one model."""
    means = runs.groupby(["method", "learning_rate"])[["id", OOD]].mean()
    pairs = means.apply(lambda x: f"{x['id']:.1f} / {x[OOD]:.1f}", axis=1).unstack()
    pairs.columns = [f"{rate:g}" for rate in pairs]
    pairs["OOD varies by"] = means[OOD].groupby("method").agg(np.ptp)
    text = labelled(pairs)
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
    """What was aimed at beforehand: `recommended` minus the best of what it is compared with.

    In ID accuracy that is fine-tuning at any rate, under shift the baselines as validation tuned
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
        found = [pair(x, *columns) for columns in measured.values() for x in by]
        runs = [str(min(map(len, by)))] if column == "labels" else []
        lines.append([*(names[x] for x in key), *found, *runs])
    header = [f"{x:g}{end}" for end in measured for x in values]
    return markdown([*identity, *header, *["runs each"] * (column == "labels")], lines)


def exploration(rows: Frame) -> str:
    """ID / OOD of the candidates, by model and rate. Further mixtures are in the CSV."""
    groups = by_candidate(rows)
    columns = [(model, rate) for model in cells.MODELS for rate in (1e-3, 1e-2)]
    lines = [
        [name, taken, *(pair(groups[name, taken, *x], "id", "ood", "") for x in columns)]
        for name in rows.candidate.unique()
        for taken in ("last", "mean", "mean, 0.9")
    ]
    header = [f"{MODEL_LABELS[model]}, {rate:g}" for model, rate in columns]
    return markdown(["candidate", "taken", *header], lines)


def by_candidate(rows: Frame) -> dict[tuple[str, str, str, float], Frame]:
    """Runs by candidate, iterate, model and rate, with the mean of the open sets in `ood`."""
    # By NumPy: many means end in exactly 5, and pandas sums in another order.
    rows = rows.assign(ood=[np.mean(x) for x in rows[[*cells.OPEN_SHIFTS]].to_numpy()])
    return dict(list(rows.groupby(["candidate", "taken", "model", "learning_rate"])))


def defaults(rows: Frame) -> str:
    """ID / OOD at the last iterate, at every learning rate, of candidates for a default."""
    groups = by_candidate(rows)
    lines = [
        [
            MODEL_LABELS[x],
            name,
            *(pair(groups[name, "last", x, y], "id", "ood", "") for y in cells.CURVE_RATES),
        ]
        for x in cells.MODELS
        for name in DEFAULTS
    ]
    return markdown(["model", "candidate", *(f"{x:g}" for x in cells.CURVE_RATES)], lines)


def pair(rows: Frame, first: str, second: str, spread: str = " ± {:.1f}") -> str:
    """Two means, each with the standard deviation over runs if there are several."""
    columns = [rows[first], rows[second]]
    return " / ".join(
        f"{x.mean():.1f}" + (spread.format(x.std()) if len(rows) > 1 else "") for x in columns
    )
