"""Two checkpoints, matched by name: what can be measured or moved, and why the rest cannot."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tpgm_jax._core.names import natural_order
from tpgm_jax.cli._checkpoint import Checkpoint, Entry
from tpgm_jax.cli._rows import excluded_names


class Match(NamedTuple):
    """Entries of two checkpoints. Excluded entries are in no other field.

    Attributes:
        common: names in both, with equal shapes, in natural order.
        only_pretrained: names in the pre-trained checkpoint only.
        only_finetuned: names in the fine-tuned checkpoint only.
        shapes: name to both shapes, for names in both whose shapes differ.
        dtypes: name to both dtypes, for names in both whose dtypes differ.
        kinds: name to both dtypes, for names of which one is floating point and the other is not,
            or one complex and the other not.
        excluded: names that `--exclude` matched, in natural order.
    """

    common: list[str]
    only_pretrained: list[str]
    only_finetuned: list[str]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    dtypes: dict[str, tuple[str, str]]
    kinds: dict[str, tuple[str, str]]
    excluded: list[str]

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
            "excluded": self.excluded,
        }


def match(old: Mapping[str, Entry], new: Mapping[str, Entry], exclude: Sequence[str]) -> Match:
    """Matches the entries of the pre-trained (`old`) and the fine-tuned (`new`) checkpoint.

    Args:
        old: entries of the pre-trained checkpoint.
        new: entries of the fine-tuned checkpoint.
        exclude: patterns of `--exclude`.
    """
    names = list(dict.fromkeys([*new, *old]))
    excluded = excluded_names(exclude, names)
    both = [(x, old[x], new[x]) for x in new if x in old and x not in excluded]
    common = natural_order(sorted(name for name, w0, w in both if w0.shape == w.shape))
    return Match(
        common=common,
        only_pretrained=[x for x in old if x not in new and x not in excluded],
        only_finetuned=[x for x in new if x not in old and x not in excluded],
        shapes={x: (w0.shape, w.shape) for x, w0, w in both if w0.shape != w.shape},
        dtypes={x: (w0.label, w.label) for x, w0, w in both if w0.label != w.label},
        kinds={
            x: (w0.label, w.label)
            for x, w0, w in both
            if w0.kind != w.kind and (w0.movable or w.movable)
        },
        excluded=natural_order(sorted(excluded)),
    )


def numeric(found: Match, new: Mapping[str, Entry], kinds: Collection[str]) -> set[str]:
    """Names of the common tensors of these kinds ("float", "complex") in both."""
    common = (x for x in found.common if new[x].kind in kinds and 0 not in new[x].shape)
    return set(common) - found.kinds.keys()


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
