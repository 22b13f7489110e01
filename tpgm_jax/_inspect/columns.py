"""Columns of text as a table, plain or for rich: names first, then numbers."""

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def plain_table(columns: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first aligned left and the others right."""
    padded = []
    for i, cells in enumerate(columns):
        width = max(map(_width, cells))
        pads = [" " * (width - _width(cell)) for cell in cells]
        pairs = zip(cells, pads, strict=True)
        padded.append([pad + cell if i else cell + pad for cell, pad in pairs])
    return "\n".join("  ".join(line).rstrip() for line in zip(*padded, strict=True))


def rich_table(columns: Sequence[Sequence[str]], **options: Any) -> "Table":
    """The same table for `rich.print`; names may wrap, and numbers may not."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, **options)
    for i, (heading, *_) in enumerate(columns):
        table.add_column(heading, justify="right" if i else "left", overflow="fold", no_wrap=i > 0)
    # As `Text`, because rich parses brackets in a `str` as markup.
    for line in zip(*(cells for _, *cells in columns), strict=True):
        table.add_row(*map(Text, line))
    return table


def _width(text: str) -> int:
    """Width in a terminal: wide letters take two columns, and combining accents none."""
    wide = {"W": 2, "F": 2}
    return sum(
        0 if unicodedata.combining(x) else wide.get(unicodedata.east_asian_width(x), 1)
        for x in text
    )
