"""Reads the learned radii of a state."""

from __future__ import annotations  # so that `help` shows names, and not what they expand to

from typing import Any

import jax
import optax

from tpgm_jax._core.radii import radii_by_name
from tpgm_jax._inspect.states import checked_states


def radii(opt_state: optax.OptState, params: optax.Params) -> dict[str, Any]:
    """The learned radius of every constrained tensor, by name.

    For logging, outside `jax.jit`. If several transformations act on parts of the model
    (`optax.partition`), their radii are merged.

    Args:
        opt_state: any state with an `FTPState` or a `TPGMState` somewhere in it.
        params: the model's parameters; only names and shapes matter.

    Returns:
        Path to radius, in units of the transformation's norm, as Python floats; a list,
        one for each layer, if a tensor stacks layers. Zero before the first update.

    Raises:
        ValueError: there is no state with radii in `opt_state`; it belongs to another model, or to
            several models at once; its arrays come from a checkpoint made with other options.

    Examples:
        >>> import jax.numpy as jnp, optax, tpgm_jax
        >>> params = {"head": {"kernel": jnp.ones((3, 2))}, "bias": jnp.ones(2)}
        >>> tx = tpgm_jax.ftp(optax.adam(1e-3), exclude="head/.*")
        >>> grads = params
        >>> _, opt_state = tx.update(grads, tx.init(params), params)
        >>> tpgm_jax.radii(opt_state, params)
        {'bias': 9.99999993922529e-09}
    """
    states = [x for x in checked_states(opt_state, params, "radii") if hasattr(x, "radii")]
    if not states:
        raise ValueError(
            "`opt_state` holds no state of `ftp` or `tpgm`, so there are no learned radii in "
            "it: pass what `init` or `update` of the whole optimizer returned."
        )
    merged: dict[str, Any] = {}
    for state in states:
        # Through `leaves`, because `nnx.Optimizer` wraps each array of a state in a variable.
        (values,) = jax.tree.leaves(state.radii)
        merged |= radii_by_name(values, state.spec.layout)
    return merged
