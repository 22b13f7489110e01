"""`--rename`: names that differ by a prefix or a separator, matched; and proposals for it."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice, product

import numpy as np

from tpgm_jax.cli._checkpoint import Checkpoint, Entry
from tpgm_jax.cli._errors import CommandError, plural, quoted


class Renamed(Checkpoint):
    """The pre-trained checkpoint, under the names of the fine-tuned one. Only for reading."""

    def __init__(self, checkpoint: Checkpoint, originals: Mapping[str, str]):
        self._checkpoint, self._originals = checkpoint, originals
        entries = checkpoint.entries
        super().__init__(
            checkpoint.path, [entries[old]._replace(name=x) for x, old in originals.items()]
        )

    def read(self, name: str) -> np.ndarray:
        return self._checkpoint.read(self._originals[name])


def parse_rule(rule: str) -> tuple[str, Callable[[str], str]]:
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


def rename(
    pretrained: Checkpoint,
    finetuned: Checkpoint,
    rules: Sequence[tuple[str, Callable[[str], str]]],
) -> tuple[Checkpoint, int]:
    """Applies `rules` to the names of both, and matches what is then equal.

    Returns:
        The pre-trained checkpoint under the names of the fine-tuned one, and how many names differ.
    """
    if not rules:
        return pretrained, 0
    keys = {name: name for name in (*pretrained.entries, *finetuned.entries)}
    for rule, apply in rules:
        renamed = {name: apply(key) for name, key in keys.items()}
        if renamed == keys:
            example = quoted(next(iter(keys), ""))
            remedy = f"pass a regular expression for part of a name, such as {example}"
            raise CommandError(f"--rename {rule!r} cannot be used", "it matches no name", remedy)
        keys = renamed
    new_names = _by_key(finetuned.entries, keys)
    originals = {}
    for key, name in _by_key(pretrained.entries, keys).items():
        # Keep the own name if another tensor of FINETUNED has the new one.
        own = name if key in finetuned.entries else key
        originals[new_names.get(key, own)] = name
    count = sum(old != new for new, old in originals.items() if new in finetuned.entries)
    return Renamed(pretrained, originals), count


def _by_key(names: Iterable[str], keys: Mapping[str, str]) -> dict[str, str]:
    by_key: dict[str, str] = {}
    for name in names:
        if by_key.setdefault(keys[name], name) != name:
            both = f"{quoted(by_key[keys[name]])} and {quoted(name)}"
            because = f"{both} would both be {quoted(keys[name])}"
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

    def without_prefixes(names: Sequence[str], entries: Mapping[str, Entry]):
        """The most frequent prefixes, with the rest of each name that has it, and its shape."""
        counts = Counter(prefix for name in names for prefix in _prefixes(name))
        return {
            prefix: {
                (_dotted(name[len(prefix) :], slashes), entries[name].shape)
                for name in names
                if name.startswith(prefix)
            }
            for prefix, _ in counts.most_common(6)
        }

    pairs = product(without_prefixes(lost, old).items(), without_prefixes(added, new).items())
    counts = {(before, after): len(x & y) for (before, x), (after, y) in pairs}
    # Of equal counts, the shortest prefixes.
    prefixes = max(counts, key=lambda pair: (counts[pair], -len("".join(pair))), default=("", ""))
    count = counts.get(prefixes, 0)
    few = count == 0 or 2 * count < min(len(lost), len(added))
    # Names come from untrusted files, and the proposal may be pasted into a shell.
    if few or not re.fullmatch(r"[\w./-]*", "".join(prefixes)):
        return ""
    escaped = [re.escape(_dotted(x, slashes)).replace("/", r"\/") for x in prefixes if x]
    rules = [r"s/\//./g"] * slashes + [f"s/^{x}//" for x in dict.fromkeys(escaped)]
    options = " ".join(f"--rename '{rule}'" for rule in rules)
    return f"{plural(count, 'name')} of both would match with {options}"


def _prefixes(name: str) -> list[str]:
    """Nothing, and the first one to three levels of a name."""
    return ["", *(name[: x.end()] for x in islice(re.finditer("[./]", name), 3))]


def _dotted(name: str, slashes: bool) -> str:
    return name.replace("/", ".") if slashes else name
