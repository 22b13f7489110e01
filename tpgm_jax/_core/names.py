"""Names of the leaves of a tree, and the patterns that select leaves.

The name of a leaf is its path, joined by slashes: `block_0/attn/query/kernel`. Names are the
same in every container that frameworks use for the same parameters (dicts, `nnx.State`, boxed
linen variables, dataclasses), so leaves of different trees are matched by name.
"""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

Pattern = str | re.Pattern[str]
# The mapping is a tree of bools.
Exclude = (
    Pattern | Collection[Pattern | bool] | Callable[[str, jax.Array], bool] | Mapping[str, object]
)


class Nothing(optax.MaskedNode):
    """Placeholder in a state for a leaf that the state does not store.

    It has no leaves, so checkpoints skip it; Orbax refuses to save arrays without elements. It is
    a subclass, so that user code that tests for `optax.MaskedNode` also covers it, while we can
    still distinguish it from the placeholders of `optax.partition`.
    """


def is_nothing(node: Any) -> bool:
    return isinstance(node, Nothing)


def leaves(tree: Any) -> list[Any]:
    """Like `jax.tree.leaves`, with a `Nothing` for each leaf that is not stored."""
    return jax.tree.leaves(tree, is_leaf=is_nothing)


def leaf_names(tree: Any) -> list[str]:
    """Slash-joined paths of the leaves of `tree`, in the order of `leaves`."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree, is_nothing)[0]]
    siblings = Counter(path[:-1] for path in paths)
    # A Flax variable (`nnx.Param`, `nn.Partitioned`) is a node with one child, `value`.
    # `nnx.Optimizer` calls `init` with variables and `update` with their arrays; the names must
    # be the same in both.
    boxed = [
        siblings[path[:-1]] == 1 and path[-1:] == (jax.tree_util.GetAttrKey("value"),)
        for path in paths
    ]
    paths = [path[:-1] if box else path for path, box in zip(paths, boxed, strict=True)]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]


def check_unique(names: Sequence[str]) -> None:
    """Raises if two leaves have the same name."""
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(
            f"two parameters have the same path, {twice!r}, because a key has a slash in it: "
            "rename the key."
        )


def by_name(tree: Any) -> dict[str, Any]:
    """Name to leaf."""
    return dict(zip(leaf_names(tree), leaves(tree), strict=True))


def match_by_name(
    shapes: Mapping[str, tuple[int, ...]], tree: Any, what: str, remedy: str
) -> list[Any]:
    """The leaves of `tree` with the names and shapes in `shapes`, in that order.

    `tree` may have more leaves, in other containers.

    Raises:
        ValueError: a leaf is missing, or has another shape. The message calls the tree `what` and
            ends with `remedy`.
    """
    given = by_name(tree)
    for name, shape in shapes.items():
        if name not in given or is_nothing(given[name]):
            raise ValueError(
                f"{what} lacks {name!r} of shape {shape} (closest: {closest(name, given)}): "
                f"{remedy}."
            )
        if jnp.shape(given[name]) != shape:
            raise ValueError(
                f"{what} has {name!r} of shape {jnp.shape(given[name])}, where {shape} is "
                f"expected: {remedy}."
            )
    return [given[name] for name in shapes]


def natural_order(names: Iterable[str]) -> list[str]:
    """`names` with `block_2` before `block_10`, and otherwise in the given order.

    Siblings that differ only in numbers follow the first of them. Pass `sorted(names)` if the given
    order means nothing, such as the order in a file.
    """
    names = list(names)
    nodes: dict[tuple[int, str], int] = {}
    families: dict[tuple[int, str], int] = {}

    def key(name: str) -> list[tuple[int, list[int]]]:
        node, places = 0, []
        for part in re.split(r"[/.]", name):
            family = (node, _NUMBER.sub("#", part))
            numbers = [int(x) for x in _NUMBER.findall(part)]
            places.append((families.setdefault(family, len(families)), numbers))
            node = nodes.setdefault((node, part), len(nodes) + 1)
        return places

    return sorted(names, key=key)


# At most 18 digits at a time, because `int` raises on thousands of digits.
_NUMBER = re.compile(r"[0-9]{1,18}")


def match_pattern(pattern: Pattern, names: Sequence[str], argument: str) -> set[str]:
    """The names that `pattern` matches in full.

    Raises:
        ValueError: the pattern is not a regular expression, or matches no name, because a pattern
            that matches nothing is usually misspelt.
    """
    if not isinstance(pattern, str) and not isinstance(getattr(pattern, "pattern", None), str):
        raise TypeError(
            f"`{argument}` has the pattern {pattern!r}, which is not text: pass a regular "
            "expression, such as `'head/.*'`."
        )
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"`{argument}` has a pattern that is not a regular expression: {pattern!r} ({error})."
        ) from error
    matching = {name for name in names if compiled.fullmatch(name)}
    if not matching and names:
        raise ValueError(
            f"`{argument}` has a pattern that matches no parameter: {compiled.pattern!r}. "
            "Patterns are matched against the whole path, so a prefix needs `.*` after it. "
            f"The closest paths: {closest(compiled.pattern, names)}."
        )
    return matching


def closest(name: str, names: Iterable[str]) -> str:
    """The three of `names` most like `name`, for an error message."""
    similar = difflib.get_close_matches(name, names, n=3, cutoff=0.0)
    return ", ".join(map(repr, similar)) or "none"


def exclude_flags(
    exclude: Exclude | None, names: Sequence[str], leaves: Sequence[Any]
) -> list[bool]:
    """Whether each leaf is excluded.

    Args:
        exclude: a regular expression or a sequence of them, matched in full against the names; or
            a callable `(path, leaf) -> bool`, which may read the leaf's shape and dtype, but not
            its values; or a tree of bools (also arrays of one), where a bool in place of a subtree
            applies to all of the subtree.
        names: one for each leaf.
        leaves: arrays, tracers or `jax.ShapeDtypeStruct`s.
    """
    if exclude is None:
        return [False] * len(names)
    # Before `callable`, because an Equinox module of bools is a tree and often callable too.
    flags = {} if isinstance(exclude, Iterator) else by_name(exclude)
    if flags and all(map(_is_bool, flags.values())):
        return [_flag(flags, name) for name in names]
    patterns = (exclude,) if isinstance(exclude, str | re.Pattern) else exclude
    if callable(patterns):
        answers: list[Any] = [
            patterns(name, leaf) for name, leaf in zip(names, leaves, strict=True)
        ]
        for name, answer in zip(names, answers, strict=True):
            if getattr(answer, "shape", ()) != ():
                raise TypeError(
                    f"`exclude` returned an array of shape {answer.shape} for {name!r}: return one "
                    "bool, such as `'head' in path`."
                )
        return list(map(bool, answers))
    if isinstance(patterns, list | tuple | set | frozenset):
        texts = [x for x in patterns if isinstance(x, str | re.Pattern)]
        if len(texts) == len(patterns):
            matching = set().union(*(match_pattern(x, names, "exclude") for x in texts))
            return [name in matching for name in names]
    raise TypeError(
        "`exclude` must be a regular expression, a sequence of them, a callable "
        f"`(path, leaf) -> bool`, or a tree of bools; got {exclude!r}."
    )


def _is_bool(flag: Any) -> bool:
    """Whether `flag` is a bool, or a concrete array of one."""
    if isinstance(flag, jax.Array | np.ndarray) and not isinstance(flag, Tracer):
        return flag.dtype == np.bool_ and flag.shape == ()
    return isinstance(flag, bool | np.bool_)


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
