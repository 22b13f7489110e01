"""The plot of `compare --plot`: the distances of all tensors."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

from tpgm_jax.cli._compare import Result
from tpgm_jax.cli._errors import CommandError, import_optional, printable
from tpgm_jax.cli._numbers import total_distance
from tpgm_jax.plot._drawing import COLOURS, MARKERS, choose_scale, set_scale, tidy

SUFFIXES = (".png", ".pdf", ".svg")
# More tensors than this are drawn block by block. Matplotlib refuses images of 2^16 pixels.
MOST_TENSORS, MOST_LABELS = 60, 400
_BLOCK = re.compile(r".*?\d(?=[./]|$)|[^./]*")  # such as `encoder.layer.11`


def check_plot(path: Path) -> None:
    """Checks that `path` can be plotted to, before anything is measured."""
    import_optional("matplotlib")
    if path.suffix not in SUFFIXES:
        remedy = f"its name must end in one of {', '.join(SUFFIXES)}"
        raise CommandError(f"--plot cannot write {path}", "the suffix gives the format", remedy)


def plot(tensors: Sequence[Result], target: Path, suffix: str) -> None:
    """Draws a row for each tensor, or for each block of many, from top to bottom, in three panels.

    `suffix` is one of `SUFFIXES`.
    """
    # `pyplot` would choose a backend for the whole process.
    figures = import_optional("matplotlib.figure")
    groups: dict[str, list[Result]] = {}
    for x in tensors:
        block = _BLOCK.match(x["name"]) if len(tensors) > MOST_TENSORS else None
        groups.setdefault(block[0] if block else x["name"], []).append(x)
    names = [printable(name, limit=60) for name in groups]
    every = max(1, math.ceil(len(names) / MOST_LABELS))
    height = 1.4 + 0.16 * len(names) / every
    figure = figures.Figure(figsize=(12, height), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    values = {
        "mars: largest row": [max(x["mars"]["largest"] for x in y) for y in groups.values()],
        "l2: largest layer": [max(x["l2"]["largest"] for x in y) for y in groups.values()],
        "relative, l2": [total_distance(y)[1] for y in groups.values()],
    }
    panels = zip(axes, COLOURS[:3], MARKERS[:3], values.items(), strict=True)
    for panel, color, marker, (title, numbers) in panels:
        scale = choose_scale(numbers)
        set_scale(scale, panel, "x")
        tidy(panel)
        places = [scale.coordinate(x) for x in numbers]
        panel.plot(places, range(len(names)), marker, color=color, ms=4)
        panel.set_title(title, fontsize=10)
        panel.tick_params(axis="x", labelsize=8)
    axes[0].set_yticks(range(0, len(names), every), names[::every], fontsize=7, parse_math=False)
    axes[0].set_ylim(len(names) - 0.3, -0.7)
    figure.supxlabel("distance from the pre-trained weights", fontsize=9)
    figure.savefig(target, format=suffix.removeprefix("."), dpi=120)
