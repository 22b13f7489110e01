"""A report as a table: in plain text, or for rich."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tpgm_jax._inspect.columns import plain_table, rich_table

if TYPE_CHECKING:
    from rich.table import Table

NORMS = {"mars": "L1 norm of a row", "l2": "L2 norm of a tensor"}
SHOWN = 8  # names in a note, which need not list all


def plain(groups: Sequence[Any], excluded: Sequence[str]) -> str:
    """The report in plain text."""
    return "\n".join([plain_table(_columns(groups)), "", *_notes(groups, excluded)])


def rich(groups: Sequence[Any], excluded: Sequence[str]) -> "Table":
    """The report for `rich.print`."""
    table = rich_table(_columns(groups), caption="\n".join(_notes(groups, excluded)))
    table.caption_justify = "left"
    return table


def _columns(groups: Sequence[Any]) -> list[list[str]]:
    """Heading and cells of each column, without radii if there are none."""
    columns = [
        ["group", *(group.label or "(parameters)" for group in groups)],
        ["rows", *(str(group.rows) for group in groups)],
    ]
    learned = any(group.radius is not None for group in groups)
    if learned:
        columns.append(["radius", *_aligned([group.radius for group in groups])])
    columns.append(["distance", *_aligned([group.distance for group in groups])])
    if learned:
        columns.append(["saturated", *(_share(group.saturated) for group in groups)])
    return columns


def _aligned(numbers: Sequence[float | None]) -> list[str]:
    """Three digits of each, padded so that decimal points align."""
    texts = [_digits(x) for x in numbers]
    behind = [len(x) - len(x.partition(".")[0]) for x in texts]
    return [x + " " * (max(behind) - n) for x, n in zip(texts, behind, strict=True)]


def _digits(number: float | None) -> str:
    if number is None:
        return "-"
    if not math.isfinite(number) or number == 0:
        return f"{number:g}"
    if not 1e-4 <= abs(number) < 1e6:
        return f"{number:.2e}"
    return f"{number:.{max(0, 2 - math.floor(math.log10(abs(number))))}f}"


def _share(share: float | None) -> str:
    """Per cent; 0% and 100% are exact."""
    if share is None:
        return "-"
    if 0 < share < 0.01:
        return "<1%"
    return ">99%" if 0.99 < share < 1 else f"{share:.0%}"


def _notes(groups: Sequence[Any], excluded: Sequence[str]) -> list[str]:
    """Explanations of the columns, exclusions, and warnings."""
    norms = " or ".join(NORMS[norm] for norm in dict.fromkeys(group.norm for group in groups))
    notes = [f"distance: of the farthest row from its anchor, in the {norms}"]
    if any(group.radius is not None for group in groups):
        notes.append("saturated: rows at their radius")
    if excluded:
        notes.append(f"{len(excluded)} not constrained: {_listed(excluded)}")
    beyond = [group.label for group in groups if group.beyond]
    if beyond:
        notes.append(
            f"{len(beyond)} beyond their radius: {_listed(beyond)}. Does `params` come from the "
            "last update, and did no other transformation follow it in the chain?"
        )
    return notes


def _listed(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
