"""The table of `compare`, and the lines below it."""

from collections.abc import Sequence

from tpgm_jax._core.columns import plain_table
from tpgm_jax.cli._compare import Result
from tpgm_jax.cli._errors import listed, plural, printable

HEADER = ("tensor", "shape", "mars max", "mars mean", "l2 max", "l2 mean", "relative")


def table(result: Result, shown: Sequence[Result], notes: Sequence[str]) -> str:
    """The distances of the tensors to show, the differences, the totals and the verdict."""
    rows = [
        (
            printable(x["name"]),
            "x".join(map(str, x["shape"])) or "scalar",
            *(f"{x[norm][key]:.3g}" for norm in ("mars", "l2") for key in ("largest", "mean")),
            f"{x['relative']:.3g}" if x["anchor_norm"] else "-",
        )
        for x in shown
    ]
    lines = ["", *_differences(result), *notes, *_verdict(result)]
    return plain_table(list(zip(HEADER, *rows, strict=True))) + "\n" + "\n".join(lines) + "\n"


def _differences(result: Result) -> list[str]:
    headings: dict[str, list[str]] = {
        "only in PRETRAINED": result["only_pretrained"],
        "only in FINETUNED": result["only_finetuned"],
    }
    for kind in ("shapes", "dtypes"):
        pairs = result[f"{kind}_differ"].items()
        headings[f"{kind} differ"] = [f"{name}: {x} and {y}" for name, (x, y) in pairs]
    quantized = set(result["quantized"])
    for x in result["not_measured"]:
        label = x["dtype"] + (", quantized" if x["name"] in quantized else "")
        heading = f"not measured ({label}), {'the same' if x['same'] else 'different'}"
        headings.setdefault(heading, []).append(x["name"])
    headings["statistic or buffer, measured unless excluded"] = result["statistics"]
    counts = ((plural(x["not_finite"], "number"), x) for x in result["tensors"] if x["not_finite"])
    headings["not finite"] = [f"{count} of {x['name']}" for count, x in counts]
    lines = listed(headings)
    for key, what in {
        "training_state": "left out, training state (--all measures it)",
        "excluded": "excluded",
    }.items():
        lines += [f"{what}: {plural(len(result[key]), 'tensor')}"] if result[key] else []
    return lines


def _verdict(result: Result) -> list[str]:
    totals, verdict = result["totals"], result["verdict"]
    limit, far, unjudged = (verdict[key] for key in ("max_relative", "too_far", "not_judged"))
    judged = f"within {limit:g}" if result["tensors"] and limit else "nothing was measured"
    if far:
        judged = f"too far: {plural(len(far), 'tensor')} moved more than {limit:g}"
    if unjudged:
        judged += f"; cannot be judged: {plural(len(unjudged), 'tensor')}"
    name, relative = printable(verdict["farthest"] or ""), verdict["relative"] or 0.0
    if limit is None:
        lines = [f"farthest: {name}, relative {relative:.3g}"] if name else []
    else:
        lines = [f"{judged}; farthest: {name}, {relative:.3g}" if name else judged]
    sums = (
        f"{plural(totals['tensors'], 'tensor')} of {totals['parameters']:,} parameters: "
        f"l2 {totals['l2']:.3g}, relative {totals['relative']:.3g}, "
        f"largest mars {totals['mars_largest']:.3g}"
    )
    lines = [sums if result["tensors"] else "no tensor of both was measured", *lines]
    different = sum(not x["same"] for x in result["not_measured"])
    if result["not_measured"]:
        lines[-1] += f"; not measured: {plural(len(result['not_measured']), 'tensor')}"
        lines[-1] += f", {different} different" if different else ""
    return lines
