"""What the pictures share: axes, scales, colours and labels."""

import math
import re
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tpgm_jax.plot import _depth

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which the colour-blind tell apart, but for the yellow, too faint for
# lines on white; in an order in which neighbours differ in lightness too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LONGEST = 36  # letters of a label
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 1.5, 1, 1.5)))
GREY = "#555555"

# A radius that has collapsed is 1e-8; one axis for it and for the others would show no others.
COLLAPSED = 1e-7


def new_axes(ax: "Axes | None", width: float, height: float) -> "Axes":
    """`ax`, or that of a new figure, of a size in inches."""
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "`tpgm_jax.plot` draws with matplotlib, which is not installed: "
            "pip install 'tpgm-jax[plot]'."
        ) from error
    return plt.subplots(figsize=(width, height), layout="constrained")[1]


class Scale(NamedTuple):
    """An axis of radii.

    Attributes:
        low: its lower end.
        high: its upper end.
        least: the least that it shows as it is.
        floor: where it shows what is less; `None` if nothing is.
        log: whether it is logarithmic.
    """

    low: float
    high: float
    least: float
    floor: float | None
    log: bool

    def place(self, value: float) -> float:
        """Where a value is drawn."""
        return value if self.floor is None or not value < self.least else self.floor


def scale(values: Sequence[float]) -> Scale:
    """Logarithmic where radii span more than a decade.

    Radii that have collapsed, or are less than a hundredth of what is usual, share a place below:
    on one axis with them the others would be a single line.
    """
    finite = [x for x in values if math.isfinite(x)]
    above = [x for x in finite if x > COLLAPSED]
    if not above:
        return Scale(-0.03, 1.0, math.inf, 0.0, False)
    least = statistics.median(above) / 100
    shown, hidden = [x for x in above if x >= least], [x for x in finite if x < least]
    low, high = min(shown), max(shown)
    if high < 10 * low:
        return Scale(-0.03 * high, 1.08 * high, low, 0.0 if hidden else None, False)
    # Some of the axis for the ends, and some below for what is less.
    span = math.log(high / low)
    ends = math.exp(0.05 * span)
    floor = low / math.exp(0.12 * span) if hidden else None
    return Scale((low if floor is None else floor) / ends, high * ends, low, floor, True)


def apply(scale: Scale, ax: "Axes", which: str) -> None:
    """Gives `ax` this scale along "x" or "y"."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axis, (low, high, least, floor, log) = getattr(ax, f"{which}axis"), scale
    if log:
        getattr(ax, f"set_{which}scale")("log")
        locator = LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,))
        axis.set_major_locator(locator)
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_locator(NullLocator())
        if floor is not None:
            ticks = [x for x in locator.tick_values(low, high) if least <= x <= high]
            axis.set_ticks([floor, *ticks], [f"< {least:.1g}", *(f"{x:g}" for x in ticks)])
    if floor is not None:
        line = ax.axhline if which == "y" else ax.axvline
        line(floor, color=GREY, lw=0.8, ls=(0, (1, 2)), zorder=0, label="_floor")
    getattr(ax, f"set_{which}lim")(low, high)


def tidy(ax: "Axes") -> None:
    """Faint lines behind the numbers, and no frame."""
    ax.grid(alpha=0.25, lw=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def styles(names: Sequence[str]) -> list[dict[str, Any]]:
    """Colour, marker and dashes of lines that are to be told apart, also in grey.

    The tensors of one module share a colour; where all are of one, each has its own.
    """
    modules, leaves = ([x.rpartition("/")[i] for x in names] for i in (0, 2))
    if len(set(modules)) == 1 or len(set(leaves)) > len(DASHES):
        modules, leaves = names, [""] * len(names)
    modules_in_order, leaves_in_order = (list(dict.fromkeys(x)) for x in (modules, leaves))
    found = []
    for module, leaf in zip(modules, leaves, strict=True):
        i, j = modules_in_order.index(module), leaves_in_order.index(leaf)
        colour = COLOURS[i % len(COLOURS)]
        dashes = DASHES[(i // len(COLOURS) + j) % len(DASHES)]
        filled = colour if j == 0 else "white"
        marker = MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]
        found.append({"color": colour, "marker": marker, "ls": dashes, "mfc": filled})
    return found


def shades(count: int) -> list[Any]:
    """Colours from dark to light, without the lightest, which are too faint for lines on white."""
    return [_shades()(i / max(count - 1, 1)) for i in range(count)]


def _shades() -> Any:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["viridis"](range(210)), name="tpgm_jax")


def layer_bar(ax: "Axes", layers: Sequence[str]) -> None:
    """Says which colour of `shades` is which layer."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    colours = ScalarMappable(Normalize(0, max(len(layers) - 1, 1)), _shades())
    bar = ax.figure.colorbar(colours, ax=ax, location="top", shrink=0.6, aspect=40, pad=0.02)
    ends = [0, len(layers) - 1]
    bar.set_ticks(ends, labels=[elided(layers[i]) for i in ends])
    bar.ax.tick_params(labelsize=8, length=0)
    bar.outline.set_visible(False)


def label_layers(ax: "Axes", layers: Sequence[str], numbered: Sequence[str]) -> None:
    """Names the layers below `ax`, by their numbers alone if that is all in which they differ."""
    family = _depth.family(list(dict.fromkeys(numbered)))
    numbers = set(numbered) if family else set()
    lasts = [x.rpartition("/")[2] for x in layers]
    names = lasts if numbered and len(set(lasts)) == len(lasts) else layers
    texts = [
        re.findall(r"\d+", layer)[0] if layer in numbers else name
        for layer, name in zip(layers, names, strict=True)
    ]
    # What has no number is named in any case; of the rest, as many as there is room for.
    every = math.ceil(len(layers) / (40 if all(len(x) < 4 for x in texts) else 60))
    shown = [i for i, x in enumerate(layers) if i % every == 0 or (numbers and x not in numbers)]
    ax.set_xticks(shown, [elided(texts[i]) for i in shown])
    for label in ax.get_xticklabels():
        if len(label.get_text()) > 3:
            label.set(rotation=90, fontsize=7 if len(shown) > 30 else 8)
    ax.set_xlabel(f"{family or 'layer'}, from input to output" if numbered else "tensor")


def elided(text: str) -> str:
    """Without the middle, if it is long."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}…{text[-LONGEST // 2 :]}"


def room(ax: "Axes", size: float) -> int:
    """How many lines of text of `size` points fit beside `ax`."""
    return int(ax.get_window_extent().height / ax.figure.dpi * 72 / (1.25 * size))


def label_ends(ax: "Axes", ends: Sequence[tuple[float, float, str, Any]], size: float) -> None:
    """Writes beside `ax` what its lines are, each label at the height of its line or near it.

    Args:
        ax: with limits and scales that are final.
        ends: of each line its last point, label and colour.
        size: of the letters, in points.
    """
    lines = max(room(ax, size), 2)
    ends = sorted(ends, key=lambda end: end[1])
    if len(ends) > lines:  # the highest and the lowest
        ends = ends[: lines // 2] + ends[-(lines // 2) :]
    to_fraction = ax.transData + ax.transAxes.inverted()
    heights = [float(to_fraction.transform((x, y))[1]) for x, y, _, _ in ends]
    for (x, y, text, colour), spot in zip(ends, _spread(heights, 1 / lines), strict=True):
        ax.annotate(
            elided(text),
            xy=(x, y),
            xytext=(1.02, spot),
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
    """Sorted heights, moved as little as may be to lie `gap` apart, between 0 and 1.

    Those that are too near each other form a block around their mean, and blocks that meet, one.
    """
    blocks: list[tuple[float, int]] = []  # middle, members
    for height in heights:
        blocks.append((height, 1))
        while len(blocks) > 1:
            (m, n), (o, p) = blocks[-2:]
            if o - m >= gap * (n + p) / 2:
                break
            blocks[-2:] = [((m * n + o * p) / (n + p), n + p)]
    found = [m + (i - (n - 1) / 2) * gap for m, n in blocks for i in range(n)]
    found = [min(x, 1 - (len(found) - 1 - i) * gap) for i, x in enumerate(found)]
    return [max(x, i * gap) for i, x in enumerate(found)]


def label_points(
    ax: "Axes", points: Sequence[tuple[float, float]], labels: Sequence[str], size: float
) -> None:
    """Names as many points as there is room for: first those at the ends and off the diagonal."""
    pixels = [(float(x), float(y)) for x, y in ax.transData.transform(points)]
    box, letter = ax.get_window_extent(), size * ax.figure.dpi / 72
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in pixels]
    for i in sorted(range(len(points)), key=lambda i: _notable(i, pixels), reverse=True):
        (x, y), width, gap = pixels[i], 0.55 * letter * len(labels[i]), 0.7 * letter
        for dx, dy, ha in ((gap, -0.6 * letter, "left"), (-gap, 0.6 * letter, "right")):
            left, low = x + dx - (width if ha == "right" else 0), y + dy - 0.6 * letter
            wanted = left, low, left + width, low + 1.2 * letter
            inside = box.x0 <= wanted[0] and wanted[2] <= box.x1 and box.y0 <= low
            if inside and not any(_overlap(wanted, other) for other in taken):
                at: Any = {"xytext": (dx * 72 / ax.figure.dpi, dy * 72 / ax.figure.dpi)}
                at |= {"textcoords": "offset points", "ha": ha, "va": "center"}
                ax.annotate(elided(labels[i]), points[i], fontsize=size, color=GREY, **at)
                taken.append(wanted)
                break


def _notable(i: int, pixels: Sequence[tuple[float, float]]) -> float:
    """How far a point is from the middle of all, and from the diagonal."""
    middle = [sum(x) / len(pixels) for x in zip(*pixels, strict=True)]
    (x, y), diagonal = pixels[i], middle[1] - middle[0]
    return math.dist((x, y), middle) + 3 * abs(y - x - diagonal)


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
