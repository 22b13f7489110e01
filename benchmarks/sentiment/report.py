"""Tables of the study, as Markdown, from the CSV alone."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from benchmarks.recording import setting
from benchmarks.sentiment.cells import RATES
from benchmarks.sentiment.methods import DERIVED, METHODS
from benchmarks.tables import half_interval, markdown
from examples.sentiment.summary import others
from examples.sentiment.texts import DOMAINS

Row = dict[str, str]
Group = tuple[str, str]  # method and setting
LABELS = {
    "finetune": "AdamW",
    "mean": "AdamW, mean of iterates",
    "wise": "WiSE-FT",
    "l2sp": "L2-SP",
    "ewc": "EWC",
    "spd": "SPD",
    "mars_sp": "MARS-SP",
    "ftp": "FTP",
    "ftp_anchor": "FTP, anchor's unit",
    "ftp_relative": "FTP, anchor's unit, relative step 3e-2",
    "default": "FTP, anchor's unit, step 3e-3",
    "tpgm": "TPGM",
    "fit_radii": "`fit_radii`",
    "recommended": '"recommended" of the digits',
    "lora": "LoRA of rank 8, AdamW",
    "lora_ftp": "LoRA of rank 8, FTP",
    "lora_spd": "LoRA of rank 8, SPD",
}


def report(rows: Sequence[Row]) -> str:
    """A summary; then for each start every method at every rate, and at the selected rate."""
    parts = [summary(rows)]
    for source, head in dict.fromkeys((row["source"], row["head"]) for row in rows):
        these = [row for row in rows if (row["source"], row["head"]) == (source, head)]
        probe = [row for row in these if row["method"] == "probe"]
        groups = grouped(these)
        parts.append(f"### Trained on {source}, {head} head")
        if probe:
            parts.append(f"Before fine-tuning: {numbers(probe, source)}.")
        if groups:
            parts += [by_rate(groups, source), selection(groups, source)]
    return "\n\n".join(parts)


def summary(rows: Sequence[Row]) -> str:
    """Methods in their first setting, with a column for each start.

    Source / others at the rate that validation selects of the three that all starts have, and in
    brackets the lowest of each over these rates.
    """
    starts = list(dict.fromkeys((row["source"], row["head"]) for row in rows))
    groups = {x: grouped(r for r in rows if (r["source"], r["head"]) == x) for x in starts}
    lines = []
    for method, recipe in (METHODS | DERIVED).items():
        group = method, setting(recipe.name, recipe.values[0])
        cells = [label(group)]
        for start in starts:
            found = groups[start].get(group, {})
            runs = [found[rate] for rate in sorted(RATES)[1:] if rate in found]
            cells.append(selected_and_lowest(runs, start[0]) if runs else "")
        lines.append(cells)
    return markdown(["method", *(f"{source}, {head} head" for source, head in starts)], lines)


def selected_and_lowest(by_rate: Sequence[Sequence[Row]], source: str) -> str:
    inside = [mean(runs, source) for runs in by_rate]
    out = [float(np.mean([outside(row, source) for row in runs])) for runs in by_rate]
    i = max(range(len(out)), key=lambda i: round(mean(by_rate[i], "validation"), 2))
    return f"{inside[i]:.1f} / {out[i]:.1f} ({min(inside):.1f} / {min(out):.1f})"


def grouped(rows: Iterable[Row]) -> dict[Group, dict[float, list[Row]]]:
    """The rows by method and setting, then by learning rate."""
    found: dict[Group, dict[float, list[Row]]] = {}
    names = [*METHODS, *DERIVED]
    trained = [row for row in rows if row["method"] != "probe"]
    for row in sorted(trained, key=lambda row: (names.index(row["method"]), row["setting"])):
        group = found.setdefault((row["method"], row["setting"]), defaultdict(list))
        group[float(row["learning_rate"])].append(row)
    return found


def by_rate(groups: dict[Group, dict[float, list[Row]]], source: str) -> str:
    """Source domain / mean of the others; mean and half of the 95 % interval over seeds."""
    rates = sorted(RATES)
    header = ["method", *(f"{rate:g}" for rate in rates)]
    return markdown(
        header,
        (
            [label(group), *(numbers(runs.get(rate, []), source) for rate in rates)]
            for group, runs in groups.items()
        ),
    )


def selection(groups: dict[Group, dict[float, list[Row]]], source: str) -> str:
    """Each method at the rate and setting with the best accuracy in validation, source alone.

    Rates and settings are compared by the seeds that all of them have, because seeds differ too.
    """
    header = ["method", "selected", "validation", "source", "others", "AUC, others", "seeds"]
    lines = []
    for method in dict.fromkeys(method for method, _ in groups):
        tried = [
            (setting, rate, runs)
            for (name, setting), rates in groups.items()
            if name == method
            for rate, runs in sorted(rates.items())
        ]
        shared = set.intersection(*({row["seed"] for row in runs} for _, _, runs in tried))

        def validation(runs: Sequence[Row], shared: Collection[str] = shared) -> float:
            fair = [row for row in runs if row["seed"] in shared]
            return round(mean(fair or runs, "validation"), 2)

        # Among equals the smallest rate.
        setting, rate, runs = max(tried, key=lambda x: validation(x[2]))
        lines.append(
            [
                LABELS[method],
                f"{rate:g} {setting}".strip() + f" of {len(tried)}",
                interval([float(row["validation"]) for row in runs]),
                interval([float(row[source]) for row in runs]),
                interval([outside(row, source) for row in runs]),
                interval([outside(row, source, "_auc") for row in runs]),
                str(len(runs)),
            ]
        )
    return markdown(header, lines)


def label(group: Group) -> str:
    method, setting = group
    return f"{LABELS[method]} {setting}".strip()


def mean(runs: Sequence[Row], column: str) -> float:
    return float(np.mean([float(row[column]) for row in runs]))


def outside(row: Row, source: str, ending: str = "") -> float:
    """The mean over the domains that nothing was trained on."""
    values = {name: float(row[name + ending]) for name in DOMAINS}
    return others(values, source)


def numbers(runs: Sequence[Row], source: str) -> str:
    """Source and others, with the number of seeds."""
    if not runs:
        return ""
    inside = interval([float(row[source]) for row in runs])
    out = interval([outside(row, source) for row in runs])
    return f"{inside} / {out} ({len(runs)})"


def interval(values: Sequence[float]) -> str:
    """Mean and half of its 95 % interval over seeds, by Student's t.

    None for two seeds: it would be 12.7 standard errors wide on each side.
    """
    x = np.array(values)
    if len(x) < 3:
        return f"{x.mean():.1f}"
    return f"{x.mean():.1f} ± {half_interval(x):.1f}"
