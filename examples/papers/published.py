"""The papers' tables, top-1 accuracy in per cent, and ours beside them."""

from collections.abc import Mapping

import numpy as np

DOMAINS = ("real", "sketch", "painting", "infograph", "clipart")
IMAGENETS = ("imagenet", "imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch")

# By experiment: its data sets, the first of them in distribution.
SETS = {"domainnet": DOMAINS, "imagenet": IMAGENETS}

# By experiment and model: rows by method. Methods have the programs' names.
TABLES: dict[tuple[str, str], dict[str, tuple[float, ...]]] = {
    ("domainnet", "clip-resnet50"): {
        "finetune": (79.43, 30.43, 41.24, 18.66, 42.36),
        "tpgm": (82.41, 37.53, 45.71, 26.77, 46.07),
    },
    ("domainnet", "resnet50"): {
        "finetune": (82.00, 31.92, 43.67, 19.66, 45.78),
        "tpgm": (81.30, 35.68, 46.64, 20.03, 45.77),
    },
    ("imagenet", "clip-vit-b16"): {
        "finetune": (84.27, 74.78, 45.54, 65.05, 48.28),
        "wise": (82.16, 73.66, 56.63, 78.25, 54.16),
        "tpgm": (83.80, 75.27, 55.91, 76.87, 54.50),
    },
}


def table(
    experiment: str, model: str, method: str, percent: int, accuracies: Mapping[str, float]
) -> str:
    """The published rows, and ours last.

    Args:
        experiment: "domainnet" or "imagenet".
        model: name of the model.
        method: our method.
        percent: share of the training images.
        accuracies: ours by data set, in per cent. Sets that are missing show as "-".
    """
    names = SETS[experiment]
    # The published numbers are of all training images.
    published = TABLES.get((experiment, model), {}) if percent == 100 else {}
    rows = {f"{name}, published": dict(zip(names, x, strict=True)) for name, x in published.items()}
    rows[f"{method}, this run"] = {name: accuracies[name] for name in names if name in accuracies}
    title = f"{model}, top-1 %"
    width = max(len(title), *map(len, rows))
    heads = (*names, "mean of shifted")
    lines = [title.ljust(width) + "".join(f"{name:>17}" for name in heads)]
    for name, row in rows.items():
        shifted = [row[x] for x in names[1:] if x in row]
        # A mean of some sets would look like the mean of all.
        mean = np.mean(shifted) if len(shifted) == len(names) - 1 else None
        cells = [row.get(x) for x in names] + [mean]
        shown = ("-" if x is None else f"{x:.2f}" for x in cells)
        lines.append(name.ljust(width) + "".join(f"{x:>17}" for x in shown))
    return "\n".join(lines)
