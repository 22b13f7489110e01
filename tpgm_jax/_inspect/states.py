"""Finds and checks the states of this library inside a user's optimizer state."""

from __future__ import annotations  # so that `help` shows names, and not what they expand to

from typing import Any

import jax
import numpy as np
import optax

from tpgm_jax._core.anchor import check_numbers
from tpgm_jax._core.names import by_name, is_nothing, leaves, match_by_name
from tpgm_jax._core.spec import check_fingerprint


def check_state(opt_state: optax.OptState, params: optax.Params) -> None:
    """Checks that a restored optimizer state was made with the options of this one.

    A checkpoint holds arrays. Restored into the structure of `tx.init(params)`, they fit whenever
    their shapes do. If `tx` now has another `norm`, `unit`, `exclude` or `axes`, they mean
    something else. Call this once after restoring. `radii`, `report`, `set_anchor` and an `update`
    outside `jax.jit` make the same check; a jitted step cannot.

    Args:
        opt_state: the restored state, with one of this library's states somewhere in it.
        params: the parameters that belong to it; only names and shapes matter.

    Raises:
        ValueError: `opt_state` holds no state of this library; it was made with other options,
            which the message names; it belongs to another model, or to several models at once;
            there is NaN in an anchor or in the radii.

    Examples:
        >>> import jax, jax.numpy as jnp, optax, tpgm_jax
        >>> params = {"kernel": jnp.ones((3, 2))}
        >>> saved = jax.tree.leaves(tpgm_jax.ftp(optax.sgd(0.1), norm="l2").init(params))
        >>> fresh = tpgm_jax.ftp(optax.sgd(0.1)).init(params)
        >>> restored = jax.tree.unflatten(jax.tree.structure(fresh), saved)
        >>> tpgm_jax.check_state(restored, params)
        Traceback (most recent call last):
        ...
        ValueError: `check_state` got a state whose arrays come from a checkpoint made with other \
options (`norm` was 'l2'). Build the transformation with the options of the checkpoint, and \
restore again.
    """
    for state in checked_states(opt_state, params, "check_state"):
        for name, leaf in by_name((state.anchor, getattr(state, "radii", ()))).items():
            if not is_nothing(leaf):
                kind, _, rest = name.partition("/")
                what = f"anchor of {rest!r}" if kind == "0" else "radii"
                check_numbers(leaf, f"`check_state` got a state that has the {what}")


def checked_states(opt_state: optax.OptState, params: optax.Params, caller: str) -> list[Any]:
    """Our states in `opt_state`, checked against `params`."""
    states = our_states(opt_state, caller)
    for state in states:
        check_fingerprint(state, caller)
        (step,) = jax.tree.leaves(state.step)
        if np.ndim(step) != 0:
            raise ValueError(
                f"`opt_state` has steps of shape {np.shape(step)}, because it holds several models "
                "at once: pick one, `jax.tree.map(lambda x: x[i], opt_state)`."
            )
        shapes = {tensor.name: tensor.shape for tensor in state.spec.layout.tensors}
        match_by_name(shapes, params, "`params`", "pass a tree of the model that `init` saw")
    return states


def our_states(opt_state: optax.OptState, caller: str) -> list[Any]:
    """Our states in `opt_state`.

    Raises:
        ValueError: there are none, or one lacks its layout.
    """
    nodes = [node for node in jax.tree.leaves(opt_state, is_leaf=is_ours) if is_ours(node)]
    if not nodes:
        raise ValueError(
            f"`{caller}` found no state of this library in `opt_state`: pass what `init` or "
            "`update` of the whole optimizer returned."
        )
    for node in nodes:
        if leaves(node.anchor) and not node.spec.layout.leaves:
            raise ValueError(
                f"`{caller}` got a state without its layout, because `optax.tree.map_params` made "
                "it: pass the state from before, or from after the next `update`."
            )
    return nodes


def is_ours(node: Any) -> bool:
    """Whether `node` is a state of this library: they all have these two fields."""
    return {"spec", "fingerprint"} <= set(getattr(node, "_fields", ()))
