"""A comparison as text."""

import io
from collections.abc import Sequence

from tpgm_jax.cli._compare import Comparison
from tpgm_jax.cli._text import number, plural, printable

HEADER = ("tensor", "shape", "mars max", "mars mean", "l2 max", "l2 mean", "relative")


def table(comparison: Comparison, terminal: bool) -> str:
    """The distances, then whatever differs, then the totals.

    Args:
        comparison: what to show.
        terminal: whether people look at it right away; then rich sets it, where it is installed.
    """
    rows = [
        (
            printable(x.entry.name),
            "x".join(map(str, x.entry.shape)) or "scalar",
            number(x.distance.mars_largest),
            number(x.distance.mars_mean),
            number(x.distance.l2_largest),
            number(x.distance.l2_mean),
            number(x.distance.relative if x.distance.anchor_squares > 0 else None),
        )
        for x in comparison.measured
    ]
    shown = (_rich(rows) if terminal else None) or _plain(rows)
    return shown + "\n".join(_notes(comparison)) + "\n"


def _plain(rows: Sequence[tuple[str, ...]]) -> str:
    lines = [HEADER, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    text = ""
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        text += "  ".join(cells).rstrip() + "\n"
    return text


def _rich(rows: Sequence[tuple[str, ...]]) -> str | None:
    try:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ModuleNotFoundError:
        return None
    shown = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i, title in enumerate(HEADER):
        shown.add_column(title, justify="right" if i else "left", overflow="fold")
    for row in rows:
        # As `Text`, since brackets in a name would be markup.
        shown.add_row(*map(Text, row))
    file = io.StringIO()
    Console(file=file, force_terminal=True, highlight=False).print(shown)
    return file.getvalue()


def _notes(comparison: Comparison) -> list[str]:
    found, lines = comparison.structure, [""]
    lines += [f"only in PRETRAINED: {printable(name)}" for name in found.only_pretrained]
    lines += [f"only in FINETUNED: {printable(name)}" for name in found.only_finetuned]
    for what, pairs in (("shapes", found.shapes), ("dtypes", found.dtypes)):
        lines += [f"{what} differ: {printable(k)}: {x} and {y}" for k, (x, y) in pairs.items()]
    for name, (entry, same) in comparison.others.items():
        state = "the same" if same else "different"
        lines.append(f"not measured ({printable(entry.label)}), {state}: {printable(name)}")
    for x in comparison.measured:
        if x.distance.not_finite:
            count = plural(x.distance.not_finite, "number")
            lines.append(f"not finite: {count} of {printable(x.entry.name)}")
    if comparison.excluded:
        lines.append(f"excluded: {plural(len(comparison.excluded), 'tensor')}")
    totals = comparison.totals()
    lines.append(
        f"{plural(totals['tensors'], 'tensor')} of {totals['parameters']:,} parameters: "
        f"l2 {number(totals['l2'])}, relative {number(totals['relative'])}, "
        f"largest mars {number(totals['mars_largest'])}"
    )
    return lines if len(lines) > 2 else lines[1:]
