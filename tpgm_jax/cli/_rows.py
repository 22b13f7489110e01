"""Which tensors are measured, and along which axes their rows lie."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import jax
import numpy as np

from tpgm_jax._axes import Axes, Tensor, layout
from tpgm_jax._names import leaf_names, matches
from tpgm_jax.cli._checkpoint import Entry
from tpgm_jax.cli._errors import CommandError

ROWS = ("auto", "first", "last")


def parsed_axes(text: str) -> tuple[str, Axes]:
    """`REGEX=ROWS[,LAYERS]` to a pattern and its axes.

    Raises:
        CommandError: it is not of that form.
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
            f"--axes {text!r} is not REGEX=ROWS[,LAYERS] ({error}). ROWS is `auto`, `none`, an "
            "axis, or several joined by +; for layers stacked along the first axis: "
            "--axes 'layers/.*=auto,0'."
        ) from error


def _numbers(text: str) -> tuple[int, ...]:
    return () if text == "none" else tuple(int(axis) for axis in text.split("+"))


def excluded(patterns: Sequence[str], names: Sequence[str]) -> set[str]:
    """The names that a pattern of `--exclude` matches in full."""
    try:
        return set().union(*(matches(pattern, names, "--exclude") for pattern in patterns))
    except ValueError as error:
        raise CommandError(str(error)) from error


def tensors(
    entries: Mapping[str, Entry],
    measured: Callable[[Entry], bool],
    rows: str = "auto",
    axes: Sequence[tuple[str, Axes]] = (),
) -> dict[str, Tensor]:
    """The tensors to measure, by name, as the library divides them into layers and rows.

    Args:
        entries: all of a checkpoint, as the shape of a bias says which axes its kernel has.
        measured: which of them are.
        rows: "auto", "first" or "last": the rows of what `axes` does not name.
        axes: patterns and axes; the first that matches holds.

    Raises:
        CommandError: a pattern matches nothing, or names axes that there are not.
    """
    known = {name: entry for name, entry in entries.items() if entry.dtype is not None}
    called = _called(list(known))
    shapes = {
        called[name]: jax.ShapeDtypeStruct(entry.shape, np.dtype(entry.dtype))
        for name, entry in known.items()
    }
    back = {alias: name for name, alias in called.items()}
    kept = {name for name, entry in known.items() if measured(entry)}
    if not kept:
        return {}
    declared: dict[str, Axes] = {}
    try:
        for pattern, value in axes:
            for name in matches(pattern, list(known), "--axes"):
                declared.setdefault(name, value)

        def axes_of(alias: str, leaf: Any) -> Axes:
            name = back[alias]
            return _completed(declared.get(name, Axes()), name, leaf.ndim, rows)

        parts = layout(shapes, lambda alias, leaf: back[alias] not in kept, axes_of)
    except (ValueError, TypeError) as error:
        raise CommandError(str(error)) from error
    pairs = zip(leaf_names(shapes), parts.leaves, strict=True)
    return {back[alias]: tensor for alias, tensor in pairs if tensor is not None}


def _called(names: Sequence[str]) -> dict[str, str]:
    """What Flax's rules call a tensor: a path with slashes, without the box around an array.

    A box of NNX's variables or of linen's `Partitioned` is a level with a `value` and nothing else.
    """
    called = {name: name if "/" in name else name.replace(".", "/") for name in names}
    below = Counter(str(level) for path in called.values() for level in PurePosixPath(path).parents)
    called = {
        name: box if below[box := path.removesuffix("/value")] == 1 else path
        for name, path in called.items()
    }
    distinct = len(set(called.values())) == len(called)
    return called if distinct else {name: name for name in names}


def _completed(axes: Axes, name: str, rank: int, rows: str) -> Axes:
    """`axes` with its rows filled in where they are not those of Flax."""
    if axes.rows is not None:
        return axes
    layers = (axes.layers,) if isinstance(axes.layers, int) else axes.layers
    rest = [axis for axis in range(rank) if axis not in {x % max(rank, 1) for x in layers}]
    # PyTorch and Equinox have outputs first, and call weights so; Flax never does.
    weight = name.replace("/", ".").rpartition(".")[2].endswith("weight")
    if len(rest) < 2 or (rows == "auto" and not weight):
        return axes
    return axes._replace(rows=rest[-1] if rows == "last" else rest[0])
