"""The three plots."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tpgm_jax._inspect.report import Report
from tpgm_jax.plot import _depth, _drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_STYLES = 10  # lines with a style and a label each; more are coloured by layer
FONT_SIZE = 8.0  # points


def radii_by_depth(radii: Report | Mapping[str, Any], ax: "Axes | None" = None) -> "Axes":
    """Draws the radius of each tensor against its layer.

    Tensors of one kind, such as all `attn/query/kernel`, form one line. The numbers in names give
    the layers. Tensors without a number are placed on the right, embeddings on the left, and heads
    last. The scale is logarithmic if radii span more than a decade. Radii that have collapsed to
    1e-8, or are below a hundredth of the median, are drawn on a dotted line at the bottom.

    Args:
        radii: a report, or the result of `tpgm_jax.radii` or `fit_radii`.
        ax: axes to draw into. Default: a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is missing.
        ValueError, TypeError: there are no radii.

    Examples:
        >>> import tpgm_jax
        >>> radii = {f"block_{i}/{kind}": 0.1 * i + 0.1 for i in range(4) for kind in ("w", "b")}
        >>> ax = tpgm_jax.plot.radii_by_depth(radii)
        >>> ax.get_xlabel()
        'block, from input to output'
        >>> ax.figure.savefig("radii.png")  # doctest: +SKIP
    """
    entries = _depth.read_radii(radii)
    places = _depth.locate(entries)
    layers = _depth.order_layers(places)
    ax = _drawing.new_axes(ax, min(6 + 0.12 * len(layers), 11), 4.8)
    scale = _drawing.choose_scale([entry.value for entry in entries])
    _drawing.set_scale(scale, ax, "y")
    ax.set_xlim(-0.5, len(layers) - 0.5)

    lines: dict[str, list[tuple[float, float]]] = {}
    for entry, place in zip(entries, places, strict=True):
        point = layers.index(place.layer), scale.coordinate(entry.value)
        lines.setdefault(place.kind, []).append(point)
    numbered = {place.kind for place in places if place.numbered}
    prefix = _depth.common_prefix([kind for kind in lines if kind in numbered])
    styles, ends = _drawing.line_styles(list(lines)), []
    for (kind, points), style in zip(lines.items(), styles, strict=True):
        points.sort()
        if kind not in numbered:  # a line would pass over layers without such a tensor
            style["ls"] = "none"
        ax.plot(*zip(*points, strict=True), label=kind or "radius", lw=1.4, ms=4.5, **style)
        if kind in numbered:
            ends.append((*points[-1], kind.removeprefix(prefix), style["color"]))
            continue
        for point in points if kind else ():
            offset: Any = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center"}
            ax.annotate(kind, point, fontsize=FONT_SIZE - 1, **offset)
    _drawing.label_ends(ax, ends, FONT_SIZE)
    _drawing.label_layers(ax, layers, [place.layer for place in places if place.numbered])
    _drawing.tidy(ax)
    ax.set_ylabel(f"radius: how far {_describe_distance([radii])}")
    return ax


def radii_over_training(
    history: Iterable[tuple[Any, Any]] | Mapping[Any, Any], ax: "Axes | None" = None
) -> "Axes":
    """Draws the radii against the training step.

    Up to ten lines have a colour and a label each. If there are more, the colour gives the layer,
    from input to output, and only the lines that end highest and lowest are labelled.

    Args:
        history: pairs of a step and the result of `tpgm_jax.radii` or `tpgm_jax.report` after it,
            in any order; or a dict of them.
        ax: axes to draw into. Default: a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is missing.
        ValueError, TypeError: the history is empty, or has no radii.

    Examples:
        >>> import tpgm_jax
        >>> history = []
        >>> for step in range(3):  # in a training loop: tpgm_jax.radii(opt_state, params)
        ...     history.append((step, {"kernel": 0.1 * step + 0.1, "bias": 0.02 * step + 0.1}))
        >>> ax = tpgm_jax.plot.radii_over_training(history)
        >>> [line.get_label() for line in ax.lines]
        ['kernel', 'bias']
    """
    pairs = list(history.items() if isinstance(history, Mapping) else history)
    if not pairs:
        raise ValueError(
            "there is nothing to draw, because `history` is empty: collect "
            "`(step, tpgm_jax.radii(opt_state, params))` in the training loop, every few steps."
        )
    by_step = {float(step): _depth.read_radii(radii) for step, radii in pairs}
    steps = sorted(by_step)
    entries = {entry.label: entry for step in steps for entry in by_step[step]}
    values = [{entry.label: entry.value for entry in by_step[step]} for step in steps]
    places = _depth.locate(list(entries.values()))
    layers = _depth.order_layers(places)
    ax = _drawing.new_axes(ax, 8.5, 4.8)
    scale = _drawing.choose_scale([x for radii in values for x in radii.values()])
    _drawing.set_scale(scale, ax, "y")
    limits = (steps[0], steps[-1]) if len(steps) > 1 else (steps[0] - 1, steps[0] + 1)
    ax.set_xlim(*limits)

    few, every = len(entries) <= MOST_STYLES, max(1, len(steps) // 10)
    styles = _drawing.line_styles(list(entries)) if few else []
    shades, ends = _drawing.layer_colours(len(layers)), []
    for i, (label, place) in enumerate(zip(entries, places, strict=True)):
        style = styles[i] if few else {"color": shades[layers.index(place.layer)]}
        heights = [scale.coordinate(radii.get(label, math.nan)) for radii in values]
        ax.plot(steps, heights, label=label, lw=1.4 if few else 0.9, ms=4, markevery=every, **style)
        ends.append((steps[-1], heights[-1], label, style["color"]))
    ends = sorted((end for end in ends if math.isfinite(end[1])), key=lambda end: end[1])
    if not few:
        ends = ends[: MOST_STYLES // 2] + ends[MOST_STYLES // 2 :][-MOST_STYLES // 2 :]
        _drawing.add_layer_bar(ax, layers)
    _drawing.label_ends(ax, ends, FONT_SIZE)
    _drawing.tidy(ax)
    ax.set_xlabel("training step")
    ax.set_ylabel(f"radius: how far {_describe_distance(radii for _, radii in pairs)}")
    return ax


def candidate_against_radius(report: Report, ax: "Axes | None" = None) -> "Axes":
    """Draws how far each tensor would have gone in the last step against its radius.

    A tensor above the diagonal was pulled back to it: its farthest row would have gone beyond the
    radius. On the diagonal a tensor moves freely. The colour gives the share of moved rows
    that were pulled back.

    Args:
        report: the result of `tpgm_jax.report`.
        ax: axes to draw into. Default: a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is missing.
        ValueError, TypeError: the report has no radii, or is not a `Report`.

    Examples:
        >>> import jax.numpy as jnp, optax, tpgm_jax
        >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
        >>> tx = tpgm_jax.ftp(optax.adam(1e-3))
        >>> updates, opt_state = tx.update(params, tx.init(params), params)
        >>> report = tpgm_jax.report(opt_state, optax.apply_updates(params, updates))
        >>> ax = tpgm_jax.plot.candidate_against_radius(report)
        >>> print(ax.get_ylabel())
        candidate: how far the farthest row would have gone
        from its pre-trained weights (L1 norm)
    """
    if not isinstance(report, Report):
        raise TypeError(
            f"`report` must be a `Report`, because only a report holds the steps; got "
            f"{type(report).__name__}. Pass the result of `tpgm_jax.report(opt_state, params)`, "
            "not of `tpgm_jax.radii`."
        )
    _depth.read_radii(report)
    groups = [group for group in report.groups if group.radius is not None]
    numbers = [
        (x.radius or 0.0, (x.radius or 0.0) * (x.overshoot or 0.0), x.pulled_back or 0.0)
        for x in groups
    ]
    ax = _drawing.new_axes(ax, 6.6, 5.2)
    scale = _drawing.choose_scale(
        [x for radius, candidate, _ in numbers for x in (radius, candidate)]
    )
    points = [(scale.coordinate(x), scale.coordinate(y)) for x, y, _ in numbers]
    for direction in ("x", "y"):
        _drawing.set_scale(scale, ax, direction)
    ends = [scale.low, scale.high]
    ax.plot(ends, ends, color=_drawing.GREY, lw=1, ls="--", zorder=1, label="_diagonal")
    scatter = ax.scatter(
        *zip(*points, strict=True),
        c=[100 * share for *_, share in numbers],
        **{"vmin": 0, "vmax": 100, "cmap": "viridis"},
        **{"s": 36, "edgecolors": "black", "linewidths": 0.6, "zorder": 2, "clip_on": False},
    )
    ax.figure.colorbar(scatter, ax=ax, label="share of moved rows that were pulled back (%)")
    ax.set_box_aspect(1)
    _drawing.label_points(ax, points, [group.label for group in groups], FONT_SIZE - 1)
    _drawing.tidy(ax)
    ax.set_xlabel(f"radius: how far {_describe_distance([report])}")
    row = "the farthest row would have gone"
    ax.set_ylabel(f"candidate: how far {_describe_distance([report], row)}")
    return ax


def _describe_distance(sources: Iterable[Any], row: str = "each row may go") -> str:
    """The rest of an axis label. Only reports hold the norm; dicts of radii do not."""
    groups = [group for x in sources if isinstance(x, Report) for group in x.groups]
    norms = sorted({group.norm for group in groups if group.radius is not None})
    if norms == ["l2"]:
        row = row.replace("farthest row", "tensor").replace("row", "tensor")
    unit = {"mars": " (L1 norm)", "l2": " (L2 norm)"}[norms[0]] if len(norms) == 1 else ""
    return f"{row}\nfrom its pre-trained weights{unit}"
