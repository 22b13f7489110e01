"""Escaping of untrusted names for the terminal, and formatting."""

import math
from collections.abc import Sequence


def printable(text: str, limit: int = 200) -> str:
    """`text` with control characters escaped, shortened to about `limit` characters.

    Names come from untrusted files. An escape sequence could clear the terminal or forge a line,
    and a character that reverses the writing direction could make one name look like another.
    """
    if len(text) > limit:
        text = f"{text[: limit // 2]}...{text[-(limit // 2) :]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def format_number(value: float | None) -> str:
    """`value` with three digits; a dash for `None`."""
    return "-" if value is None else f"{value:.3g}"


def finite_or_none(value: float) -> float | None:
    """`value`, or `None` if it is NaN or infinite, for which JSON has no number."""
    return value if math.isfinite(value) else None


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def listed(heading: str, names: Sequence[str], most: int = 10) -> list[str]:
    """A line for each of the first names, and one that counts the rest."""
    lines = [f"{heading}: {printable(name)}" for name in names[:most]]
    rest = len(names) - len(lines)
    return [*lines, f"{heading}: {rest} more"] if rest else lines
