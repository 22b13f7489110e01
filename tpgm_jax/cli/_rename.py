"""`--rename`: names that differ by a prefix or a separator, matched; and proposals for it."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice

from tpgm_jax.cli._checkpoint import Checkpoint, Entry
from tpgm_jax.cli._errors import CommandError, plural, quoted

Rule = tuple[str, Callable[[str], str]]  # its text and what it does


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
    """Applies `rules` to the names of both, and matches what is then equal.

    The entries of `pretrained` get the names of `finetuned`. Returns how many names differ.
    """
    keys = {name: name for name in (*pretrained.entries, *finetuned.entries)}
    for rule, apply in rules:
        renamed = {name: apply(key) for name, key in keys.items()}
        if renamed == keys:
            example = quoted(next(iter(keys), ""))
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
    # Of equal counts, the shortest prefixes.
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
