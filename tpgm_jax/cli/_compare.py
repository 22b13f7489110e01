"""Comparison of two checkpoints: the distance of each tensor, and a verdict."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tpgm_jax._core.axes import Tensor
from tpgm_jax.cli._checkpoint import Checkpoint, Entry
from tpgm_jax.cli._errors import finite_or_none
from tpgm_jax.cli._match import Match, Progress, different
from tpgm_jax.cli._numbers import Distance, distance, relative

SORTS = ("name", "relative", "mars", "l2")


class Measurement(NamedTuple):
    """A tensor and its distance from its anchor."""

    entry: Entry
    tensor: Tensor
    distance: Distance

    def size(self, sort: str) -> float:
        """The number to sort by, infinite if it is not finite."""
        key = {"mars": "mars_largest", "l2": "l2_largest"}.get(sort, sort)
        value = getattr(self.distance, key)
        undefined = sort == "relative" and self.distance.anchor_squares == 0
        return -1.0 if undefined else value if math.isfinite(value) else math.inf

    def as_json(self) -> dict[str, Any]:
        entry, tensor, x = self
        return {
            "name": entry.name,
            "shape": entry.shape,
            "dtype": entry.label,
            "rows": tensor.rows,
            "layers": tensor.layers,
            "mars": _pair(x.mars_largest, x.mars_mean),
            "l2": _pair(x.l2_largest, x.l2_mean),
            "relative": finite_or_none(x.relative),
            "not_finite": x.not_finite,
        }


def _pair(largest: float, mean: float) -> dict[str, float | None]:
    return {"largest": finite_or_none(largest), "mean": finite_or_none(mean)}


class Comparison(NamedTuple):
    """The result of `compare`.

    Attributes:
        match: entries of both checkpoints, matched by name.
        measurements: tensors and their distances, in natural order.
        others: name to entry and equality, for common entries that were not measured.
        outputs_last: names of weights taken for GPT-2's `Conv1D`.
        hint: a proposal for `--rename`, or "".
        renamed: how many names `--rename` matched.
        limit: the largest relative distance that is allowed, or `None`.
    """

    match: Match
    measurements: list[Measurement]
    others: dict[str, tuple[Entry, bool]]
    outputs_last: list[str]
    hint: str
    renamed: int
    limit: float | None

    @property
    def farthest(self) -> Measurement | None:
        return max(self.measurements, key=lambda x: x.size("relative"), default=None)

    @property
    def too_far(self) -> list[str]:
        """Names of tensors beyond the limit."""
        if self.limit is None:
            return []
        return [
            x.entry.name
            for x in self.measurements
            if x.size("relative") > self.limit or x.distance.not_finite
        ]

    @property
    def unjudged(self) -> list[str]:
        """Names of weights that differ in a way that was not measured."""
        names = self.match.quantized | self.match.kinds.keys()
        every = not self.measurements
        return [x for x, (_, same) in self.others.items() if every or (x in names and not same)]

    @property
    def within_limit(self) -> bool:
        return bool(self.measurements) and not self.too_far and not self.unjudged

    def ordered(self, sort: str, top: int | None) -> list[Measurement]:
        if sort == "name":
            return self.measurements[:top]
        return sorted(self.measurements, key=lambda x: -x.size(sort))[:top]

    def totals(self) -> dict[str, Any]:
        distances = [x.distance for x in self.measurements]
        squares = sum(x.squares for x in distances)
        largest = float(np.max([x.mars_largest for x in distances])) if distances else math.nan
        return {
            "tensors": len(distances),
            "parameters": sum(math.prod(x.entry.shape) for x in self.measurements),
            "mars_largest": finite_or_none(largest),
            "l2": finite_or_none(squares**0.5),
            "relative": finite_or_none(relative(squares, sum(x.anchor_squares for x in distances))),
            "not_finite": sum(x.not_finite for x in distances),
            "not_measured": len(self.others),
        }

    def as_json(self, sort: str, top: int | None) -> dict[str, Any]:
        farthest = self.farthest
        return {
            **self.match.as_json(),
            "tensors": [x.as_json() for x in self.ordered(sort, top)],
            "not_measured": [
                {"name": name, "shape": entry.shape, "dtype": entry.label, "same": same}
                for name, (entry, same) in self.others.items()
            ],
            "outputs_last": self.outputs_last,
            "rename": self.hint,
            "renamed": self.renamed,
            "totals": self.totals(),
            "verdict": {
                "farthest": farthest and farthest.entry.name,
                "max_relative": self.limit,
                "too_far": self.too_far,
                "not_judged": self.unjudged,
            },
        }


def compare(
    pretrained: Checkpoint,
    finetuned: Checkpoint,
    found: Match,
    tensors: Mapping[str, Tensor],
    progress: Progress,
) -> tuple[list[Measurement], dict[str, tuple[Entry, bool]]]:
    """Reads both checkpoints, one tensor at a time, and measures the distances.

    Returns:
        The `measurements` and the `others` of a `Comparison`.
    """
    measurements, others = [], {}
    for name in found.common:
        entry = finetuned.entries[name]
        if name in tensors:
            # Not in variables, which would keep the arrays until the next ones are read.
            size = distance(finetuned.read(name), pretrained.read(name), tensors[name])
            measurements.append(Measurement(entry, tensors[name], size))
        else:
            others[name] = (entry, not different(pretrained, finetuned, name))
        progress(entry.size)
    return measurements, others
