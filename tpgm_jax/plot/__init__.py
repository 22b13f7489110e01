"""Pictures of what was learned, with matplotlib: `pip install 'tpgm-jax[plot]'`.

Every function draws into the axes that it is given, or into those of a new figure, and returns
them; to show or to save the figure is up to the caller.
"""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tpgm_jax._report import Report
from tpgm_jax.plot import _depth, _drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW = 10  # lines that each have a colour and a label
SMALL = 8.0  # points, of labels


def radii_by_depth(radii: Report | Mapping[str, Any], ax: "Axes | None" = None) -> "Axes":
    """Draws the radius of each tensor against the layer it is in.

    Tensors of one kind, such as all `attn/query/kernel`, are one line. Layers are told by the
    numbers in names; those without stand at the right, or at the left if they are called an
    embedding, or last if they are called a head. The scale is logarithmic where radii span more
    than a decade. Radii that have collapsed to 1e-8, or are less than a hundredth of what is
    usual, are drawn on a dotted line at the bottom.

    Args:
        radii: a report, or what `tpgm_jax.radii` or `fit_radii` returned.
        ax: where to draw; by default a new figure.

    Returns:
        `ax`, or that of the new figure.

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
    found = _depth.entries(radii)
    places = _depth.places(found)
    layers = _depth.layers(places)
    ax = _drawing.new_axes(ax, min(6 + 0.12 * len(layers), 11), 4.8)
    scale = _drawing.scale([entry.value for entry in found])
    _drawing.apply(scale, ax, "y")
    ax.set_xlim(-0.5, len(layers) - 0.5)

    lines: dict[str, list[tuple[float, float]]] = {}
    for entry, place in zip(found, places, strict=True):
        point = layers.index(place.layer), scale.place(entry.value)
        lines.setdefault(place.kind, []).append(point)
    numbered = {place.kind for place in places if place.numbered}
    shared = _depth.common([kind for kind in lines if kind in numbered])
    styles, ends = _drawing.styles(list(lines)), []
    for (kind, points), style in zip(lines.items(), styles, strict=True):
        points.sort()
        if kind not in numbered:  # a line would pass over layers that have no such tensor
            style["ls"] = "none"
        ax.plot(*zip(*points, strict=True), label=kind or "radius", lw=1.4, ms=4.5, **style)
        if kind in numbered:
            ends.append((*points[-1], kind.removeprefix(shared), style["color"]))
            continue
        for point in points if kind else ():
            at: Any = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center"}
            ax.annotate(kind, point, fontsize=SMALL - 1, **at)
    _drawing.label_ends(ax, ends, SMALL)
    _drawing.label_layers(ax, layers, [place.layer for place in places if place.numbered])
    _drawing.tidy(ax)
    ax.set_ylabel(f"radius: how far {_what([radii])}")
    return ax


def radii_over_training(
    history: Iterable[tuple[Any, Any]] | Mapping[Any, Any], ax: "Axes | None" = None
) -> "Axes":
    """Draws how the radii grew and shrank.

    Up to ten lines have a colour and a label each. More of them are coloured from the input of
    the model to its output, and those that end highest and lowest are labelled.

    Args:
        history: pairs of a step and what `tpgm_jax.radii` or `tpgm_jax.report` returned after it,
            in any order; or a dict of them.
        ax: where to draw; by default a new figure.

    Returns:
        `ax`, or that of the new figure.

    Raises:
        ImportError: matplotlib is missing.
        ValueError, TypeError: the history is empty, or there are no radii in it.

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
            "`history` is empty: collect `(step, tpgm_jax.radii(opt_state, params))` in the "
            "training loop, every so many steps."
        )
    at_steps = {float(step): _depth.entries(radii) for step, radii in pairs}
    steps = sorted(at_steps)
    found = {entry.label: entry for step in steps for entry in at_steps[step]}
    values = [{entry.label: entry.value for entry in at_steps[step]} for step in steps]
    places = _depth.places(list(found.values()))
    layers = _depth.layers(places)
    ax = _drawing.new_axes(ax, 8.5, 4.8)
    scale = _drawing.scale([x for radii in values for x in radii.values()])
    _drawing.apply(scale, ax, "y")
    ends_at = (steps[0], steps[-1]) if len(steps) > 1 else (steps[0] - 1, steps[0] + 1)
    ax.set_xlim(*ends_at)

    few, every = len(found) <= FEW, max(1, len(steps) // 10)
    styles = _drawing.styles(list(found)) if few else []
    shades, ends = _drawing.shades(len(layers)), []
    for i, (label, place) in enumerate(zip(found, places, strict=True)):
        style = styles[i] if few else {"color": shades[layers.index(place.layer)]}
        heights = [scale.place(radii.get(label, math.nan)) for radii in values]
        ax.plot(steps, heights, label=label, lw=1.4 if few else 0.9, ms=4, markevery=every, **style)
        ends.append((steps[-1], heights[-1], label, style["color"]))
    ends = sorted((end for end in ends if math.isfinite(end[1])), key=lambda end: end[1])
    if not few:
        ends = ends[: FEW // 2] + ends[FEW // 2 :][-FEW // 2 :]
        _drawing.layer_bar(ax, layers)
    _drawing.label_ends(ax, ends, SMALL)
    _drawing.tidy(ax)
    ax.set_xlabel("training step")
    ax.set_ylabel(f"radius: how far {_what(radii for _, radii in pairs)}")
    return ax


def distance_against_radius(report: Report, ax: "Axes | None" = None) -> "Axes":
    """Draws how far each tensor went against how far it may go.

    Its farthest row counts. On the diagonal that row is as far as it may be; the colour says how
    many of its rows are.

    Args:
        report: what `tpgm_jax.report` returned.
        ax: where to draw; by default a new figure.

    Returns:
        `ax`, or that of the new figure.

    Raises:
        ImportError: matplotlib is missing.
        ValueError, TypeError: there are no radii, or it is no report.

    Examples:
        >>> import jax.numpy as jnp, optax, tpgm_jax
        >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
        >>> tx = tpgm_jax.ftp(optax.adam(1e-3))
        >>> updates, opt_state = tx.update(params, tx.init(params), params)
        >>> report = tpgm_jax.report(opt_state, optax.apply_updates(params, updates))
        >>> ax = tpgm_jax.plot.distance_against_radius(report)
        >>> print(ax.get_ylabel())
        distance: how far the farthest row has gone
        from its pre-trained weights (L1 norm)
    """
    if not isinstance(report, Report):
        raise TypeError(
            "distances are in what `tpgm_jax.report(opt_state, params)` returns, and not in what "
            f"`tpgm_jax.radii` does; got {type(report).__name__}."
        )
    _depth.entries(report)
    groups = [group for group in report.groups if group.radius is not None]
    numbers = [(x.radius or 0.0, x.distance, x.saturated or 0.0) for x in groups]
    ax = _drawing.new_axes(ax, 6.6, 5.2)
    scale = _drawing.scale([x for radius, distance, _ in numbers for x in (radius, distance)])
    points = [(scale.place(radius), scale.place(distance)) for radius, distance, _ in numbers]
    for which in ("x", "y"):
        _drawing.apply(scale, ax, which)
    ends = [scale.low, scale.high]
    ax.plot(ends, ends, color=_drawing.GREY, lw=1, ls="--", zorder=1, label="_diagonal")
    drawn = ax.scatter(
        *zip(*points, strict=True),
        c=[100 * share for *_, share in numbers],
        **{"vmin": 0, "vmax": 100, "cmap": "viridis"},
        **{"s": 36, "edgecolors": "black", "linewidths": 0.6, "zorder": 2, "clip_on": False},
    )
    ax.figure.colorbar(drawn, ax=ax, label="rows that are at their radius (%)")
    ax.set_box_aspect(1)
    _drawing.label_points(ax, points, [group.label for group in groups], SMALL - 1)
    _drawing.tidy(ax)
    ax.set_xlabel(f"radius: how far {_what([report])}")
    ax.set_ylabel(f"distance: how far {_what([report], 'the farthest row has gone')}")
    return ax


def _what(sources: Iterable[Any], row: str = "each row may go") -> str:
    """What goes from where, and in which norm; dicts of radii do not tell theirs."""
    groups = [group for x in sources if isinstance(x, Report) for group in x.groups]
    norms = sorted({group.norm for group in groups if group.radius is not None})
    if norms == ["l2"]:
        row = row.replace("farthest row", "tensor").replace("row", "tensor")
    unit = {"mars": " (L1 norm)", "l2": " (L2 norm)"}[norms[0]] if len(norms) == 1 else ""
    return f"{row}\nfrom its pre-trained weights{unit}"
