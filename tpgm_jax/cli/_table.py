"""The table of `compare`, and the lines below it."""

from tpgm_jax._core.columns import plain_table
from tpgm_jax.cli._compare import Comparison
from tpgm_jax.cli._errors import listed, plural, printable

HEADER = ("tensor", "shape", "mars max", "mars mean", "l2 max", "l2 mean", "relative")


def table(comparison: Comparison, sort: str, top: int | None) -> str:
    """The distances, the differences in structure, the totals and the verdict.

    Args:
        comparison: the result of `compare`.
        sort: order of the tensors.
        top: how many tensors to show; `None`: all.
    """
    rows = [
        (
            printable(entry.name),
            "x".join(map(str, entry.shape)) or "scalar",
            *map(_number, (x.mars_largest, x.mars_mean, x.l2_largest, x.l2_mean)),
            _number(x.relative if x.anchor_squares > 0 else None),
        )
        for entry, _, x in comparison.ordered(sort, top)
    ]
    lines = ["", *_notes(comparison), *_verdict(comparison)]
    return plain_table(list(zip(HEADER, *rows, strict=True))) + "\n" + "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _notes(comparison: Comparison) -> list[str]:
    found = comparison.match
    lines = listed("only in PRETRAINED", found.only_pretrained)
    lines += listed("only in FINETUNED", found.only_finetuned)
    if comparison.hint:
        lines.append(f"names: {comparison.hint}")
    if comparison.renamed:
        lines.append(f"matched by --rename: {plural(comparison.renamed, 'name')}")
    for kind, pairs in (("shapes", found.shapes), ("dtypes", found.dtypes)):
        lines += [f"{kind} differ: {printable(k)}: {x} and {y}" for k, (x, y) in pairs.items()]
    not_measured: dict[str, list[str]] = {}
    for name, (entry, same) in comparison.others.items():
        label = printable(entry.label) + (", quantized" if name in found.quantized else "")
        heading = f"not measured ({label}), {'the same' if same else 'different'}"
        not_measured.setdefault(heading, []).append(name)
    for heading, names in not_measured.items():
        lines += listed(heading, names)
    lines += listed("statistic or buffer, measured unless excluded", found.statistics)
    for entry, _, x in comparison.measurements:
        if x.not_finite:
            count = plural(x.not_finite, "number")
            lines.append(f"not finite: {count} of {printable(entry.name)}")
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
        f"l2 {_number(totals['l2'])}, relative {_number(totals['relative'])}, "
        f"largest mars {_number(totals['mars_largest'])}"
    ]
    farthest = comparison.farthest
    name = printable(farthest.entry.name) if farthest else ""
    distance = _number(farthest.distance.relative) if farthest else ""
    if limit is not None:
        verdict = f"within {limit:g}" if farthest else "nothing was measured"
        if far:
            verdict = f"too far: {plural(len(far), 'tensor')} moved more than {limit:g}"
        if comparison.unjudged:
            verdict += f"; cannot be judged: {plural(len(comparison.unjudged), 'tensor')}"
        lines.append(f"{verdict}; farthest: {name}, {distance}" if farthest else verdict)
    elif farthest and farthest.distance.anchor_squares > 0:
        lines.append(f"farthest: {name}, relative {distance}")
    if comparison.others:
        different = sum(not same for _, same in comparison.others.values())
        lines[-1] += f"; not measured: {plural(len(comparison.others), 'tensor')}"
        lines[-1] += f", {different} different" if different else ""
    return lines
