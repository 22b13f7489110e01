"""Comparison of two checkpoints: structure, and the distance of each tensor."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tpgm_jax._core.axes import Tensor
from tpgm_jax._core.names import natural_order
from tpgm_jax.cli._checkpoint import Checkpoint, Entry
from tpgm_jax.cli._distance import Distance, distance, relative
from tpgm_jax.cli._text import finite_or_none


class Measurement(NamedTuple):
    """A tensor and its distance from its anchor."""

    entry: Entry
    tensor: Tensor
    distance: Distance


class Structure(NamedTuple):
    """Entries of two checkpoints, matched by name. Excluded entries are left out.

    Attributes:
        common: names in both, with equal shapes.
        only_pretrained: names in the pre-trained checkpoint only.
        only_finetuned: names in the fine-tuned checkpoint only.
        shapes: name to both shapes, for names in both whose shapes differ.
        dtypes: name to both dtypes, for names in both whose dtypes differ. These are measured too.
    """

    common: list[str]
    only_pretrained: list[str]
    only_finetuned: list[str]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    dtypes: dict[str, tuple[str, str]]

    @property
    def same(self) -> bool:
        return not (self.only_pretrained or self.only_finetuned or self.shapes or self.dtypes)


def match_by_name(
    pretrained: Mapping[str, Entry], finetuned: Mapping[str, Entry], excluded: Collection[str]
) -> Structure:
    """Matches the entries of two checkpoints by name."""
    new = [name for name in finetuned if name not in excluded]
    old = [name for name in pretrained if name not in excluded]
    both = [(name, pretrained[name], finetuned[name]) for name in new if name in pretrained]
    return Structure(
        common=[name for name, w0, w in both if w0.shape == w.shape],
        only_pretrained=[name for name in old if name not in finetuned],
        only_finetuned=[name for name in new if name not in pretrained],
        shapes={name: (w0.shape, w.shape) for name, w0, w in both if w0.shape != w.shape},
        dtypes={name: (w0.label, w.label) for name, w0, w in both if w0.label != w.label},
    )


class Comparison(NamedTuple):
    """The result of `compare`.

    Attributes:
        structure: entries of both checkpoints, matched by name.
        measurements: tensors and their distances, in natural order.
        others: name to entry and equality, for common entries that are not real floating point.
        excluded: names that `--exclude` matched, in natural order.
    """

    structure: Structure
    measurements: list[Measurement]
    others: dict[str, tuple[Entry, bool]]
    excluded: list[str]

    def totals(self) -> dict[str, Any]:
        squares = sum(x.distance.squares for x in self.measurements)
        anchor = sum(x.distance.anchor_squares for x in self.measurements)
        largest = [x.distance.mars_largest for x in self.measurements]
        return {
            "tensors": len(self.measurements),
            "parameters": sum(int(np.prod(x.entry.shape)) for x in self.measurements),
            "mars_largest": finite_or_none(float(np.max(largest))) if largest else None,
            "l2": finite_or_none(squares**0.5),
            "relative": finite_or_none(relative(squares, anchor)),
            "not_finite": sum(x.distance.not_finite for x in self.measurements),
        }

    def as_json(self, pretrained: Path, finetuned: Path) -> dict[str, Any]:
        structure = self.structure
        return {
            "pretrained": str(pretrained),
            "finetuned": str(finetuned),
            "same_structure": structure.same,
            "tensors": [_tensor_json(x) for x in self.measurements],
            "not_measured": [
                {"name": name, "shape": entry.shape, "dtype": entry.label, "same": same}
                for name, (entry, same) in self.others.items()
            ],
            "only_pretrained": structure.only_pretrained,
            "only_finetuned": structure.only_finetuned,
            "shapes_differ": _pairs_json(structure.shapes),
            "dtypes_differ": _pairs_json(structure.dtypes),
            "excluded": self.excluded,
            "totals": self.totals(),
        }


def _tensor_json(measurement: Measurement) -> dict[str, Any]:
    entry, tensor, distance = measurement
    return {
        "name": entry.name,
        "shape": entry.shape,
        "dtype": entry.label,
        "rows": tensor.rows,
        "layers": tensor.layers,
        "mars": {
            "largest": finite_or_none(distance.mars_largest),
            "mean": finite_or_none(distance.mars_mean),
        },
        "l2": {
            "largest": finite_or_none(distance.l2_largest),
            "mean": finite_or_none(distance.l2_mean),
        },
        "relative": finite_or_none(distance.relative),
        "not_finite": distance.not_finite,
    }


def _pairs_json(pairs: Mapping[str, tuple[Any, Any]]) -> list[dict[str, Any]]:
    return [{"name": k, "pretrained": x, "finetuned": y} for k, (x, y) in pairs.items()]


def measurable(structure: Structure, pretrained: Mapping[str, Entry]) -> Callable[[Entry], bool]:
    """A predicate: does a fine-tuned entry have a distance?

    It does if it is not empty and floating point in both checkpoints.
    """
    common = set(structure.common)

    def is_measurable(entry: Entry) -> bool:
        return (
            entry.name in common
            and entry.floating
            and pretrained[entry.name].floating
            and 0 not in entry.shape
        )

    return is_measurable


def compare(
    pretrained: Checkpoint,
    finetuned: Checkpoint,
    structure: Structure,
    tensors: Mapping[str, Tensor],
    excluded: Collection[str],
    progress: Callable[[int], object],
) -> Comparison:
    """Reads both checkpoints, one tensor at a time, and measures the distances.

    Args:
        pretrained: the anchor.
        finetuned: the fine-tuned checkpoint.
        structure: entries of both, matched by name.
        tensors: rows and layers of the tensors to measure, by name.
        excluded: names that are left out.
        progress: called with the number of bytes processed.
    """
    measurements, others = [], {}
    order = natural_order(sorted(structure.common))
    pretrained.expect(order)
    finetuned.expect(order)
    for name in order:
        entry = finetuned.entries[name]
        w0, w = pretrained.read(name), finetuned.read(name)
        if name in tensors:
            measurements.append(Measurement(entry, tensors[name], distance(w, w0, tensors[name])))
        else:
            same = w0.dtype == w.dtype and np.array_equal(_bytes(w0), _bytes(w))
            others[name] = (entry, same and name not in structure.dtypes)
        progress(entry.size)
    return Comparison(structure, measurements, others, natural_order(sorted(excluded)))


def _bytes(array: np.ndarray) -> np.ndarray:
    # Compare bytes, because NaN != NaN.
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
