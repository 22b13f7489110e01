"""Tables of the further scenarios, each from the CSV that its program writes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.study import cells, continual, exploration, few_labels, segmentation
from benchmarks.study.records import read
from benchmarks.study.summary import Groups
from benchmarks.study.tables import LABELS, MODEL_LABELS, markdown

Row = Mapping[str, str]


def sections(study: Path, shown: Groups) -> list[str]:
    """Headings and tables of those scenarios that have been run, whose files lie beside `study`."""
    made = []
    for name, columns, table in (
        ("few_labels", few_labels.TABLE, lambda rows: of_few_labels(rows, shown)),
        ("continual", continual.COLUMNS, of_tasks),
        ("segmentation", segmentation.COLUMNS, lambda rows: of_pixels(rows, shown)),
        ("exploration", exploration.COLUMNS, of_candidates),
    ):
        path = study.with_name(f"{study.stem}_{name}.csv")
        rows = read(path, columns) if path.exists() else []
        if rows:
            made += table(rows)
    return made


def of_few_labels(rows: Sequence[Row], shown: Groups) -> list[str]:
    """ID / OOD by number of labels."""
    made = ["### Few labels", "ID / OOD, at the setting that was chosen with all 1000 labels:"]
    counts = sorted({int(row["labels"]) for row in rows})
    sets = shown.overall[1]
    header = ["model", "method", *(f"{count} labels" for count in counts), "runs each"]
    lines = []
    for model in cells.MODELS:
        for method in LABELS:
            found = [
                [x for x in rows if (x["model"], x["method"], x["labels"]) == (model, method, n)]
                for n in map(str, counts)
            ]
            if any(found):
                numbers = [f"{spread(x, ['id'])} / {spread(x, sets)}" if x else "" for x in found]
                runs = str(min(len(x) for x in found if x))
                lines.append([MODEL_LABELS[model], LABELS[method], *numbers, runs])
    return [*made, markdown(header, lines)]


def of_tasks(rows: Sequence[Row]) -> list[str]:
    """Accuracy and forgetting by learning rate: there is no validation to choose one by."""
    made = [
        "### Continual learning",
        "Five tasks of two classes one after another. Mean accuracy on all tasks in the end / "
        "forgetting, by learning rate; first when nobody tells the network which task an image "
        "is of, then when somebody does:",
    ]
    rates = [f"{rate:g}" for rate in continual.RATES]
    header = ["model", "method", *rates, *(f"{rate}, told" for rate in rates)]
    lines = []
    for model in cells.MODELS:
        for method in LABELS:
            mine = [row for row in rows if (row["model"], row["method"]) == (model, method)]
            if mine:
                numbers = [
                    pair(at(mine, rate), prefix) for prefix in ("", "told_") for rate in rates
                ]
                lines.append([MODEL_LABELS[model], LABELS[method], *numbers])
    return [*made, markdown(header, lines)]


def of_pixels(rows: Sequence[Row], shown: Groups) -> list[str]:
    """ID / OOD by learning rate."""
    made = [
        "### Dense prediction",
        "A small U-net that names each pixel's digit or the background; mean intersection over "
        "union, ID / OOD, by learning rate:",
    ]
    rates, sets = [f"{rate:g}" for rate in segmentation.RATES], shown.overall[1]
    lines = []
    for method in LABELS:
        mine = [row for row in rows if row["method"] == method]
        if mine:
            found = [at(mine, rate) for rate in rates]
            numbers = [f"{spread(x, ['id'])} / {spread(x, sets)}" if x else "" for x in found]
            lines.append([LABELS[method], *numbers])
    return [*made, markdown(["method", *rates], lines)]


def of_candidates(rows: Sequence[Row]) -> list[str]:
    """ID / OOD of what was tried, by model and rate; the other mixtures are in the CSV."""
    made = [
        "### What was tried",
        "On the two tuning seeds, the first network and the eight sets that are not held back, "
        "ID / OOD: each candidate at its last iterate, at the mean of all, and that a tenth of the "
        "way back to the anchor:",
    ]
    rates = [f"{rate:g}" for rate in exploration.RATES]
    lines = []
    for candidate in dict.fromkeys(row["candidate"] for row in rows):
        for taken in ("last", "mean", "mean, 0.9"):
            mine = [x for x in rows if (x["candidate"], x["taken"]) == (candidate, taken)]
            found = [
                [x for x in mine if (x["model"], x["learning_rate"]) == (model, rate)]
                for model in cells.MODELS
                for rate in rates
            ]
            pairs = [(mean(x, ["id"]), mean(x, cells.OPEN_SHIFTS)) if x else () for x in found]
            numbers = [" / ".join(pair) for pair in pairs]
            lines.append([candidate, taken, *numbers])
    header = [f"{label}, {rate}" for label in MODEL_LABELS.values() for rate in rates]
    return [*made, markdown(["candidate", "taken", *header], lines)]


def mean(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Over rows and columns."""
    return f"{_by_row(rows, columns).mean():.1f}"


def spread(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """The same, with the standard deviation over rows if there are several."""
    x = _by_row(rows, columns)
    return mean(rows, columns) + (f" ± {x.std(ddof=1):.1f}" if len(x) > 1 else "")


def _by_row(rows: Sequence[Row], columns: Sequence[str]) -> np.ndarray:
    return np.array([np.mean([float(row[x]) for x in columns]) for row in rows])


def at(rows: Sequence[Row], rate: str) -> list[Row]:
    """Those at a learning rate, or at none: what is not trained is the same at each."""
    return [row for row in rows if float(row["learning_rate"]) in (0.0, float(rate))]


def pair(rows: Sequence[Row], prefix: str) -> str:
    names = {"": ("accuracy", "forgetting"), "told_": ("told", "told_forgetting")}[prefix]
    return " / ".join(spread(rows, [name]) for name in names) if rows else ""
