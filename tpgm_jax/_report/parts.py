"""What a report measures of each state: its tensors, their rows and layers, their anchor.

States tell names, radii, how many layers a tensor stacks, and as a rule the anchor. They do not
tell the norm and the axes, which are arguments of the transformation.
"""

import math
import re
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpgm_jax._axes import Axes, AxesSpec, layout
from tpgm_jax._ball import AnchorState
from tpgm_jax._checks import check_choice
from tpgm_jax._ftp import FTPState
from tpgm_jax._names import Nothing, by_name, is_nothing, leaves, matches
from tpgm_jax._report.distances import Arrays, Part
from tpgm_jax._state import LEARNED, known_names


def parts_of(
    states: list[Any],
    known: Mapping[str, Any],
    norm: str | None,
    axes: AxesSpec | None,
    anchor: Any,
) -> list[tuple[Part, Arrays]]:
    """One part for each of our `states`; where several act on a tensor, the last counts.

    Args:
        states: some of ours.
        known: the parameters by name.
        norm: as for `report`.
        axes: likewise.
        anchor: likewise.

    Raises:
        ValueError: as `report` does.
    """
    if anchor is not None and not any(map(_keeps_no_anchor, states)):
        raise ValueError(
            "`report` was handed an `anchor`, but `opt_state` holds its own and this one would not "
            "be looked at: leave it out, or move the state's with `tpgm_jax.set_anchor`."
        )
    states = sorted(states, key=lambda state: isinstance(state, LEARNED))
    names = [known_names(state, known) for state in states]
    if isinstance(axes, Mapping):
        for pattern in axes:
            matches(pattern, [name for some in names for name in some], "axes")
    parts = []
    for state, its_names in zip(states, names, strict=True):
        shown = {name: known[name] for name in its_names}
        parts.append(_part(state, shown, norm, _relevant(axes, shown), _source(state, anchor)))
    return parts


def _part(
    state: Any,
    shown: dict[str, Any],
    norm: str | None,
    axes: AxesSpec | None,
    anchor: Mapping[str, Any] | None,
) -> tuple[Part, Arrays]:
    """
    Args:
        state: one of ours.
        shown: the parameters that it was shown, by name, in its order.
        norm: or `None` for its own.
        axes: of `shown`.
        anchor: by name; `None` for zeros.
    """
    counts, learned = _counts(state, shown, anchor), isinstance(state, LEARNED)
    # The structure too, in which boxes of Flax hide from the names.
    structure = jax.tree.structure(state.anchor, is_leaf=is_nothing)
    params = jax.tree.unflatten(structure, shown.values())
    found = layout(params, lambda name, _: counts[name] < 0, axes or _told_by_sizes(counts))
    for (name, expected), received in zip(counts.items(), found.layers, strict=True):
        if learned and received != expected:
            raise ValueError(
                f"`axes` make {max(received, 1)} groups of {name!r}, and `opt_state` has "
                f"{max(expected, 1)}: pass the `axes` that the transformation was built with."
            )
    w0s = dict.fromkeys(shown) if anchor is None else anchor
    for tensor in found.tensors:
        w0 = w0s.get(tensor.name, Nothing())
        if w0 is None:
            continue
        if is_nothing(w0) or jnp.shape(w0) != tensor.shape:
            has = "none" if is_nothing(w0) else f"shape {jnp.shape(w0)}"
            raise ValueError(
                f"`params` has {tensor.name!r} of shape {tensor.shape}, but its anchor has {has}: "
                "pass parameters and anchor of the model that `init` saw."
            )
    # `spd` and `add_anchor_decay` measure tensors as a whole.
    usual = "mars" if isinstance(state, (*LEARNED, AnchorState)) else "l2"
    compact = isinstance(state, FTPState) and not jax.tree.leaves(state.displacement)
    names = [tensor.name for tensor in found.tensors]
    return Part(found, norm or usual, learned, compact), Arrays(
        # Through `leaves`, as `nnx.Optimizer` wraps each array of a state in a variable.
        radii=jax.tree.leaves(state.radii)[0] if isinstance(state, LEARNED) else None,
        params=[shown[name] for name in names],
        anchor=[w0s[name] for name in names],
    )


def _relevant(axes: AxesSpec | None, names: Mapping[str, Any]) -> AxesSpec | None:
    """The patterns that match some of `names`: each state was told of its own part."""
    if not isinstance(axes, Mapping):
        return axes
    return {x: y for x, y in axes.items() if any(re.fullmatch(x, name) for name in names)} or None


def _keeps_no_anchor(state: Any) -> bool:
    return bool(leaves(state.anchor)) and not jax.tree.leaves(state.anchor)


def _source(state: Any, anchor: Any) -> Mapping[str, Any] | None:
    """The anchor by name; `None` for zeros."""
    if not _keeps_no_anchor(state):
        return by_name(state.anchor)
    if anchor is None:
        raise ValueError(
            "`opt_state` keeps no anchor, so `report` needs one: pass `anchor=pretrained` if the "
            "transformation was built with `anchor='argument'`, `anchor='zero'` if with that."
        )
    if isinstance(anchor, str):
        check_choice(anchor, ("zero",), "anchor")
        return None
    return by_name(anchor)


def _counts(
    state: Any, shown: Mapping[str, Any], anchor: Mapping[str, Any] | None
) -> dict[str, int]:
    """For each leaf how many layers it stacks; 0: it is not stacked; -1: not constrained.

    Only states with radii tell. Others leave holes for what they do not constrain; where that is
    everything, whatever has an anchor counts.
    """
    if isinstance(state, LEARNED):
        (layers,) = jax.tree.leaves(state.layers)
        return dict(zip(shown, np.asarray(layers).tolist(), strict=True))
    dtypes = {name: jnp.result_type(leaf) for name, leaf in shown.items()}
    floating = {name for name, dtype in dtypes.items() if jnp.issubdtype(dtype, jnp.floating)}
    if anchor is not None:
        floating -= {x for x in shown if is_nothing(anchor.get(x, Nothing()))}
    return {name: 0 if name in floating else -1 for name in shown}


def _told_by_sizes(counts: Mapping[str, int]) -> AxesSpec | None:
    if max(counts.values(), default=0) <= 0:
        return None
    return lambda name, leaf: Axes(layers=_stacked_axes(name, jnp.shape(leaf), counts[name]))


def _stacked_axes(name: str, shape: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The axes whose sizes multiply to `count`, if only some do."""
    if count <= 0:
        return ()
    if count == 1:  # any axis of one layer will do
        return (shape.index(1),)
    long = [axis for axis, size in enumerate(shape) if size > 1]
    subsets = [x for n in range(1, len(long) + 1) for x in combinations(long, n)]
    found = [x for x in subsets if math.prod(shape[axis] for axis in x) == count]
    if len(found) != 1:
        raise ValueError(
            f"{name!r} of shape {shape} stacks {count} layers, and `opt_state` does not tell along "
            f"which of the axes {found}: pass the `axes` that the transformation was built with."
        )
    return found[0]
