"""Selection of the tensors to measure, and the axes of their rows."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import jax
import numpy as np

from tpgm_jax._core.axes import Axes, Tensor, make_layout
from tpgm_jax._core.names import match_pattern
from tpgm_jax.cli._checkpoint import Entry
from tpgm_jax.cli._errors import CommandError

ROWS = ("auto", "first", "last")


def parse_axes(text: str) -> tuple[str, Axes]:
    """Parses `REGEX=ROWS[,LAYERS]` to a pattern and its axes.

    Raises:
        CommandError: `text` does not have this form.
    """
    pattern, sign, axes = text.rpartition("=")
    rows, _, layers = axes.partition(",")
    try:
        if not sign:
            raise ValueError("there is no =")
        numbers = _numbers(layers) if layers else ()
        return pattern, Axes(rows=None if rows == "auto" else _numbers(rows), layers=numbers)
    except ValueError as error:
        raise CommandError(
            f"--axes {text!r} is not REGEX=ROWS[,LAYERS], because {error}: ROWS is `auto`, `none`, "
            "an axis, or several joined by +. For layers stacked along the first axis, pass "
            "--axes 'layers/.*=auto,0'."
        ) from error


def _numbers(text: str) -> tuple[int, ...]:
    return () if text == "none" else tuple(int(axis) for axis in text.split("+"))


def excluded_names(patterns: Sequence[str], names: Sequence[str]) -> set[str]:
    """The names that a pattern of `--exclude` matches in full.

    Raises:
        CommandError: a pattern is invalid, or matches nothing.
    """
    try:
        return set().union(*(match_pattern(pattern, names, "--exclude") for pattern in patterns))
    except ValueError as error:
        raise CommandError(str(error)) from error


def tensors(
    entries: Mapping[str, Entry],
    measurable: Callable[[Entry], bool],
    rows: str = "auto",
    axes: Sequence[tuple[str, Axes]] = (),
) -> dict[str, Tensor]:
    """The tensors to measure, by name, with their layers and rows.

    Args:
        entries: all entries of a checkpoint, because the shape of a bias gives its kernel's axes.
        measurable: whether to measure an entry.
        rows: "auto", "first" or "last": the rows of tensors that `axes` does not match.
        axes: patterns and axes; the first match wins.

    Raises:
        CommandError: a pattern matches nothing, or its axes do not exist.
    """
    arrays = {name: entry for name, entry in entries.items() if entry.dtype is not None}
    aliases = _flax_names(list(arrays))
    shapes = {
        aliases[name]: jax.ShapeDtypeStruct(entry.shape, np.dtype(entry.dtype))
        for name, entry in arrays.items()
    }
    originals = {alias: name for name, alias in aliases.items()}
    selected = {name for name, entry in arrays.items() if measurable(entry)}
    if not selected:
        return {}
    declared: dict[str, Axes] = {}
    try:
        for pattern, value in axes:
            for name in match_pattern(pattern, list(arrays), "--axes"):
                declared.setdefault(name, value)

        def axes_of(alias: str, leaf: Any) -> Axes:
            name = originals[alias]
            return _fill_rows(declared.get(name, Axes()), name, leaf.ndim, rows)

        layout = make_layout(shapes, lambda alias, leaf: originals[alias] not in selected, axes_of)
    except (ValueError, TypeError) as error:
        raise CommandError(str(error)) from error
    return {originals[tensor.name]: tensor for tensor in layout.tensors}


def _flax_names(names: Sequence[str]) -> dict[str, str]:
    """Maps each name to the name that Flax's conventions expect: with slashes, without boxes.

    A box, such as an NNX variable or linen's `Partitioned`, is a level whose only child is `value`.
    """
    aliases = {name: name if "/" in name else name.replace(".", "/") for name in names}
    below = Counter(
        str(level) for path in aliases.values() for level in PurePosixPath(path).parents
    )
    aliases = {
        name: box if below[box := path.removesuffix("/value")] == 1 else path
        for name, path in aliases.items()
    }
    distinct = len(set(aliases.values())) == len(aliases)
    return aliases if distinct else {name: name for name in names}


def _fill_rows(axes: Axes, name: str, rank: int, rows: str) -> Axes:
    """`axes` with its rows filled in, unless they are given or follow Flax's conventions."""
    if axes.rows is not None:
        return axes
    layers = (axes.layers,) if isinstance(axes.layers, int) else axes.layers
    rest = [axis for axis in range(rank) if axis not in {x % max(rank, 1) for x in layers}]
    # PyTorch and Equinox put outputs first and use the name `weight`; Flax never does.
    is_weight = name.replace("/", ".").rpartition(".")[2].endswith("weight")
    if len(rest) < 2 or (rows == "auto" and not is_weight):
        return axes
    return axes._replace(rows=rest[-1] if rows == "last" else rest[0])
