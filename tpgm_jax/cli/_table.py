"""The table of `compare`."""

import io
from collections.abc import Sequence

from tpgm_jax._inspect.columns import plain_table, rich_table
from tpgm_jax.cli._compare import Comparison
from tpgm_jax.cli._text import format_number, plural, printable

HEADER = ("tensor", "shape", "mars max", "mars mean", "l2 max", "l2 mean", "relative")


def table(comparison: Comparison, terminal: bool) -> str:
    """The distances, the differences in structure, and the totals.

    Args:
        comparison: the result of `compare`.
        terminal: whether the output is a terminal. If so, and rich is installed, rich formats it.
    """
    rows = [
        (
            printable(x.entry.name),
            "x".join(map(str, x.entry.shape)) or "scalar",
            format_number(x.distance.mars_largest),
            format_number(x.distance.mars_mean),
            format_number(x.distance.l2_largest),
            format_number(x.distance.l2_mean),
            format_number(x.distance.relative if x.distance.anchor_squares > 0 else None),
        )
        for x in comparison.measurements
    ]
    columns = list(zip(HEADER, *rows, strict=True))
    text = (_rich(columns) if terminal else None) or plain_table(columns) + "\n"
    return text + "\n".join(_notes(comparison)) + "\n"


def _rich(columns: Sequence[Sequence[str]]) -> str | None:
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        return None
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, highlight=False)
    console.print(rich_table(columns, pad_edge=False))
    return file.getvalue()


def _notes(comparison: Comparison) -> list[str]:
    structure, lines = comparison.structure, [""]
    lines += [f"only in PRETRAINED: {printable(name)}" for name in structure.only_pretrained]
    lines += [f"only in FINETUNED: {printable(name)}" for name in structure.only_finetuned]
    for kind, pairs in (("shapes", structure.shapes), ("dtypes", structure.dtypes)):
        lines += [f"{kind} differ: {printable(k)}: {x} and {y}" for k, (x, y) in pairs.items()]
    for name, (entry, same) in comparison.others.items():
        state = "the same" if same else "different"
        lines.append(f"not measured ({printable(entry.label)}), {state}: {printable(name)}")
    for x in comparison.measurements:
        if x.distance.not_finite:
            count = plural(x.distance.not_finite, "number")
            lines.append(f"not finite: {count} of {printable(x.entry.name)}")
    if comparison.excluded:
        lines.append(f"excluded: {plural(len(comparison.excluded), 'tensor')}")
    totals = comparison.totals()
    lines.append(
        f"{plural(totals['tensors'], 'tensor')} of {totals['parameters']:,} parameters: "
        f"l2 {format_number(totals['l2'])}, relative {format_number(totals['relative'])}, "
        f"largest mars {format_number(totals['mars_largest'])}"
    )
    return lines if len(lines) > 2 else lines[1:]
