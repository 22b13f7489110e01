"""Edits states: other anchors, other memory."""

from __future__ import annotations  # so that `help` shows names, and not what they expand to

from typing import Any

import jax
import jax.numpy as jnp
import optax

from tpgm_jax._core.anchor import (
    check_importance,
    check_numbers,
    match_leaves,
    replace_stored,
)
from tpgm_jax._core.displacement import anchor_norms
from tpgm_jax._core.names import Nothing, is_nothing
from tpgm_jax._core.placement import copy_like, to_device, to_host, to_memory_of
from tpgm_jax._core.spec import check_fingerprint
from tpgm_jax._core.unit import unit_sizes
from tpgm_jax._inspect.states import is_ours, our_states


def set_anchor(
    opt_state: optax.OptState,
    params: optax.Params,
    *,
    reset: bool = True,
    importance: optax.Params | None = None,
) -> optax.OptState:
    """Replaces the anchor of the optimizer.

    For a checkpoint that is loaded after `init`, and for the next task of a continual run.
    If several transformations act on parts of the model, all of them get the new anchor.

    Args:
        opt_state: any state with one of this library's states somewhere in it.
        params: the new anchor, which is copied; the parameters of the whole model. Excluded leaves
            may be missing.
        reset: learn the radii anew. Step, radii, their optimizer and the displacement
            start afresh, as after `init`; the base optimizer's state stays. Without it, only
            the anchor and its size change.
        importance: new importances for `add_anchor_decay`, which are copied. By default it keeps
            its old ones.

    Returns:
        The state with the new anchor.

    Raises:
        ValueError: there is no state of this library in `opt_state`; its arrays come from a
            checkpoint made with other options; a constrained leaf is missing from `params` or
            `importance`, has another shape, or has NaN in it; importances are infinite or negative,
            or there are none to replace.
        TypeError: numbers are complex.

    Examples:
        >>> import jax.numpy as jnp, optax, tpgm_jax
        >>> tx = optax.chain(optax.clip(1.0), tpgm_jax.ftp(optax.adam(1e-3)))
        >>> opt_state = tx.init({"kernel": jnp.zeros((3, 2))})
        >>> checkpoint = {"kernel": jnp.ones((3, 2))}
        >>> opt_state = tpgm_jax.set_anchor(opt_state, checkpoint)
    """
    if not isinstance(reset, bool):
        raise TypeError(f"`reset` must be True or False; got {reset!r}.")
    states = our_states(opt_state, "set_anchor")
    for state in states:
        check_fingerprint(state, "set_anchor")
    if importance is not None and not any(map(_has_importance, states)):
        raise ValueError(
            "`set_anchor` got `importance`, but `opt_state` holds none to replace: build "
            "`add_anchor_decay` with the importances of the first task, or with ones."
        )

    def replace(state: Any) -> Any:
        if not is_ours(state):
            return state
        layout, changes = state.spec.layout, {}
        changes["anchor"] = replace_stored(state.anchor, params, layout, "`params`", check_numbers)
        if importance is not None and _has_importance(state):
            changes["importance"] = replace_stored(
                state.importance, importance, layout, "`importance`", check_importance
            )
        if not is_nothing(getattr(state, "unit_size", Nothing())):
            measured = _new_anchor_leaves(state, changes["anchor"], params)
            dtype = jnp.result_type(*jax.tree.leaves(state.unit_size))
            changes["unit_size"] = _copy(unit_sizes(measured, state.spec, dtype), state.unit_size)
        if jax.tree.leaves(getattr(state, "anchor_norms", ())):
            new = anchor_norms(state.spec, _new_anchor_leaves(state, changes["anchor"], params))
            changes["anchor_norms"] = _copy(new, state.anchor_norms)
        if reset:
            # At step 0 the next update starts the radii and their optimizer anew.
            names = ("step", "radii", "row_norms", "displacement")
            fields = [x for x in names if hasattr(state, x)]
            changes |= {x: jax.tree.map(_zeros, getattr(state, x)) for x in fields}
        return state._replace(**changes)

    return jax.tree.map(replace, opt_state, is_leaf=is_ours)


def offload(opt_state: optax.OptState) -> optax.OptState:
    """Moves anchors, displacements and importances to the host's memory, `pinned_host`.

    Each `update` then copies them to the device where it uses them, and copies the new
    displacement back, so that devices hold them only during a step. The numbers are the same; the
    steps take longer by the transfers. The base optimizer's state stays where it is. On CPU this
    needs jax 0.10 or newer.

    Args:
        opt_state: any state with one of this library's states somewhere in it. Works inside
            `jax.jit`: `jax.jit(lambda params: offload(tx.init(params)))`.

    Returns:
        The state, with those arrays in host memory and with the same sharding.

    Raises:
        ValueError: there is no state of this library in `opt_state`.

    Examples:
        >>> import jax.numpy as jnp, optax, tpgm_jax
        >>> tx = tpgm_jax.ftp(optax.adam(1e-3))
        >>> opt_state = tpgm_jax.offload(tx.init({"kernel": jnp.zeros((3, 2))}))
        >>> opt_state.anchor["kernel"].sharding.memory_kind
        'pinned_host'
    """
    our_states(opt_state, "offload")

    def move(state: Any) -> Any:
        if not is_ours(state):
            return state
        fields = [x for x in ("anchor", "displacement", "importance") if hasattr(state, x)]
        return state._replace(**{x: jax.tree.map(to_host, getattr(state, x)) for x in fields})

    return jax.tree.map(move, opt_state, is_leaf=is_ours)


def _has_importance(state: Any) -> bool:
    return bool(jax.tree.leaves(getattr(state, "importance", None)))


def _new_anchor_leaves(state: Any, stored: optax.Params, params: optax.Params) -> list[Any]:
    """The constrained leaves of the new anchor: of the copy in the state, or of `params`."""
    layout = state.spec.layout
    if state.spec.anchor_source == "init":
        return [to_device(x) for x in layout.constrained(stored)]
    return match_leaves(params, layout, "`params`")


def _copy(new: Any, old: Any) -> Any:
    """The arrays `new` in the containers of `old`. NNX, for one, puts each array in a variable."""
    arrays, treedef = jax.tree.flatten(old)
    return treedef.unflatten(map(copy_like, arrays, jax.tree.leaves(new)))


def _zeros(array: Any) -> jax.Array:
    # JAX cannot make zeros in host memory: make them on the device, and copy.
    return to_memory_of(array, jnp.zeros_like(to_device(array)))
