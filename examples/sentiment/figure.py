"""The results as one picture, for light and dark pages."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from docs.figures.draw import INKS, STYLE, THEMES
from examples.digits.storage import write_whole
from examples.sentiment.methods import LABELS
from examples.sentiment.summary import others

# Of Okabe and Ito's palette for colour-blind readers, those that show on either ground. The
# markers differ too.
MARKERS = {"finetune": "o", "wise": "v", "l2sp": "s", "ftp": "^"}
COLOURS = {
    "light": {"finetune": "#D55E00", "wise": "#B07800", "l2sp": "#009E73", "ftp": "#0072B2"},
    "dark": {"finetune": "#E8743B", "wise": "#F0E442", "l2sp": "#2FC79A", "ftp": "#56B4E9"},
}


def figure(results: dict[str, Any], theme: str) -> Figure:
    """Accuracy against the learning rate: in the domain of training, and in the three others."""
    ink = THEMES[theme]["ink"]
    made = Figure(figsize=(8.4, 3.9), layout="constrained")
    titles = {
        "On movie reviews, as in training": lambda accuracy: accuracy["movie"],
        "On Amazon reviews, editorials and tweets (mean)": others,
    }
    panels = made.subplots(1, 2, sharey=True)
    for axes, (title, value) in zip(panels, titles.items(), strict=True):
        for name, entries in results["methods"].items():
            rates = [entry["learning_rate"] for entry in entries]
            axes.semilogx(
                rates,
                [value(entry["accuracy"]) for entry in entries],
                color=COLOURS[theme][name],
                marker=MARKERS[name],
                lw=2.6 if name == "ftp" else 1.8,
                label=LABELS[name],
            )
            axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.minorticks_off()
        before = value(results["probe"]["accuracy"])
        axes.axhline(before, color=ink, ls="--", lw=1.2, label="before fine-tuning (probe)")
        axes.set(title=title, xlabel="learning rate")
        axes.title.set_fontsize(10.5)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("accuracy (%)")
    handles, labels = panels[0].get_legend_handles_labels()
    made.legend(
        handles, labels, loc="outside lower center", ncols=5, frameon=False, labelcolor=ink,
        fontsize=9,
    )  # fmt: skip
    return made


def draw(results: dict[str, Any], folder: Path, name: str = "figure") -> list[Path]:
    """Writes the picture in both themes."""
    paths = []
    for theme, colours in THEMES.items():
        style: Any = STYLE | dict.fromkeys((*INKS, "ytick.color"), colours["ink"])
        with matplotlib.rc_context(style):
            picture = figure(results, theme)
            path = folder / f"{name}-{theme}.svg"
            saved: Any = {"format": "svg", "transparent": True, "metadata": {"Date": None}}
            write_whole(path, lambda file, p=picture, s=saved: p.savefig(file, **s))
            paths.append(path)
    return paths
