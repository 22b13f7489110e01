"""Two checkpoints, matched by name: what can be measured or moved, and why the rest cannot."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from tpgm_jax._core.names import match_pattern, natural_order
from tpgm_jax.cli._checkpoint import Checkpoint
from tpgm_jax.cli._errors import CommandError
from tpgm_jax.cli._kinds import is_statistic, quantized_names, training_state
from tpgm_jax.cli._rename import Rule, proposal, rename

# Called with the number of bytes processed.
Progress = Callable[[int], object]


class Match(NamedTuple):
    """Two checkpoints and their names. Excluded names and training state are in no other field."""

    pretrained: Checkpoint
    finetuned: Checkpoint
    common: list[str]  # in both, with equal shapes, in natural order
    only_pretrained: list[str]
    only_finetuned: list[str]
    shapes_differ: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]  # name to both shapes
    dtypes_differ: dict[str, tuple[str, str]]  # name to both dtypes
    kinds_differ: dict[str, tuple[str, str]]  # only one is floating point, or only one complex
    quantized: list[str]  # numbers only together, such as integers and a scale
    statistics: list[str]  # statistics and buffers in floating point
    excluded: list[str]
    training_state: list[str]
    rename: str  # a proposal for `--rename`
    renamed: int  # names that `--rename` matched

    def as_json(self) -> dict[str, Any]:
        lost_or_changed = (self.only_pretrained, self.shapes_differ, self.kinds_differ)
        same = not (any(lost_or_changed) or self.only_finetuned)
        paths = {"pretrained": str(self.pretrained.path), "finetuned": str(self.finetuned.path)}
        return {"same_structure": same, **self._asdict(), **paths}

    def numeric(self, *kinds: str) -> set[str]:
        """Names of the common tensors of these kinds (see `Entry`) that stand for themselves."""
        new = self.finetuned.entries
        names = {x for x in self.common if new[x].kind in kinds and 0 not in new[x].shape}
        return names - {*self.quantized, *self.kinds_differ}

    def different(self, name: str) -> bool:
        """Whether the bytes of a tensor differ, or only one checkpoint has it."""
        both = self.pretrained, self.finetuned
        w0, w = (checkpoint.entries.get(name) for checkpoint in both)
        if w0 is None or w is None or (w0.shape, w0.label) != (w.shape, w.label):
            return True
        # Compare bytes, because NaN != NaN.
        x, y = (np.ascontiguousarray(c.read(name)).reshape(-1).view(np.uint8) for c in both)
        return not np.array_equal(x, y)


def match(
    pretrained: Checkpoint,
    finetuned: Checkpoint,
    rules: Sequence[Rule],
    exclude: Collection[str],
    everything: bool,
) -> Match:
    """Matches two checkpoints by name.

    `rules` and `exclude` come from `--rename` and `--exclude`. The pre-trained entries get the
    names of the fine-tuned ones. `everything` is whether to keep training state.
    """
    renamed = rename(pretrained, finetuned, rules) if rules else 0
    old, new = pretrained.entries, finetuned.entries
    names = list(dict.fromkeys([*new, *old]))
    try:
        excluded = set().union(*(match_pattern(x, names, "--exclude") for x in exclude))
    except ValueError as error:
        raise CommandError(str(error)) from error
    training = set() if everything else training_state(names) - excluded
    skipped = excluded | training
    both = {x: (old[x], new[x]) for x in new if x in old and x not in skipped}
    shapes = {x: (w0.shape, w.shape) for x, (w0, w) in both.items() if w0.shape != w.shape}
    labels = {x: (w0.label, w.label) for x, (w0, w) in both.items() if w0.label != w.label}
    common = natural_order(sorted(both.keys() - shapes.keys()))
    only_old, only_new = (
        [x for x in one if x not in other and x not in skipped]
        for one, other in ((old, new), (new, old))
    )
    return Match(
        pretrained,
        finetuned,
        common,
        only_old,
        only_new,
        shapes_differ=shapes,
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
        rename=proposal(only_old, only_new, old, new),
        renamed=renamed,
    )
