"""Matches two checkpoints by name: which tensors can be measured or moved, and why others not."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from tpgm_jax._core.names import match_pattern, natural_order
from tpgm_jax.cli._checkpoint import Checkpoint, Entry
from tpgm_jax.cli._errors import CommandError, plural, quote
from tpgm_jax.cli._kinds import is_statistic, quantized_names, training_state

# Called with the number of bytes processed.
Progress = Callable[[int], object]
# A rule of `--rename`: its text and what it does to a name.
Rule = tuple[str, Callable[[str], str]]


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
    both = pretrained.entries, finetuned.entries
    names = list(dict.fromkeys([*finetuned.entries, *pretrained.entries]))
    try:
        excluded = set().union(*(match_pattern(x, names, "--exclude") for x in exclude))
    except ValueError as error:
        raise CommandError(str(error)) from error
    training = set() if everything else training_state(names) - excluded
    skipped = excluded | training
    old, new = ({x: entries[x] for x in entries if x not in skipped} for entries in both)
    pairs = {x: (old[x], new[x]) for x in new if x in old}
    shapes = {x: (w0.shape, w.shape) for x, (w0, w) in pairs.items() if w0.shape != w.shape}
    labels = {x: (w0.label, w.label) for x, (w0, w) in pairs.items() if w0.label != w.label}
    kinds = [x for x, (w0, w) in pairs.items() if w0.kind != w.kind and (w0.movable or w.movable)]
    common = natural_order(sorted(pairs.keys() - shapes.keys()))
    only_old, only_new = [x for x in old if x not in new], [x for x in new if x not in old]
    # Include the skipped entries, because only the scale may be excluded.
    quantized = set().union(*map(quantized_names, both)) - skipped
    return Match(
        pretrained,
        finetuned,
        common,
        only_old,
        only_new,
        shapes_differ=shapes,
        dtypes_differ=labels,
        kinds_differ={x: labels[x] for x in kinds},
        quantized=sorted(quantized),
        statistics=[x for x in common if new[x].movable and is_statistic(x)],
        excluded=natural_order(sorted(excluded)),
        training_state=natural_order(sorted(training)),
        rename=proposal(only_old, only_new, old, new),
        renamed=renamed,
    )


def parse_rule(rule: str) -> Rule:
    """`s/REGEX/REPLACEMENT/`, with `g` at the end to replace all matches, and its function."""
    try:
        separator = re.escape(rule[1:2])
        _, regex, replacement, flags = re.split(rf"(?<!\\){separator}", rule)
        if rule[0] != "s" or flags not in ("", "g"):
            raise ValueError("it does not start with s and end with the separator or g")
        compiled = re.compile(regex)
        count = 0 if flags else 1
        compiled.sub(replacement, "", count=count)  # checks the replacement
        return rule, lambda name: compiled.sub(replacement, name, count=count)
    except (ValueError, re.error) as error:
        what = f"--rename {rule!r} is not s/REGEX/REPLACEMENT/"
        remedy = r"to remove a prefix, pass --rename 's/^module\.//'"
        raise CommandError(what, str(error), remedy) from error


def rename(pretrained: Checkpoint, finetuned: Checkpoint, rules: Sequence[Rule]) -> int:
    """Applies `rules` to the names of both, and matches names that are then equal.

    The entries of `pretrained` get the names of `finetuned`. Returns how many names differ.
    """
    keys = {name: name for name in (*pretrained.entries, *finetuned.entries)}
    for rule, apply in rules:
        renamed = {name: apply(key) for name, key in keys.items()}
        if renamed == keys:
            example = quote(next(iter(keys), ""))
            remedy = f"pass a regular expression for part of a name, such as {example}"
            raise CommandError(f"--rename {rule!r} cannot be used", "it matches no name", remedy)
        keys = renamed
    new_names = _by_key(finetuned.entries, keys)
    entries = {}
    for key, name in _by_key(pretrained.entries, keys).items():
        # Keep the own name if another tensor of FINETUNED has the new one.
        own = name if key in finetuned.entries else key
        entries[new_names.get(key, own)] = pretrained.entries[name]
    pretrained.entries = entries
    return sum(new != old.name for new, old in entries.items() if new in finetuned.entries)


def _by_key(names: Iterable[str], keys: Mapping[str, str]) -> dict[str, str]:
    by_key: dict[str, str] = {}
    for name in names:
        if by_key.setdefault(keys[name], name) != name:
            both = f"{quote(by_key[keys[name]])} and {quote(name)}"
            because = f"{both} would both be {quote(keys[name])}"
            raise CommandError("--rename cannot be used", because, "pass a stricter expression")
    return by_key


def proposal(
    lost: Sequence[str], added: Sequence[str], old: Mapping[str, Entry], new: Mapping[str, Entry]
) -> str:
    """How to match the names that only one checkpoint has, or "".

    Only if it matches at least half of the names in one of the two, with equal shapes.
    """
    slashes = any("/" in x for x in lost) != any("/" in x for x in added)
    slashes = slashes and any("." in x for x in (*lost, *added))
    # The rest of a name after its first levels, and the shape, to these levels.
    prefixes: dict[tuple[str, tuple[int, ...]], str | None] = {}
    for name in lost:
        for prefix, rest in _splits(name, slashes):
            key = rest, old[name].shape
            prefixes[key] = None if key in prefixes else prefix  # ambiguous
    counts: Counter[tuple[str, str]] = Counter()
    for name in added:
        for prefix, rest in _splits(name, slashes):
            before = prefixes.get((rest, new[name].shape))
            if before is not None:
                counts[before, prefix] += 1
    # Among equal counts choose the shortest prefixes.
    pair = max(counts, key=lambda pair: (counts[pair], -len("".join(pair))), default=("", ""))
    count = counts[pair]
    # Names come from untrusted files, and the proposal may be pasted into a shell.
    safe = re.fullmatch(r"[\w./-]*", "".join(pair))
    if not count or 2 * count < min(len(lost), len(added)) or not safe:
        return ""
    escaped = [re.escape(x).replace("/", r"\/") for x in pair if x]
    rules = [r"s/\//./g"] * slashes + [f"s/^{x}//" for x in dict.fromkeys(escaped)]
    options = " ".join(f"--rename '{rule}'" for rule in rules)
    return f"{plural(count, 'name')} of both would match with {options}"


def _splits(name: str, slashes: bool) -> list[tuple[str, str]]:
    """Nothing and the whole name, and the first one to three levels and the rest."""
    name = name.replace("/", ".") if slashes else name
    ends = [0, *(x.end() for x in islice(re.finditer("[./]", name), 3))]
    return [(name[:end], name[end:]) for end in ends]
