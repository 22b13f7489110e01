"""Axes, scales, colours and labels of the plots."""

import math
import re
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tpgm_jax.plot import _depth

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The colour-blind-safe palette of Okabe and Ito, without its yellow, which is too faint for lines
# on white. Neighbours differ in lightness too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LONGEST = 36  # characters of a label
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 1.5, 1, 1.5)))
GREY = "#555555"

# Collapsed radii (1e-8) would stretch the axis until nothing else is visible.
COLLAPSED = 1e-7


def new_axes(ax: "Axes | None", width: float, height: float) -> "Axes":
    """`ax`, or the axes of a new figure of this size in inches."""
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "`tpgm_jax.plot` cannot draw, because matplotlib is not installed: "
            "pip install matplotlib."
        ) from error
    return plt.subplots(figsize=(width, height), layout="constrained")[1]


class Scale(NamedTuple):
    """The scale of an axis of radii.

    Attributes:
        low: lower end of the axis.
        high: upper end of the axis.
        least: smallest value drawn at its own place.
        floor: where smaller values are drawn; `None` if there are none.
        log: whether the scale is logarithmic.
    """

    low: float
    high: float
    least: float
    floor: float | None
    log: bool

    def coordinate(self, value: float) -> float:
        """Where `value` is drawn."""
        return value if self.floor is None or not value < self.least else self.floor


def choose_scale(values: Sequence[float]) -> Scale:
    """A scale for `values`, logarithmic if they span more than a decade.

    Radii that have collapsed, or are below a hundredth of the median, are all drawn at the floor:
    drawn to scale, they would squeeze the others into a single line.
    """
    finite = [x for x in values if abs(x) < 1e100]  # the margin beside a larger one may overflow
    above = [x for x in finite if x > COLLAPSED]
    if not above:
        return Scale(-0.03, 1.0, math.inf, 0.0, False)
    least = statistics.median(above) / 100
    shown, hidden = [x for x in above if x >= least], [x for x in finite if x < least]
    low, high = min(shown), max(shown)
    if high < 10 * low:
        return Scale(-0.03 * high, 1.08 * high, low, 0.0 if hidden else None, False)
    # Margins at both ends, and room for the floor.
    span = math.log(high / low)
    ends = math.exp(0.05 * span)
    floor = low / math.exp(0.12 * span) if hidden else None
    return Scale((low if floor is None else floor) / ends, high * ends, low, floor, True)


def set_scale(scale: Scale, ax: "Axes", direction: str) -> None:
    """Sets the scale of `ax` in `direction`, "x" or "y"."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axis, (low, high, least, floor, log) = getattr(ax, f"{direction}axis"), scale
    if log:
        getattr(ax, f"set_{direction}scale")("log")
        locator = LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,))
        axis.set_major_locator(locator)
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_locator(NullLocator())
        if floor is not None:
            ticks = [x for x in locator.tick_values(low, high) if least <= x <= high]
            axis.set_ticks([floor, *ticks], [f"< {least:.1g}", *(f"{x:g}" for x in ticks)])
    if floor is not None:
        line = ax.axhline if direction == "y" else ax.axvline
        line(floor, color=GREY, lw=0.8, ls=(0, (1, 2)), zorder=0, label="_floor")
    getattr(ax, f"set_{direction}lim")(low, high)


def tidy(ax: "Axes") -> None:
    """Draws a faint grid, and removes the frame at the top and right."""
    ax.grid(alpha=0.25, lw=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def line_styles(names: Sequence[str]) -> list[dict[str, Any]]:
    """Colour, marker and dashes of each line, distinct in greyscale too.

    The tensors of one module share a colour. If there is only one module, each tensor has its own.
    """
    modules, leaves = ([x.rpartition("/")[i] for x in names] for i in (0, 2))
    if len(set(modules)) == 1 or len(set(leaves)) > len(DASHES):
        modules, leaves = names, [""] * len(names)
    unique_modules, unique_leaves = (list(dict.fromkeys(x)) for x in (modules, leaves))
    styles = []
    for module, leaf in zip(modules, leaves, strict=True):
        i, j = unique_modules.index(module), unique_leaves.index(leaf)
        colour = COLOURS[i % len(COLOURS)]
        dashes = DASHES[(i // len(COLOURS) + j) % len(DASHES)]
        fill = colour if j == 0 else "white"
        marker = MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]
        styles.append({"color": colour, "marker": marker, "ls": dashes, "mfc": fill})
    return styles


def layer_colours(count: int) -> list[Any]:
    """`count` colours from dark to light."""
    return [_colormap()(i / max(count - 1, 1)) for i in range(count)]


def _colormap() -> Any:
    """Viridis without its lightest colours, which are too faint for lines on white."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["viridis"](range(210)), name="tpgm_jax")


def add_layer_bar(ax: "Axes", layers: Sequence[str]) -> None:
    """Adds a colour bar that maps `layer_colours` to layers."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    colours = ScalarMappable(Normalize(0, max(len(layers) - 1, 1)), _colormap())
    bar = ax.figure.colorbar(colours, ax=ax, location="top", shrink=0.6, aspect=40, pad=0.02)
    ends = [0, len(layers) - 1]
    bar.set_ticks(ends, labels=[shorten(layers[i]) for i in ends])
    bar.ax.tick_params(labelsize=8, length=0)
    bar.outline.set_visible(False)


def label_layers(ax: "Axes", layers: Sequence[str], numbered: Sequence[str]) -> None:
    """Labels the x axis with the layers; with numbers alone if they differ in nothing else."""
    family = _depth.family(list(dict.fromkeys(numbered)))
    numbers = set(numbered) if family else set()
    lasts = [x.rpartition("/")[2] for x in layers]
    names = lasts if numbered and len(set(lasts)) == len(lasts) else layers
    texts = [
        re.findall(r"\d+", layer)[0] if layer in numbers else name
        for layer, name in zip(layers, names, strict=True)
    ]
    # Every layer without a number, and as many of the others as fit.
    every = math.ceil(len(layers) / (40 if all(len(x) < 4 for x in texts) else 60))
    shown = [i for i, x in enumerate(layers) if i % every == 0 or (numbers and x not in numbers)]
    ax.set_xticks(shown, [shorten(texts[i]) for i in shown])
    for label in ax.get_xticklabels():
        if len(label.get_text()) > 3:
            label.set(rotation=90, fontsize=7 if len(shown) > 30 else 8)
    ax.set_xlabel(f"{family or 'layer'}, from input to output" if numbered else "tensor")


def shorten(text: str) -> str:
    """`text`, with its middle replaced by an ellipsis if it is longer than `LONGEST`."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}…{text[-LONGEST // 2 :]}"


def lines_that_fit(ax: "Axes", size: float) -> int:
    """Number of lines of text of `size` points that fit beside `ax`."""
    return int(ax.get_window_extent().height / ax.figure.dpi * 72 / (1.25 * size))


def label_ends(ax: "Axes", ends: Sequence[tuple[float, float, str, Any]], size: float) -> None:
    """Labels the lines of `ax` on its right, each label at the height of its line or near it.

    Args:
        ax: axes whose limits and scales are final.
        ends: last point, label and colour of each line.
        size: font size in points.
    """
    lines = max(lines_that_fit(ax, size), 2)
    ends = sorted(ends, key=lambda end: end[1])
    if len(ends) > lines:  # label the highest and the lowest
        ends = ends[: lines // 2] + ends[-(lines // 2) :]
    to_fraction = ax.transData + ax.transAxes.inverted()
    heights = [float(to_fraction.transform((x, y))[1]) for x, y, _, _ in ends]
    for (x, y, text, colour), height in zip(ends, _spread(heights, 1 / lines), strict=True):
        ax.annotate(
            shorten(text),
            xy=(x, y),
            xytext=(1.02, height),
            textcoords="axes fraction",
            color="black",
            fontsize=size,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "lw": 0.8,
                "alpha": 0.8,
                "relpos": (0, 0.5),
            },
        )


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Sorted heights, moved as little as possible to be `gap` apart and between 0 and 1.

    Heights that are too close form a block around their mean. Blocks that overlap are merged.
    """
    blocks: list[tuple[float, int]] = []  # mean, number of heights
    for height in heights:
        blocks.append((height, 1))
        while len(blocks) > 1:
            (m, n), (o, p) = blocks[-2:]
            if o - m >= gap * (n + p) / 2:
                break
            blocks[-2:] = [((m * n + o * p) / (n + p), n + p)]
    spread = [m + (i - (n - 1) / 2) * gap for m, n in blocks for i in range(n)]
    spread = [min(x, 1 - (len(spread) - 1 - i) * gap) for i, x in enumerate(spread)]
    return [max(x, i * gap) for i, x in enumerate(spread)]


def label_points(
    ax: "Axes", points: Sequence[tuple[float, float]], labels: Sequence[str], size: float
) -> None:
    """Labels as many points as fit, starting with the outermost and those off the diagonal."""
    pixels = [(float(x), float(y)) for x, y in ax.transData.transform(points)]
    box, letter = ax.get_window_extent(), size * ax.figure.dpi / 72
    occupied = [(x - 5, y - 5, x + 5, y + 5) for x, y in pixels]
    for i in sorted(range(len(points)), key=lambda i: _distinctness(i, pixels), reverse=True):
        (x, y), width, gap = pixels[i], 0.55 * letter * len(labels[i]), 0.7 * letter
        for dx, dy, ha in ((gap, -0.6 * letter, "left"), (-gap, 0.6 * letter, "right")):
            left, low = x + dx - (width if ha == "right" else 0), y + dy - 0.6 * letter
            label = left, low, left + width, low + 1.2 * letter
            inside = box.x0 <= label[0] and label[2] <= box.x1 and box.y0 <= low
            if inside and not any(_overlap(label, other) for other in occupied):
                offset: Any = {"xytext": (dx * 72 / ax.figure.dpi, dy * 72 / ax.figure.dpi)}
                offset |= {"textcoords": "offset points", "ha": ha, "va": "center"}
                ax.annotate(shorten(labels[i]), points[i], fontsize=size, color=GREY, **offset)
                occupied.append(label)
                break


def _distinctness(i: int, pixels: Sequence[tuple[float, float]]) -> float:
    """Distance of point `i` from the mean of all points and, weighted, from the diagonal."""
    mean = [sum(x) / len(pixels) for x in zip(*pixels, strict=True)]
    (x, y), diagonal = pixels[i], mean[1] - mean[0]
    return math.dist((x, y), mean) + 3 * abs(y - x - diagonal)


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
