"""Two checkpoints, matched by name: what can be measured or moved, and why the rest cannot."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tpgm_jax._core.names import natural_order
from tpgm_jax.cli._checkpoint import Checkpoint, Entry
from tpgm_jax.cli._kinds import is_statistic, quantized_names, training_state
from tpgm_jax.cli._rows import excluded_names


class Match(NamedTuple):
    """Entries of two checkpoints. Excluded entries and training state are in no other field.

    Attributes:
        common: names in both, with equal shapes, in natural order.
        only_pretrained: names in the pre-trained checkpoint only.
        only_finetuned: names in the fine-tuned checkpoint only.
        shapes: name to both shapes, for names in both whose shapes differ.
        dtypes: name to both dtypes, for names in both whose dtypes differ.
        kinds: name to both dtypes, if only one of them is floating point, or only one is complex.
        quantized: names that mean numbers only together, such as integers and a scale.
        statistics: names of statistics and buffers in floating point.
        excluded: names that `--exclude` matched, in natural order.
        training: names of training state, in natural order.
    """

    common: list[str]
    only_pretrained: list[str]
    only_finetuned: list[str]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    dtypes: dict[str, tuple[str, str]]
    kinds: dict[str, tuple[str, str]]
    quantized: set[str]
    statistics: list[str]
    excluded: list[str]
    training: list[str]

    @property
    def same(self) -> bool:
        """Whether names, shapes and kinds of dtype are the same."""
        return not (self.only_pretrained or self.only_finetuned or self.shapes or self.kinds)

    def as_json(self) -> dict[str, Any]:
        def pairs(by_name: Mapping[str, tuple[Any, Any]]) -> list[dict[str, Any]]:
            return [{"name": k, "pretrained": x, "finetuned": y} for k, (x, y) in by_name.items()]

        return {
            "same_structure": self.same,
            "only_pretrained": self.only_pretrained,
            "only_finetuned": self.only_finetuned,
            "shapes_differ": pairs(self.shapes),
            "dtypes_differ": pairs(self.dtypes),
            "quantized": sorted(self.quantized),
            "statistics": self.statistics,
            "excluded": self.excluded,
            "training_state": self.training,
        }


def match(
    old: Mapping[str, Entry], new: Mapping[str, Entry], exclude: Sequence[str], everything: bool
) -> Match:
    """Matches the entries of the pre-trained (`old`) and the fine-tuned (`new`) checkpoint.

    `exclude` is the patterns of `--exclude`, and `everything` is whether to keep training state.
    """
    names = list(dict.fromkeys([*new, *old]))
    excluded = excluded_names(exclude, names)
    training = set() if everything else training_state(names) - excluded
    skipped = excluded | training
    both = [(x, old[x], new[x]) for x in new if x in old and x not in skipped]
    common = natural_order(sorted(name for name, w0, w in both if w0.shape == w.shape))
    return Match(
        common=common,
        only_pretrained=[x for x in old if x not in new and x not in skipped],
        only_finetuned=[x for x in new if x not in old and x not in skipped],
        shapes={x: (w0.shape, w.shape) for x, w0, w in both if w0.shape != w.shape},
        dtypes={x: (w0.label, w.label) for x, w0, w in both if w0.label != w.label},
        kinds={
            x: (w0.label, w.label)
            for x, w0, w in both
            if w0.kind != w.kind and (w0.movable or w.movable)
        },
        quantized=(quantized_names(old) | quantized_names(new)) - skipped,
        statistics=[x for x in common if new[x].movable and is_statistic(x)],
        excluded=natural_order(sorted(excluded)),
        training=natural_order(sorted(training)),
    )


def numeric(found: Match, new: Mapping[str, Entry], kinds: Collection[str]) -> set[str]:
    """Names of the common tensors of these kinds ("float", "complex") that stand for themselves."""
    names = {x for x in found.common if new[x].kind in kinds and 0 not in new[x].shape}
    return names - found.quantized - found.kinds.keys()


def different(pretrained: Checkpoint, finetuned: Checkpoint, name: str) -> bool:
    """Whether the bytes of a tensor differ, or only one checkpoint has it."""
    if name not in pretrained.entries or name not in finetuned.entries:
        return True
    w0, w = pretrained.entries[name], finetuned.entries[name]
    if (w0.shape, w0.label, w0.size) != (w.shape, w.label, w.size):
        return True
    # Compare bytes, because NaN != NaN.
    x, y = (np.ascontiguousarray(c.read(name)).reshape(-1) for c in (pretrained, finetuned))
    return not np.array_equal(x.view(np.uint8), y.view(np.uint8))


# Called with the number of bytes processed.
Progress = Callable[[int], object]
