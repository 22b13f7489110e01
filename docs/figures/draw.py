"""Draws the pictures of docs/methods.md, for light and dark pages: python docs/figures/draw.py"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon

FOLDER = Path(__file__).parent
# Ink; what is projected, and what learns; a fill behind text. Of Okabe and Ito's colours, which
# differ for every kind of colour blindness, those that show on the theme's ground.
THEMES = {
    "light": {"ink": "#1f2328", "weights": "#0072b2", "radius": "#b34700", "fill": "#eef3f8"},
    "dark": {"ink": "#d5d9de", "weights": "#56b4e9", "radius": "#e69f00", "fill": "#232b36"},
}
# The same file each time, with letters as shapes because readers may lack the font.
STYLE = {"svg.hashsalt": "tpgm_jax", "svg.fonttype": "path", "font.size": 11}
INKS = (
    *("text.color", "axes.edgecolor", "axes.labelcolor"),
    *("xtick.color", "ytick.color", "hatch.color"),
)

RADIUS = 1.0
ROWS = {"row 1": (0.95, 0.85), "row 2": (-0.42, 0.3)}  # displacements: outside, and inside
NORMS = np.array([1.8, 0.65, 1.35, 0.4, 1.0, 2.1, 0.8, 1.5])


def projection(colours: dict[str, str]) -> Figure:
    """The ball with two rows, and the norms of eight."""
    figure = Figure(figsize=(6.4, 3.3))
    ball, bars = figure.subplots(1, 2, width_ratios=(1.25, 1))
    ball.set(aspect="equal", xlim=(-1.25, 1.3), ylim=(-1.2, 1.2))
    ball.axis("off")
    corners = RADIUS * np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])
    ball.add_patch(Polygon(corners, fc=colours["fill"], ec=colours["radius"], lw=1.6))
    ball.plot(0, 0, "o", color=colours["ink"], ms=5)
    ball.text(0.02, -0.16, "$W_0$, the anchor", ha="center")
    ball.text(0.56, -0.6, "norm $= r$", color=colours["radius"])
    for name, d in ROWS.items():
        d = np.array(d)
        ratio = min(1, RADIUS / np.abs(d).sum())
        end = ratio * d
        ball.annotate("", end, (0, 0), arrowprops={"color": colours["weights"], "width": 1.2,
                      "headwidth": 6, "headlength": 7, "shrink": 0})  # fmt: skip
        if ratio < 1:
            ball.plot(*zip(d, end, strict=True), ls=(0, (4, 3)), color=colours["ink"], lw=1.2)
            ball.plot(*d, "o", mfc="none", color=colours["ink"], ms=6)
            ball.text(d[0] - 0.06, d[1] + 0.1, f"{name}: $W + u$", ha="center")
            ball.text(end[0] + 0.09, end[1] - 0.09, "$W'$", color=colours["weights"])
        else:
            ball.text(-1.2, 0.75, f"{name}: stays", color=colours["weights"])

    index = np.arange(1, len(NORMS) + 1)
    kept = np.minimum(NORMS, RADIUS)
    bars.bar(index, kept, color=colours["weights"], width=0.7)
    out = NORMS > RADIUS
    bars.bar(index[out], (NORMS - kept)[out], bottom=RADIUS, width=0.7, fc="none",
             ec=colours["ink"], lw=0.8, hatch="////")  # fmt: skip
    bars.axhline(RADIUS, color=colours["radius"], lw=1.6)
    bars.text(8.9, RADIUS, "$r$", color=colours["radius"], va="center")
    bars.set(xlabel="row of the tensor", xticks=index, yticks=[], xlim=(0.3, 8.7), ylim=(0, 2.3))
    bars.set_title("norm of $d$: kept, taken back", fontsize=11)
    bars.spines[["top", "right", "left"]].set_visible(False)
    figure.tight_layout(pad=0.3)
    return figure


def box(axes: Any, x: float, y: float, text: str, edge: str, colours: dict[str, str], w=1.5):
    shape = FancyBboxPatch(
        (x - w / 2, y - 0.34), w, 0.68, boxstyle="round,pad=0,rounding_size=0.12",
        fc=colours["fill"], ec=edge, lw=1.5)  # fmt: skip
    axes.add_patch(shape)
    axes.text(x, y, text, ha="center", va="center", linespacing=1.35)


def arrow(axes: Any, start: tuple, end: tuple, colour: str, bend: float = 0.0) -> None:
    style = {"arrowstyle": "-|>", "color": colour, "lw": 1.5, "shrinkA": 0, "shrinkB": 0,
             "connectionstyle": f"arc3,rad={bend}"}  # fmt: skip
    axes.annotate("", end, start, arrowprops=style)


def loop(colours: dict[str, str]) -> Figure:
    """The inner loop, which trains the weights, above the outer one, which learns the radii."""
    figure = Figure(figsize=(6.4, 4.4))
    axes = figure.subplots()
    axes.set(xlim=(0, 6.4), ylim=(0, 4.4))
    axes.axis("off")
    w, r = colours["weights"], colours["radius"]
    axes.text(0.1, 4.2, "inner loop: the weights, on training data", color=w, va="center")
    box(axes, 0.95, 3.45, "gradient $g$\nat $W$", w, colours)
    box(axes, 3.2, 3.45, "base optimizer:\ncandidate $W + u$", w, colours, 1.9)
    box(axes, 5.45, 3.45, "project\nwith $r$: $W'$", w, colours)
    arrow(axes, (1.7, 3.45), (2.25, 3.45), w)
    arrow(axes, (4.15, 3.45), (4.7, 3.45), w)
    # Around the upper row, back to its start.
    axes.plot([5.45, 5.45, 0.95], [3.11, 2.8, 2.8], color=w, lw=1.5)
    arrow(axes, (0.95, 2.8), (0.95, 3.11), w)
    axes.text(3.2, 2.63, "next step, from $W'$", color=w, ha="center", va="center")

    axes.text(0.1, 0.16, "outer loop: the radii", color=r, va="center")
    box(axes, 1.45, 1.75, "TPGM: held-out loss\nat $W'(r)$, on other data", r, colours, 2.7)
    box(axes, 1.45, 0.85, "FTP: the next gradient,\ntimes the last $d / n$", r, colours, 2.7)
    box(axes, 4.0, 1.3, "slope of the\nloss in $r$", r, colours, 1.4)
    box(axes, 5.65, 1.3, "Adam,\nclip: $r$", r, colours, 1.1)
    arrow(axes, (2.8, 1.75), (3.3, 1.42), r)
    arrow(axes, (2.8, 0.85), (3.3, 1.18), r)
    arrow(axes, (4.7, 1.3), (5.1, 1.3), r)
    arrow(axes, (5.8, 1.64), (5.8, 3.11), r)
    figure.tight_layout(pad=0.3)
    return figure


def save(draw: Callable[[dict[str, str]], Figure], folder: Path, name: str) -> None:
    """Writes a picture twice: for light and for dark pages."""
    for theme, colours in THEMES.items():
        style: Any = STYLE | dict.fromkeys(INKS, colours["ink"])
        with matplotlib.rc_context(style):
            path = folder / f"{name}-{theme}.svg"
            draw(colours).savefig(path, format="svg", transparent=True, metadata={"Date": None})


FIGURES = {"projection": projection, "loop": loop}


def main(folder: Path = FOLDER) -> None:
    for name, draw in FIGURES.items():
        save(draw, folder, name)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
