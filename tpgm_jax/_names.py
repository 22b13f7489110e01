"""Names of the leaves of a tree, and the patterns that pick them.

A leaf is called by its path, joined by slashes: `block_0/attn/query/kernel`. The name
is all that identifies a leaf across the containers that frameworks wrap around the
same parameters (dicts, `nnx.State`, boxed linen variables, dataclasses).
"""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

Pattern = str | re.Pattern[str]
# The last alternative is a tree of bools.
Exclude = Pattern | Collection[Pattern] | Callable[[str, Any], bool] | Any


class Nothing(optax.MaskedNode):
    """Stands in a state for a leaf of which nothing is kept.

    A tree without leaves, and so in no checkpoint; Orbax refuses to save arrays of no elements.
    What users do about optax's holes (`is_leaf=lambda x: isinstance(x, optax.MaskedNode)`)
    they do about ours, while we tell ours from those that `optax.partition` makes.
    """


def is_nothing(node: Any) -> bool:
    return isinstance(node, Nothing)


def leaves(tree: Any) -> list[Any]:
    """As `jax.tree.leaves`, with a `Nothing` for each leaf of which nothing is kept."""
    return jax.tree.leaves(tree, is_leaf=is_nothing)


def leaf_names(tree: Any) -> list[str]:
    """Slash-joined paths of the leaves of `tree`, in the order of `leaves`."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree, is_nothing)[0]]
    siblings = Counter(path[:-1] for path in paths)
    # A Flax variable (`nnx.Param`, `nn.Partitioned`) is a node with one child called
    # `value`. `nnx.Optimizer` hands `init` variables and `update` their arrays, and
    # the names must be the same in both.
    boxed = [
        siblings[path[:-1]] == 1 and path[-1:] == (jax.tree_util.GetAttrKey("value"),)
        for path in paths
    ]
    paths = [path[:-1] if box else path for path, box in zip(paths, boxed, strict=True)]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]


def in_order(names: Iterable[str]) -> list[str]:
    """`names` with `block_2` before `block_10`, and otherwise as they come.

    Dicts flatten in the order of the alphabet, where 10 comes first.
    """
    names, seen = list(names), {}

    def key(name: str) -> list[tuple[int, list[int]]]:
        parts, places = name.split("/"), []
        for i, part in enumerate(parts):
            # Siblings that differ in their numbers alone stand where the first of them does.
            family = (*parts[:i], re.sub(r"\d+", "#", part))
            numbers = [int(x) for x in re.findall(r"\d+", part)]
            places.append((seen.setdefault(family, len(seen)), numbers))
        return places

    return sorted(names, key=key)


def by_name(tree: Any) -> dict[str, Any]:
    """Name to leaf."""
    return dict(zip(leaf_names(tree), leaves(tree), strict=True))


def matches(pattern: Pattern, names: Sequence[str], argument: str) -> set[str]:
    """The names that `pattern` matches in full.

    Raises:
        ValueError: the pattern is no regular expression, or matches no name. A pattern
            that matches nothing is a misspelt one, and would be obeyed in silence.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"`{argument}` has a pattern that is not a regular expression: {pattern!r} ({error})."
        ) from error
    found = {name for name in names if compiled.fullmatch(name)}
    if not found and names:
        raise ValueError(
            f"`{argument}` has a pattern that matches no parameter: {compiled.pattern!r}. "
            "Patterns are matched against the whole path, so a prefix needs `.*` behind it. "
            f"The closest paths: {closest(compiled.pattern, names)}."
        )
    return found


def closest(name: str, names: Iterable[str]) -> str:
    """The three of `names` most like `name`, for an error message."""
    return ", ".join(repr(x) for x in difflib.get_close_matches(name, names, n=3, cutoff=0.0))


def excluded(exclude: Exclude | None, names: Sequence[str], leaves: Sequence[Any]) -> list[bool]:
    """Whether each leaf is left to the base optimizer.

    Args:
        exclude: a regular expression or a sequence of them, matched in full against the
            names; or a callable `(path, leaf) -> bool`, which may look at the leaf's
            shape and dtype but not at its numbers; or a tree of bools, where a bool in
            place of a subtree stands for all of it.
        names: one for each leaf.
        leaves: arrays, tracers or `jax.ShapeDtypeStruct`s.
    """
    if exclude is None:
        return [False] * len(names)
    # Before `callable`: an Equinox module of bools is a tree, and often callable too.
    flags = by_name(exclude)
    if flags and all(isinstance(flag, bool | np.bool_) for flag in flags.values()):
        return [_flag(flags, name) for name in names]
    if isinstance(exclude, str | re.Pattern):
        exclude = (exclude,)
    if callable(exclude):
        return [bool(exclude(name, leaf)) for name, leaf in zip(names, leaves, strict=True)]
    if not (
        isinstance(exclude, list | tuple | set | frozenset)
        and all(isinstance(pattern, str | re.Pattern) for pattern in exclude)
    ):
        raise TypeError(
            "`exclude` must be a regular expression, a sequence of them, a callable "
            f"`(path, leaf) -> bool`, or a tree of bools; got {exclude!r}."
        )
    found = set().union(*(matches(pattern, names, "exclude") for pattern in exclude))
    return [name in found for name in names]


def _flag(flags: Mapping[str, bool], name: str) -> bool:
    """The bool at `name`, or else at the nearest path above it."""
    above = name
    while above not in flags and above:
        above = above.rpartition("/")[0]
    if above not in flags:
        raise ValueError(
            f"`exclude` is a tree of bools without an entry for {name!r}. It needs one for "
            f"every parameter; the closest it has: {closest(name, flags)}."
        )
    return bool(flags[above])
