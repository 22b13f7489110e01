"""Comparison of two checkpoints: the distance of each tensor, a verdict, and their table."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tpgm_jax._core.axes import Tensor
from tpgm_jax._core.columns import plain_table
from tpgm_jax.cli._errors import list_names, plural, printable
from tpgm_jax.cli._match import Match, Progress
from tpgm_jax.cli._numbers import distance, total_distance

SORTS = ("name", "relative", "mars", "l2")
HEADER = ("tensor", "shape", "mars max", "mars mean", "l2 max", "l2 mean", "relative")
Result = dict[str, Any]


def compare(
    found: Match, tensors: Mapping[str, Tensor], limit: float | None, progress: Progress
) -> Result:
    """The result that `--json` prints, with all tensors in natural order.

    Reads one tensor of both checkpoints at a time, and measures those in `tensors`. `limit` is the
    largest relative distance that is allowed.
    """
    measured: list[Result] = []
    others: list[Result] = []
    for name in found.common:
        entry = found.finetuned.entries[name]
        row = {"name": name, "shape": entry.shape, "dtype": entry.label}
        if name in tensors:
            tensor = tensors[name]
            # Variables would keep the arrays until the next ones are read.
            numbers = distance(found.finetuned.read(name), found.pretrained.read(name), tensor)
            measured.append({**row, "rows": tensor.rows, "layers": tensor.layers, **numbers})
        else:
            others.append({**row, "same": not found.different(name)})
        progress(entry.size)

    norm, relative = total_distance(measured)
    relatives = [x for x in measured if x["anchor_norm"] != 0]
    farthest = max(relatives, key=lambda x: _size(x, "relative"), default=None)
    # Weights that differ in a way that was not measured.
    unclear = {*found.quantized, *found.kinds_differ}
    unjudged = [x for x in others if not measured or (x["name"] in unclear and not x["same"])]
    far = [x for x in measured if limit and (_size(x, "relative") > limit or x["not_finite"])]
    return {
        **found.as_json(),
        "tensors": measured,
        "not_measured": others,
        "totals": {
            "tensors": len(measured),
            "parameters": sum(math.prod(x["shape"]) for x in measured),
            # NumPy's, because a NaN is then the largest.
            "mars_largest": float(np.max([x["mars"]["largest"] for x in measured] or [math.nan])),
            "l2": norm,
            "relative": relative,
            "not_finite": sum(x["not_finite"] for x in measured),
            "not_measured": len(others),
        },
        "verdict": {
            "farthest": farthest and farthest["name"],
            "relative": farthest and farthest["relative"],
            "max_relative": limit,
            "too_far": [x["name"] for x in far],
            "not_judged": [x["name"] for x in unjudged],
        },
    }


def order(tensors: list[Result], sort: str) -> list[Result]:
    """The tensors with the largest first, or in natural order for the sort "name"."""
    return tensors if sort == "name" else sorted(tensors, key=lambda x: -_size(x, sort))


def _size(tensor: Result, sort: str) -> float:
    """The number to sort by, infinite if it is not finite."""
    if sort == "relative" and tensor["anchor_norm"] == 0:
        return -1.0  # not defined
    value = tensor["relative"] if sort == "relative" else tensor[sort]["largest"]
    return value if math.isfinite(value) else math.inf


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
    lines = list_names(headings)
    for key, what in {
        "training_state": "left out, training state (--all measures it)",
        "excluded": "excluded",
    }.items():
        lines += [f"{what}: {plural(len(result[key]), 'tensor')}"] if result[key] else []
    return lines


def _verdict(result: Result) -> list[str]:
    totals, verdict = result["totals"], result["verdict"]
    limit, far, unjudged = (verdict[key] for key in ("max_relative", "too_far", "not_judged"))
    name, relative = printable(verdict["farthest"] or ""), verdict["relative"] or 0.0
    unit = "relative " if limit is None else ""
    last = [f"farthest: {name}, {unit}{relative:.3g}"] if name else []
    if limit is not None:
        judged = f"within {limit:g}" if result["tensors"] else "nothing was measured"
        if far:
            judged = f"too far: {plural(len(far), 'tensor')} moved more than {limit:g}"
        unclear = [f"cannot be judged: {plural(len(unjudged), 'tensor')}"] if unjudged else []
        last = [judged, *unclear, *last]
    if result["not_measured"]:
        different = sum(not x["same"] for x in result["not_measured"])
        count = f"not measured: {plural(len(result['not_measured']), 'tensor')}"
        last.append(f"{count}, {different} different" if different else count)
    sums = (
        f"{plural(totals['tensors'], 'tensor')} of {totals['parameters']:,} parameters: "
        f"l2 {totals['l2']:.3g}, relative {totals['relative']:.3g}, "
        f"largest mars {totals['mars_largest']:.3g}"
    )
    sums = sums if result["tensors"] else "no tensor of both was measured"
    return [sums, "; ".join(last)] if last else [sums]
