"""Columns of text as a table: names first, then numbers."""

import unicodedata
from collections.abc import Sequence


def plain_table(columns: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first aligned left and the others right."""
    padded = []
    for i, cells in enumerate(columns):
        width = max(map(_width, cells))
        pads = [" " * (width - _width(cell)) for cell in cells]
        pairs = zip(cells, pads, strict=True)
        padded.append([pad + cell if i else cell + pad for cell, pad in pairs])
    return "\n".join("  ".join(line).rstrip() for line in zip(*padded, strict=True))


def _width(text: str) -> int:
    """Width in a terminal: wide letters take two columns, and combining accents none."""
    wide = {"W": 2, "F": 2}
    return sum(
        0 if unicodedata.combining(x) else wide.get(unicodedata.east_asian_width(x), 1)
        for x in text
    )
