"""The table of `compare`, and the lines below it."""

import io
from collections.abc import Sequence

from tpgm_jax._inspect.columns import plain_table
from tpgm_jax.cli._compare import Comparison
from tpgm_jax.cli._text import format_number, listed, plural, printable

HEADER = ("tensor", "shape", "mars max", "mars mean", "l2 max", "l2 mean", "relative")


def table(comparison: Comparison, sort: str, top: int | None, terminal: bool) -> str:
    """The distances, the differences in structure, the totals and the verdict.

    Args:
        comparison: the result of `compare`.
        sort: order of the tensors.
        top: how many tensors to show; `None`: all.
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
        for x in comparison.ordered(sort, top)
    ]
    columns = list(zip(HEADER, *rows, strict=True))
    text = (_rich(columns) if terminal else None) or plain_table(columns) + "\n"
    return text + "\n".join(["", *_notes(comparison), *_verdict(comparison)]) + "\n"


def _rich(columns: Sequence[Sequence[str]]) -> str | None:
    """The table as rich draws it; names may wrap, and numbers may not."""
    try:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ModuleNotFoundError:
        return None
    drawn = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i, (heading, *_) in enumerate(columns):
        drawn.add_column(heading, justify="right" if i else "left", overflow="fold", no_wrap=i > 0)
    # As `Text`, because rich parses brackets in a `str` as markup.
    for line in zip(*(cells for _, *cells in columns), strict=True):
        drawn.add_row(*map(Text, line))
    file = io.StringIO()
    Console(file=file, force_terminal=True, highlight=False).print(drawn)
    return file.getvalue()


def _notes(comparison: Comparison) -> list[str]:
    found, lines = comparison.match, []
    lines += listed("only in PRETRAINED", found.only_pretrained)
    lines += listed("only in FINETUNED", found.only_finetuned)
    if comparison.hint:
        lines.append(f"names: {comparison.hint}")
    if comparison.renamed:
        lines.append(f"matched by --rename: {plural(comparison.renamed, 'name')}")
    for kind, pairs in (("shapes", found.shapes), ("dtypes", found.dtypes)):
        lines += [f"{kind} differ: {printable(k)}: {x} and {y}" for k, (x, y) in pairs.items()]
    quantized = set().union(*found.quantized)
    not_measured: dict[str, list[str]] = {}
    for name, (entry, same) in comparison.others.items():
        label = ", quantized" if name in quantized else ""
        state = "the same" if same else "different"
        heading = f"not measured ({printable(entry.label)}{label}), {state}"
        not_measured.setdefault(heading, []).append(name)
    for heading, names in not_measured.items():
        lines += listed(heading, names)
    lines += listed("statistic or buffer, measured unless excluded", found.statistics)
    for x in comparison.measurements:
        if x.distance.not_finite:
            count = plural(x.distance.not_finite, "number")
            lines.append(f"not finite: {count} of {printable(x.entry.name)}")
    if comparison.outputs_last:
        lines += listed("outputs last, as in GPT-2's Conv1D", comparison.outputs_last, 1)
    if found.training:
        count = plural(len(found.training), "tensor")
        lines.append(f"left out, training state (--all measures it): {count}")
    if found.excluded:
        lines.append(f"excluded: {plural(len(found.excluded), 'tensor')}")
    return lines


def _verdict(comparison: Comparison) -> list[str]:
    totals, limit, far = comparison.totals(), comparison.limit, comparison.too_far
    lines = [
        f"{plural(totals['tensors'], 'tensor')} of {totals['parameters']:,} parameters: "
        f"l2 {format_number(totals['l2'])}, relative {format_number(totals['relative'])}, "
        f"largest mars {format_number(totals['mars_largest'])}"
    ]
    farthest, unjudged = comparison.farthest, comparison.unjudged
    if limit is not None:
        verdict = f"within {limit:g}" if comparison.measurements else "nothing was measured"
        if far:
            verdict = f"too far: {plural(len(far), 'tensor')} moved more than {limit:g}"
        if unjudged:
            verdict += f"; cannot be judged: {plural(len(unjudged), 'tensor')}"
        if farthest is not None:
            name = printable(farthest.entry.name)
            verdict += f"; farthest: {name}, {format_number(farthest.distance.relative)}"
        lines.append(verdict)
    elif farthest is not None and farthest.distance.anchor_squares > 0:
        name = printable(farthest.entry.name)
        lines.append(f"farthest: {name}, relative {format_number(farthest.distance.relative)}")
    if comparison.others:
        different = sum(not same for _, same in comparison.others.values())
        lines[-1] += f"; not measured: {plural(len(comparison.others), 'tensor')}"
        lines[-1] += f", {different} different" if different else ""
    return lines
