"""The tables of the page, as Markdown."""

from collections.abc import Iterable, Mapping

import numpy as np

from benchmarks.study import cells
from benchmarks.study.methods import DERIVED, METHODS
from benchmarks.study.summary import (
    Difference,
    Groups,
    Pair,
    Row,
    Study,
    difference,
    spread,
    values,
)

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


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header), *(list(row) for row in rows)]
    if len(lines) == 1:
        return "No runs yet."
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tuned(study: Study, model: str, head: str, shown: Groups) -> str:
    """Every method at the setting that validation chose."""
    header = ["method", "rate", "setting", "valid.", "ID", *shown.means, "± seeds", "s a run"]
    rows = []
    for method in in_order(study, model, head):
        choice, runs = study.chosen(model, head, method), study.tuned(model, head, method)
        if not choice or not runs:
            continue
        means = [values(runs, sets) for sets in shown.means.values()]
        overall = values(runs, shown.overall[1])
        rows.append(
            [
                LABELS[method] + _count(runs, method),
                f"{choice[0]:g}" if choice[0] else "",
                choice[1],
                *(f"{values(runs, [x]).mean():.1f}" for x in ("validation", "id")),
                *(f"{x.mean():.1f}" for x in means),
                "" if np.isnan(within(runs, overall)) else f"{within(runs, overall):.1f}",
                f"{np.median(values(runs, ['seconds'])):.1f}",
            ]
        )
    return markdown(header, rows)


def summary(study: Study, shown: Groups) -> str:
    """ID / OOD of the main methods at the settings that validation chose, a column for each model.

    And in brackets between what OOD accuracies it varies over the learning rates of the curve.
    """
    _, overall = shown.overall
    rows = []
    for method in SUMMARISED:
        row = [LABELS[method]]
        for model in cells.MODELS:
            runs = study.tuned(model, "reused", method)
            settings = dict(curved(study, model))
            by_rate = study.curve(model, "reused", method, settings.get(method, ""))
            found = [values(x, overall).mean() for x in by_rate.values()]
            text = ""
            if runs:
                text = f"{values(runs, ['id']).mean():.1f} / {values(runs, overall).mean():.1f}"
            if len(found) == len(cells.CURVE_RATES):
                text += f" ({min(found):.0f} to {max(found):.0f})"
            row.append(text)
        rows.append(row)
    return markdown(["", *MODEL_LABELS.values()], rows)


def each_set(study: Study, model: str, head: str, shown: Groups) -> str:
    """The same runs, set by set."""
    rows = []
    for method in in_order(study, model, head):
        runs = study.tuned(model, head, method)
        if runs:
            numbers = [values(runs, [name]) for name in ("id", *shown.sets)]
            rows.append([LABELS[method], *(f"{x.mean():.1f}" for x in numbers)])
    return markdown(["method", "ID", *(name.replace("_", " ") for name in shown.sets)], rows)


def curves(study: Study, model: str, shown: Groups) -> str:
    """ID / OOD of the main methods at every learning rate, and how far OOD varies."""
    _, overall = shown.overall
    rows = []
    for method, setting in curved(study, model):
        by_rate = study.curve(model, "reused", method, setting)
        if not by_rate:
            continue
        ood = {rate: values(runs, overall).mean() for rate, runs in by_rate.items()}
        shown_rates = [
            f"{values(by_rate[rate], ['id']).mean():.1f} / {ood[rate]:.1f}" if rate in ood else ""
            for rate in cells.CURVE_RATES
        ]
        label = LABELS[method] + (f", {setting}" if setting else "")
        label += _count(next(iter(by_rate.values())), method)
        whole = len(ood) == len(cells.CURVE_RATES)
        apart = f"{max(ood.values()) - min(ood.values()):.1f}" if whole else ""
        rows.append([label, *shown_rates, apart])
    return markdown(["method", *(f"{rate:g}" for rate in cells.CURVE_RATES), "OOD varies by"], rows)


def differences(study: Study, model: str, head: str, shown: Groups) -> str:
    """Each method, tuned, minus each of the tuned baselines, at equal seeds."""
    _, overall = shown.overall
    rows = []
    reference = {name: study.tuned(model, head, name) for name in BASELINES}
    for method in in_order(study, model, head):
        runs = study.tuned(model, head, method)
        if not runs or method == "zero_shot":
            continue
        row = [LABELS[method]]
        for name in BASELINES:
            for sets in (["id"], overall):
                found = difference(runs, reference[name], sets)
                row.append("" if name == method or not found.pairs else interval(found))
        rows.append(row)
    header = [f"{what} over {LABELS[name]}" for name in BASELINES for what in ("ID", "OOD")]
    return markdown(["method", *header], rows)


def targets(study: Study, shown: Groups) -> str:
    """What was aimed at beforehand: `recommended` minus the best of what it is compared with.

    In ID accuracy that is fine-tuning at whichever rate, under shift the baselines as validation
    tuned them; at equal seeds. On all shifts, and on those alone by which nothing was chosen. And
    how far OOD accuracy varies over the rates of the curve.
    """
    _, overall = shown.overall
    compared = [name for name in shown.means if name.startswith(("OOD", "held back", "new"))]
    rows = []
    for model in cells.MODELS:
        fine = study.curve(model, "reused", "finetune", "")
        ours = study.curve(model, "reused", "recommended", "")
        choice = study.chosen(model, "reused", "recommended")
        tuned_runs = {name: study.tuned(model, "reused", name) for name in BASELINES}
        if not fine or not ours or not choice:
            continue
        spans = [
            max(accuracies) - min(accuracies)
            for by_rate in (ours, fine)
            for accuracies in [[values(runs, overall).mean() for runs in by_rate.values()]]
        ]
        for label, setting in (("0.01, untuned", (1e-2, "")), (f"{choice[0]:g}, tuned", choice)):
            runs = study.runs(model, "reused", "recommended", setting)
            at_rates = [study.runs(model, "reused", "finetune", (rate, "")) for rate in fine]
            below = [difference(runs, x, ["id"]) for x in (*at_rates, tuned_runs["finetune"])]
            if not any(difference(runs, x, overall).pairs for x in tuned_runs.values()):
                continue
            rows.append(
                [
                    MODEL_LABELS[model],
                    label + _count(runs, "recommended"),
                    f"{values(runs, ['id']).mean():.1f}",
                    f"{min((x for x in below if x.pairs), key=lambda x: x.mean).mean:+.2f}",
                    f"{values(runs, overall).mean():.1f}",
                    *(over_the_best(runs, tuned_runs, shown.means[name]) for name in compared),
                    f"{spans[0]:.1f} ({spans[1]:.1f})",
                ]
            )
    header = ["model", "rate", "ID", "over the best fine-tuning", "OOD"]
    header += [f"{name}, over the best tuned baseline" for name in compared]
    return markdown([*header, "OOD varies by (fine-tuning)"], rows)


def over_the_best(
    runs: Mapping[Pair, Row], others: Mapping[str, Mapping[Pair, Row]], sets: Iterable[str]
) -> str:
    """The least difference from any of the others on these sets, and to whom that is."""
    sets = tuple(sets)
    found = [(difference(runs, x, sets), name) for name, x in others.items()]
    closest, name = min((x for x in found if x[0].pairs), key=lambda x: x[0].mean)
    return f"{interval(closest)} ({LABELS[name]})"


def interval(found: Difference) -> str:
    mean, low, high, _ = found
    return f"{mean:+.1f}" + ("" if np.isnan(low) else f" [{low:+.1f}, {high:+.1f}]")


def curved(study: Study, model: str) -> list[tuple[str, str]]:
    """Methods with a curve, and the setting it is shown at."""
    found = []
    for method in in_order(study, model, "reused"):
        source = DERIVED[method].source if method in DERIVED else method
        if source not in METHODS or not METHODS[source].curve:
            continue
        recipe = DERIVED[method] if method in DERIVED else METHODS[method]
        if recipe.name:
            choice = study.chosen(model, "reused", method)
            found += [(method, choice[1])] if choice else []
        else:
            found += [(method, "")]
    return found


def in_order(study: Study, model: str, head: str) -> list[str]:
    """The methods that have rows, in the order of `LABELS`."""
    there = study.methods(model, head)
    return [method for method in LABELS if method in there]


def within(runs: Mapping[Pair, Row], x: np.ndarray) -> float:
    """Standard deviation over the seeds of one pre-trained network, the root of the mean square."""
    networks = np.array([network for network, _ in runs])
    parts = [spread(x[networks == n]) for n in set(networks.tolist()) if sum(networks == n) > 1]
    return float(np.sqrt(np.mean(np.square(parts)))) if parts else float("nan")


def _count(runs: Mapping[Pair, Row], method: str) -> str:
    """Said only where runs are missing."""
    whole = len(cells.PRETRAIN_SEEDS) * (1 if method == "zero_shot" else len(cells.SEEDS))
    return "" if len(runs) == whole else f" ({len(runs)} of {whole} runs)"
