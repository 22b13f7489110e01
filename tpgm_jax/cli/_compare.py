"""Comparison of two checkpoints: the distance of each tensor, and a verdict."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tpgm_jax._core.axes import Tensor
from tpgm_jax.cli._checkpoint import Checkpoint
from tpgm_jax.cli._match import Match, Progress, different
from tpgm_jax.cli._numbers import distance, together

SORTS = ("name", "relative", "mars", "l2")
Result = dict[str, Any]


def compare(
    pretrained: Checkpoint,
    finetuned: Checkpoint,
    found: Match,
    tensors: Mapping[str, Tensor],
    limit: float | None,
    progress: Progress,
) -> Result:
    """Reads both checkpoints, one tensor at a time, and measures the distances.

    Args:
        pretrained, finetuned: the checkpoints.
        found: their entries, matched by name.
        tensors: rows and layers of the tensors to measure.
        limit: the largest relative distance that is allowed, or `None`.
        progress: called for each tensor.

    Returns:
        What `--json` prints, with all tensors in natural order.
    """
    measured: list[Result] = []
    others: list[Result] = []
    for name in found.common:
        entry = finetuned.entries[name]
        row = {"name": name, "shape": entry.shape, "dtype": entry.label}
        if name in tensors:
            tensor = tensors[name]
            # Not in variables, which would keep the arrays until the next ones are read.
            numbers = distance(finetuned.read(name), pretrained.read(name), tensor)
            measured.append({**row, "rows": tensor.rows, "layers": tensor.layers, **numbers})
        else:
            others.append({**row, "same": not different(pretrained, finetuned, name)})
        progress(entry.size)

    norm, relative = together(measured)
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


def ordered(tensors: list[Result], sort: str) -> list[Result]:
    """The tensors with the largest first, or in natural order for the sort "name"."""
    return tensors if sort == "name" else sorted(tensors, key=lambda x: -_size(x, sort))


def _size(tensor: Result, sort: str) -> float:
    """The number to sort by, infinite if it is not finite."""
    if sort == "relative" and tensor["anchor_norm"] == 0:
        return -1.0  # not defined
    value = tensor["relative"] if sort == "relative" else tensor[sort]["largest"]
    return value if math.isfinite(value) else math.inf
