"""A report as a table in plain text."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from tpgm_jax._core.columns import plain_table

NORMS = {"mars": "L1 norm of a row", "l2": "L2 norm of a tensor"}
SHOWN = 8  # names in a note, which need not list all
FROZEN = 1e-3  # of the anchor's size: a radius below is called frozen


def report_table(groups: Sequence[Any], excluded: Sequence[str], notes: Sequence[str]) -> str:
    """A table of the groups, the verdict, and the notes."""
    columns = [
        ["group", *(group.label or "(parameters)" for group in groups)],
        ["rows", *(str(group.rows) for group in groups)],
    ]

    def add(heading: str, field: str, format_all: Callable[[list[Any]], list[str]]) -> None:
        values = [getattr(group, field) for group in groups]
        if any(value is not None for value in values) or field == "distance":
            columns.append([heading, *format_all(values)])

    add("radius", "radius", _align)
    add("of anchor", "relative", lambda values: list(map(_percent, values)))
    add("distance", "distance", _align)
    add("pulled back", "pulled_back", lambda values: list(map(_share, values)))
    add("overshoot", "overshoot", lambda values: list(map(_digits, values)))
    lines = [*_verdict(groups), *notes]
    if excluded:
        lines.insert(1 if lines else 0, f"{len(excluded)} not constrained: {name_some(excluded)}")
    norms = " or ".join(NORMS[norm] for norm in dict.fromkeys(group.norm for group in groups))
    lines.append(f"distance: of the farthest row from its anchor, in the {norms}")
    return "\n".join([plain_table(columns), "", *lines])


def _verdict(groups: Sequence[Any]) -> list[str]:
    """How many tensors are constrained, frozen, or beyond their radius."""
    tensors: dict[str, list[Any]] = {}
    for group in groups:
        if group.radius is not None:
            tensors.setdefault(group.name, []).append(group)
    if not tensors:
        return []
    several = tensors.values()
    held = sum(any(group.pulled_back for group in x) for x in several)
    free = sum(all(group.overshoot and not group.pulled_back for group in x) for x in several)
    verdict = f"constrains {held} of {len(tensors)} tensors"
    verdict += f"; {free} move{'s' * (free == 1)} freely" if free else ""
    lines = [verdict]
    frozen = [x for x in groups if x.pulled_back and (x.relative or 1.0) < FROZEN]
    if frozen:
        names = name_some([group.label for group in frozen])
        lines.append(f"{len(frozen)} frozen, with radii below 0.1% of the anchor: {names}")
    beyond = [group.label for group in groups if group.beyond]
    if beyond:
        lines.append(
            f"{len(beyond)} beyond their radius: {name_some(beyond)}. Does `params` come from the "
            "last update, and did no other transformation follow it in the chain?"
        )
    return lines


def name_some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _align(numbers: Sequence[float | None]) -> list[str]:
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


def _percent(number: float | None) -> str:
    return "-" if number is None else f"{100 * number:.2g}%" if number < 1 else f"{number:.0%}"


def _share(share: float | None) -> str:
    """Per cent; 0% and 100% are exact."""
    if share is None:
        return "-"
    if 0 < share < 0.01:
        return "<1%"
    return ">99%" if 0.99 < share < 1 else f"{share:.0%}"
