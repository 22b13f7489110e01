"""`--rename`: names that differ by a prefix or a separator, matched; and proposals for it."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from tpgm_jax.cli._checkpoint import Checkpoint, Entry
from tpgm_jax.cli._errors import CommandError
from tpgm_jax.cli._match import Match
from tpgm_jax.cli._text import plural, printable


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


def rename(
    pretrained: Checkpoint, finetuned: Checkpoint, rules: Sequence[str]
) -> tuple[Checkpoint, int]:
    """Applies `rules` to the names of both, and matches what is then equal.

    Returns:
        The pre-trained checkpoint under the names of the fine-tuned one, and how many names differ.

    Raises:
        CommandError: a rule is invalid, matches nothing, or makes two names equal.
    """
    if not rules:
        return pretrained, 0
    old, new = list(pretrained.entries), list(finetuned.entries)
    keys = {name: name for name in (*old, *new)}
    for rule in rules:
        apply = _parse(rule)
        renamed = {name: apply(key) for name, key in keys.items()}
        if renamed == keys:
            raise CommandError(
                f"--rename {rule!r} matches no name: pass a regular expression for part of a "
                f"name, such as {printable(old[0] if old else '')!r}."
            )
        keys = renamed
    by_key = _by_key(new, keys)
    originals = {}
    for key, name in _by_key(old, keys).items():
        # Keep the own name if another tensor of FINETUNED has the new one.
        own = name if key in finetuned.entries else key
        originals[by_key.get(key, own)] = name
    count = sum(old != x for x, old in originals.items() if x in finetuned.entries)
    return Renamed(pretrained, originals), count


def _by_key(names: Iterable[str], keys: Mapping[str, str]) -> dict[str, str]:
    by_key: dict[str, str] = {}
    for name in names:
        if by_key.setdefault(keys[name], name) != name:
            raise CommandError(
                f"--rename cannot be applied, because {printable(name)!r} and "
                f"{printable(by_key[keys[name]])!r} would both be {printable(keys[name])!r}: pass "
                "a stricter expression."
            )
    return by_key


def _parse(rule: str) -> Callable[[str], str]:
    """The function of `s/REGEX/REPLACEMENT/`, with `g` at the end to replace all matches."""
    try:
        separator = re.escape(rule[1:2])
        _, regex, replacement, flags = re.split(rf"(?<!\\){separator}", rule)
        if rule[0] != "s" or flags not in ("", "g"):
            raise ValueError("it does not start with s and end with the separator or g")
        compiled = re.compile(regex)
        count = 0 if flags else 1
        compiled.sub(replacement, "", count=count)  # checks the replacement
        return lambda name: compiled.sub(replacement, name, count=count)
    except (ValueError, re.error) as error:
        raise CommandError(
            f"--rename {rule!r} is not s/REGEX/REPLACEMENT/, because {error}: to remove a prefix, "
            r"pass --rename 's/^module\.//'."
        ) from error


def proposal(found: Match, old: Mapping[str, Entry], new: Mapping[str, Entry]) -> str:
    """How to match the names of `only_pretrained` and `only_finetuned`, or "".

    Only if it matches at least half of the names in one of the two, with equal shapes.
    """
    lost, added = found.only_pretrained, found.only_finetuned
    slashes = any("/" in x for x in lost) != any("/" in x for x in added)
    rests: dict[str, list[tuple[str, Entry]]] = {}
    for name in added:
        for prefix, rest in _prefixes(name, slashes):
            few = rests.setdefault(rest, [])
            if len(few) < 4:
                few.append((prefix, new[name]))
    counts = Counter(
        (before, after)
        for name in lost
        for before, rest in _prefixes(name, slashes)
        for after, entry in rests.get(rest, ())
        if entry.shape == old[name].shape
    )
    if not counts:
        return ""
    # Of equal counts, the shortest prefixes.
    prefixes = max(counts, key=lambda pair: (counts[pair], -len(pair[0] + pair[1])))
    count = counts[prefixes]
    # Names come from untrusted files, and the proposal may be pasted into a shell.
    if 2 * count < min(len(lost), len(added)) or not re.fullmatch(r"[\w./-]*", "".join(prefixes)):
        return ""
    separators = [r"s/\//./g"] if slashes else []
    strips = [
        "s/^" + re.escape(x.replace("/", ".") if slashes else x).replace("/", r"\/") + "//"
        for x in dict.fromkeys(prefixes)
        if x
    ]
    rules = " ".join(f"--rename '{rule}'" for rule in (*separators, *strips))
    return f"{plural(count, 'name')} of both would match with {rules}"


def _prefixes(name: str, slashes: bool) -> list[tuple[str, str]]:
    """The first up to three levels of a name, with what follows."""
    ends = [0, *(x.end() for x in re.finditer(r"[./]", name))][:4]
    return [(name[:i], name[i:].replace("/", ".") if slashes else name[i:]) for i in ends]
