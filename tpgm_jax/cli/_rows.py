"""The axes of the tensors to measure."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import jax
import numpy as np

from tpgm_jax._core.axes import Axes, Tensor, make_layout
from tpgm_jax._core.names import match_pattern
from tpgm_jax.cli._checkpoint import Entry
from tpgm_jax.cli._errors import CommandError


def parse_axes(text: str) -> tuple[str, Axes]:
    """Parses `REGEX=ROWS[,LAYERS]` to a pattern and its axes."""
    pattern, sign, axes = text.rpartition("=")
    rows, _, layers = axes.partition(",")
    try:
        if not sign:
            raise ValueError("there is no =")
        numbers = _numbers(layers) if layers else ()
        return pattern, Axes(rows=None if rows == "auto" else _numbers(rows), layers=numbers)
    except ValueError as error:
        what = f"--axes {text!r} is not REGEX=ROWS[,LAYERS]"
        remedy = "pass auto, none, an axis, or several joined by +, such as 'layers/.*=auto,0'"
        raise CommandError(what, str(error), remedy) from error


def _numbers(text: str) -> tuple[int, ...]:
    return () if text == "none" else tuple(int(axis) for axis in text.split("+"))


def tensors(
    entries: Mapping[str, Entry], measured: Collection[str], axes: Sequence[tuple[str, Axes]]
) -> dict[str, Tensor]:
    """The tensors named in `measured`, with their rows and layers.

    `entries` are all of a checkpoint, because the shape of a bias gives its kernel's axes. Of the
    patterns in `axes` the first that matches counts.
    """
    if not measured:
        return {}
    arrays = {name: entry for name, entry in entries.items() if entry.dtype is not None}
    aliases = _flax_names(list(arrays))
    originals = {alias: name for name, alias in aliases.items()}
    shapes = {
        aliases[name]: jax.ShapeDtypeStruct(entry.shape, np.dtype(entry.dtype))
        for name, entry in arrays.items()
    }
    declared: dict[str, Axes] = {}
    try:
        for pattern, value in axes:
            for name in match_pattern(pattern, list(arrays), "--axes"):
                declared.setdefault(aliases[name], value)
        layout = make_layout(
            shapes,
            lambda alias, leaf: originals[alias] not in measured,
            lambda alias, leaf: declared.get(alias),
        )
    except (ValueError, TypeError) as error:
        raise CommandError(str(error)) from error
    return {originals[tensor.name]: tensor for tensor in layout.tensors}


def _flax_names(names: Sequence[str]) -> dict[str, str]:
    """Maps each name to the name that Flax's conventions expect: with slashes, without boxes.

    A box, such as an NNX variable or linen's `Partitioned`, is a level whose only child is `value`.
    """
    paths = [name if "/" in name else name.replace(".", "/") for name in names]
    children = Counter(path.rpartition("/")[0] for path in paths)
    for i, path in enumerate(paths):
        above, _, leaf = path.rpartition("/")
        if above and leaf == "value" and children[above] == 1:
            paths[i] = above
    return dict(zip(names, paths if len(set(paths)) == len(paths) else names, strict=True))
