"""A picture of the distances, layer by layer."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

from tpgm_jax.cli._compare import Measured
from tpgm_jax.cli._errors import CommandError, optional
from tpgm_jax.cli._text import printable

SUFFIXES = (".png", ".pdf", ".svg")
# Okabe and Ito's colours, which every kind of eye tells apart, and markers besides.
STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"))
# A picture higher than 2^16 pixels is refused by what draws it, and read by nobody.
MOST_LABELS = 400


def check_plot(path: Path) -> None:
    """Before anything is measured."""
    optional("matplotlib")
    if path.suffix not in SUFFIXES:
        raise CommandError(f"--plot {path} must end in one of {', '.join(SUFFIXES)}.")


def plot(measured: Sequence[Measured], target: Path, suffix: str) -> None:
    """Draws one line for each tensor, in order, from the top.

    Args:
        measured: what to show.
        target: the file to write.
        suffix: which says the format, ".png", ".pdf" or ".svg".
    """
    # The figure itself and not `pyplot`, which would choose a backend for the whole process.
    figures = optional("matplotlib.figure")
    names = [printable(x.entry.name, limit=60) for x in measured]
    every = max(1, math.ceil(len(names) / MOST_LABELS))
    height = 1.4 + 0.16 * len(names) / every
    figure = figures.Figure(figsize=(12, height), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    values = {
        "mars: largest row": [x.distance.mars_largest for x in measured],
        "l2: largest layer": [x.distance.l2_largest for x in measured],
        "relative, l2": [x.distance.relative for x in measured],
    }
    for panel, style, (title, numbers) in zip(axes, STYLES, values.items(), strict=True):
        _panel(panel, style, title, numbers)
    axes[0].set_yticks(range(0, len(names), every), names[::every], fontsize=7, parse_math=False)
    axes[0].set_ylim(len(names) - 0.3, -0.7)
    figure.supxlabel("distance from the pre-trained weights; no marker: none", fontsize=9)
    with warnings.catch_warnings():
        # A name may have letters that no font has.
        warnings.simplefilter("ignore")
        figure.savefig(target, format=suffix.removeprefix("."), dpi=120)


def _panel(panel, style: tuple[str, str], title: str, values: Sequence[float]) -> None:
    # A logarithmic axis has no place for zero, and none for what is not finite.
    shown = [(x, y) for y, x in enumerate(values) if math.isfinite(x) and x > 0]
    numbers = [x for x, _ in shown]
    if shown:
        panel.set_xscale("log")
        narrow = max(numbers) < 10 * min(numbers)  # perhaps without a power of ten in it
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter("{x:g}" if narrow else "")
    color, marker = style
    panel.plot(numbers, [y for _, y in shown], marker, color=color, ms=4)
    panel.set_title(title, fontsize=10)
    panel.grid(True, color="0.9")
    panel.set_axisbelow(True)
    panel.tick_params(axis="x", which="both", labelsize=8)
