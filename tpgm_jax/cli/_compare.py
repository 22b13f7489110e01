"""What two checkpoints have in common, how far it went, and what only one of them has."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tpgm_jax._axes import Tensor
from tpgm_jax.cli._checkpoint import Checkpoint, Entry
from tpgm_jax.cli._distance import Distance, distance, relative
from tpgm_jax.cli._text import counting_order, finite


class Measured(NamedTuple):
    """A tensor and how far it went."""

    entry: Entry
    tensor: Tensor
    distance: Distance


class Structure(NamedTuple):
    """How the entries of two checkpoints pair, by name, without those that are excluded.

    Attributes:
        common: in both, of the same shape.
        only_pretrained: in the first alone.
        only_finetuned: in the second alone.
        shapes: in both, with different shapes: name to both.
        dtypes: in both, of different dtypes: name to both. Measured nevertheless.
    """

    common: list[str]
    only_pretrained: list[str]
    only_finetuned: list[str]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    dtypes: dict[str, tuple[str, str]]

    @property
    def same(self) -> bool:
        return not (self.only_pretrained or self.only_finetuned or self.shapes or self.dtypes)


def structure(
    pretrained: Mapping[str, Entry], finetuned: Mapping[str, Entry], excluded: Collection[str]
) -> Structure:
    """Pairs entries by name."""
    ours = [name for name in finetuned if name not in excluded]
    theirs = [name for name in pretrained if name not in excluded]
    both = [(name, pretrained[name], finetuned[name]) for name in ours if name in pretrained]
    return Structure(
        common=[name for name, w0, w in both if w0.shape == w.shape],
        only_pretrained=[name for name in theirs if name not in finetuned],
        only_finetuned=[name for name in ours if name not in pretrained],
        shapes={name: (w0.shape, w.shape) for name, w0, w in both if w0.shape != w.shape},
        dtypes={name: (w0.label, w.label) for name, w0, w in both if w0.label != w.label},
    )


class Comparison(NamedTuple):
    """What `compare` found.

    Attributes:
        structure: how the two pair.
        measured: tensors and their distances, as people count (`block_2` before `block_10`).
        others: what is no real floating point: name to its entry and whether it is the same.
        excluded: names that `--exclude` matched.
    """

    structure: Structure
    measured: list[Measured]
    others: dict[str, tuple[Entry, bool]]
    excluded: list[str]

    def totals(self) -> dict[str, Any]:
        squares = sum(x.distance.squares for x in self.measured)
        anchor = sum(x.distance.anchor_squares for x in self.measured)
        largest = [x.distance.mars_largest for x in self.measured]
        return {
            "tensors": len(self.measured),
            "parameters": sum(int(np.prod(x.entry.shape)) for x in self.measured),
            "mars_largest": finite(float(np.max(largest))) if largest else None,
            "l2": finite(squares**0.5),
            "relative": finite(relative(squares, anchor)),
            "not_finite": sum(x.distance.not_finite for x in self.measured),
        }

    def as_json(self, pretrained: Path, finetuned: Path) -> dict[str, Any]:
        found = self.structure
        return {
            "pretrained": str(pretrained),
            "finetuned": str(finetuned),
            "same_structure": found.same,
            "tensors": [_tensor_json(x) for x in self.measured],
            "not_measured": [
                {"name": name, "shape": entry.shape, "dtype": entry.label, "same": same}
                for name, (entry, same) in self.others.items()
            ],
            "only_pretrained": found.only_pretrained,
            "only_finetuned": found.only_finetuned,
            "shapes_differ": _pairs_json(found.shapes),
            "dtypes_differ": _pairs_json(found.dtypes),
            "excluded": self.excluded,
            "totals": self.totals(),
        }


def _tensor_json(measured: Measured) -> dict[str, Any]:
    entry, tensor, found = measured
    return {
        "name": entry.name,
        "shape": entry.shape,
        "dtype": entry.label,
        "rows": tensor.rows,
        "layers": tensor.layers,
        "mars": {"largest": finite(found.mars_largest), "mean": finite(found.mars_mean)},
        "l2": {"largest": finite(found.l2_largest), "mean": finite(found.l2_mean)},
        "relative": finite(found.relative),
        "not_finite": found.not_finite,
    }


def _pairs_json(pairs: Mapping[str, tuple[Any, Any]]) -> list[dict[str, Any]]:
    return [{"name": k, "pretrained": x, "finetuned": y} for k, (x, y) in pairs.items()]


def measurable(found: Structure, pretrained: Mapping[str, Entry]) -> Callable[[Entry], bool]:
    """Whether a fine-tuned entry has a distance: floating point in both, and not empty."""
    common = set(found.common)

    def check(entry: Entry) -> bool:
        return (
            entry.name in common
            and entry.floating
            and pretrained[entry.name].floating
            and 0 not in entry.shape
        )

    return check


def compare(
    pretrained: Checkpoint,
    finetuned: Checkpoint,
    found: Structure,
    tensors: Mapping[str, Tensor],
    excluded: Collection[str],
    told: Callable[[int], object],
) -> Comparison:
    """Reads both, one tensor at a time.

    Args:
        pretrained: the anchor.
        finetuned: where fine-tuning went.
        found: how they pair.
        tensors: rows and layers of those to measure, by name.
        excluded: names that are left out.
        told: is told of the bytes that are done.
    """
    measured, others = [], {}
    order = sorted(found.common, key=counting_order)
    pretrained.expect(order)
    finetuned.expect(order)
    for name in order:
        entry = finetuned.entries[name]
        w0, w = pretrained.read(name), finetuned.read(name)
        if name in tensors:
            measured.append(Measured(entry, tensors[name], distance(w, w0, tensors[name])))
        else:
            same = w0.dtype == w.dtype and np.array_equal(_bytes(w0), _bytes(w))
            others[name] = (entry, same and name not in found.dtypes)
        told(entry.size)
    return Comparison(found, measured, others, sorted(excluded, key=counting_order))


def _bytes(array: np.ndarray) -> np.ndarray:
    # Bytes, as a NaN is not equal to itself.
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
