"""The table of a layout, for `layout` and for the errors of `init`."""

from collections.abc import Collection, Sequence
from typing import Any

from tpgm_jax._core.columns import plain_table

SHOWN = 10  # tensors in an error


def layout_text(tensors: Sequence[Any], guessed: Collection[str]) -> str:
    """A line for each `Tensor`. `guessed` are the names whose rows are a guess."""
    lines = [["parameter", "shape", "rows", "inputs", "layers", "radii", ""]]
    for x in tensors:
        axes = [str(axes) if axes else "-" for axes in (x.rows, x.inputs, x.layers)]
        note = "rows are a guess" if x.name in guessed else ""
        cells = [*axes, str(x.groups), note] if x.constrained else [*"---", "0", "excluded"]
        lines.append([x.name or "(parameters)", str(x.shape), *cells])
    return plain_table(list(zip(*lines, strict=True)))


def note_for_error(message: str, tensors: Sequence[Any], guessed: Collection[str]) -> str:
    """The lines of the table that a message names, or the first ones if it names none."""
    shown = list(tensors)
    if len(shown) > SHOWN:
        named = [x for x in shown if repr(x.name) in message]
        shown = (named or shown)[:SHOWN]
    return (
        f"Rows before `exclude` and `axes`, of {len(shown)} of {len(tensors)} parameters "
        "(`tpgm_jax.layout` prints all):\n" + layout_text(shown, guessed)
    )
