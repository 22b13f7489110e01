"""Two checkpoints, matched by name: what can be measured or moved, and why the rest cannot."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tpgm_jax._core.names import natural_order
from tpgm_jax.cli._checkpoint import Checkpoint, Entry
from tpgm_jax.cli._kinds import is_statistic, quantized_names, training_state
from tpgm_jax.cli._rows import excluded_names

# Called with the number of bytes processed.
Progress = Callable[[int], object]


class Match(NamedTuple):
    """Entries of two checkpoints. Excluded entries and training state are in no other field.

    Attributes:
        common: names in both, with equal shapes, in natural order.
        only_pretrained: names in the pre-trained checkpoint only.
        only_finetuned: names in the fine-tuned checkpoint only.
        shapes_differ: name to both shapes, for names in both whose shapes differ.
        dtypes_differ: name to both dtypes, for names in both whose dtypes differ.
        kinds_differ: those of which only one is floating point, or only one is complex.
        quantized: names that mean numbers only together, such as integers and a scale.
        statistics: names of statistics and buffers in floating point.
        excluded: names that `--exclude` matched, in natural order.
        training_state: names of training state, in natural order.
    """

    common: list[str]
    only_pretrained: list[str]
    only_finetuned: list[str]
    shapes_differ: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    dtypes_differ: dict[str, tuple[str, str]]
    kinds_differ: dict[str, tuple[str, str]]
    quantized: list[str]
    statistics: list[str]
    excluded: list[str]
    training_state: list[str]

    def as_json(self) -> dict[str, Any]:
        lost_or_changed = (self.only_pretrained, self.shapes_differ, self.kinds_differ)
        same = not (any(lost_or_changed) or self.only_finetuned)
        return {"same_structure": same, **self._asdict()}


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
    both = {x: (old[x], new[x]) for x in new if x in old and x not in skipped}
    labels = {x: (w0.label, w.label) for x, (w0, w) in both.items() if w0.label != w.label}
    common = natural_order(sorted(x for x, (w0, w) in both.items() if w0.shape == w.shape))
    return Match(
        common=common,
        only_pretrained=[x for x in old if x not in new and x not in skipped],
        only_finetuned=[x for x in new if x not in old and x not in skipped],
        shapes_differ={
            x: (w0.shape, w.shape) for x, (w0, w) in both.items() if w0.shape != w.shape
        },
        dtypes_differ=labels,
        kinds_differ={
            x: pair
            for x, pair in labels.items()
            if old[x].kind != new[x].kind and (old[x].movable or new[x].movable)
        },
        quantized=sorted((quantized_names(old) | quantized_names(new)) - skipped),
        statistics=[x for x in common if new[x].movable and is_statistic(x)],
        excluded=natural_order(sorted(excluded)),
        training_state=natural_order(sorted(training)),
    )


def numeric(found: Match, new: Mapping[str, Entry], kinds: Collection[str]) -> set[str]:
    """Names of the common tensors of these kinds ("float", "complex") that stand for themselves."""
    names = {x for x in found.common if new[x].kind in kinds and 0 not in new[x].shape}
    return names - {*found.quantized, *found.kinds_differ}


def different(pretrained: Checkpoint, finetuned: Checkpoint, name: str) -> bool:
    """Whether the bytes of a tensor differ, or only one checkpoint has it."""
    w0, w = pretrained.entries.get(name), finetuned.entries.get(name)
    if w0 != w:
        return True
    # Compare bytes, because NaN != NaN.
    x, y = (np.ascontiguousarray(c.read(name)).reshape(-1) for c in (pretrained, finetuned))
    return not np.array_equal(x.view(np.uint8), y.view(np.uint8))
