"""Text of strangers, for a terminal; and the order in which people count."""

import math
import re


def printable(text: str, limit: int = 200) -> str:
    """`text` without control characters, and not longer than `limit`.

    Names come out of files. An escape sequence among them could clear the terminal or forge a
    line, and a character that turns the direction of writing could make one name look like another.
    """
    if len(text) > limit:
        text = f"{text[: limit // 2]}...{text[-(limit // 2) :]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def number(value: float | None) -> str:
    """Three digits, as a table shows them; a dash for what is not defined."""
    return "-" if value is None else f"{value:.3g}"


def finite(value: float) -> float | None:
    """JSON knows neither NaN nor infinity."""
    return value if math.isfinite(value) else None


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def counting_order(name: str) -> list[tuple[int, int, str]]:
    """A key to sort by that puts `block_2` before `block_10`."""
    parts = re.split(r"([0-9]{1,18})", name)
    return [(1, int(x), "") if i % 2 else (0, 0, x) for i, x in enumerate(parts)]
