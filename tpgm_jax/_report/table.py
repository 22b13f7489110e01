"""A report as a table: in plain text, or for rich."""

import math
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

NORMS = {"mars": "L1 norm of a row", "l2": "L2 norm of a tensor"}
SHOWN = 8  # names in a note; a table needs no list of all


def plain(groups: Sequence[Any], excluded: Sequence[str]) -> str:
    """Columns of equal width, names to the left and numbers with their points aligned."""
    (heading, *names), *numbers = _columns(groups)
    width = max(map(_width, (heading, *names)))
    columns = [[x + " " * (width - _width(x)) for x in (heading, *names)]]
    for heading, *cells in numbers:
        width = max(map(len, (heading, *cells)))
        columns.append([x.rjust(width) for x in (heading, *cells)])
    lines = ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]
    return "\n".join([*lines, "", *_notes(groups, excluded)])


def rich(groups: Sequence[Any], excluded: Sequence[str]) -> "Table":
    """The same for `rich.print`."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    made = Table(box=SIMPLE_HEAD, caption="\n".join(_notes(groups, excluded)))
    made.caption_justify = "left"
    (heading, *names), *numbers = _columns(groups)
    made.add_column(heading, overflow="fold")
    for heading, *_ in numbers:
        made.add_column(heading, justify="right", no_wrap=True)
    # As `Text`, since rich takes square brackets for its own markup.
    for line in zip(names, *(cells for _, *cells in numbers), strict=True):
        made.add_row(*map(Text, line))
    return made


def _columns(groups: Sequence[Any]) -> list[list[str]]:
    """Heading and cells of each column; those about radii only if there are any."""
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
    """Three digits of each, with spaces behind so that points are above each other."""
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
    """Per cent; none and all are what they say."""
    if share is None:
        return "-"
    if 0 < share < 0.01:
        return "<1%"
    return ">99%" if 0.99 < share < 1 else f"{share:.0%}"


def _notes(groups: Sequence[Any], excluded: Sequence[str]) -> list[str]:
    """What the columns mean, what is not in the table, and what looks wrong."""
    norms = " or ".join(NORMS[norm] for norm in dict.fromkeys(group.norm for group in groups))
    notes = [f"distance: that of the farthest row from its anchor, in the {norms}"]
    if any(group.radius is not None for group in groups):
        notes.append("saturated: rows that are as far as the radius lets them")
    if excluded:
        notes.append(f"{len(excluded)} not constrained: {_listed(excluded)}")
    beyond = [group.label for group in groups if group.beyond]
    if beyond:
        notes.append(
            f"{len(beyond)} beyond their radius: {_listed(beyond)}. Are `norm`, `axes` and "
            "`params` those of the last update, and did nothing follow it?"
        )
    return notes


def _listed(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _width(text: str) -> int:
    """Columns of a terminal: two for wide letters, none for accents."""
    wide = {"W": 2, "F": 2}
    return sum(
        0 if unicodedata.combining(x) else wide.get(unicodedata.east_asian_width(x), 1)
        for x in text
    )
