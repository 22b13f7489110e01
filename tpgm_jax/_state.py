"""Reading and changing our states inside a user's optimizer state."""

from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tpgm_jax import _anchor
from tpgm_jax._ball import AnchorState
from tpgm_jax._baselines import AnchorDecayState
from tpgm_jax._ftp import FTPState
from tpgm_jax._names import closest, leaf_names
from tpgm_jax._placement import beside, on_device, on_host
from tpgm_jax._spd import SPDState
from tpgm_jax._tpgm import TPGMState

LEARNED = (FTPState, TPGMState)
LARGE = ("anchor", "displacement", "importance")
OURS = (*LEARNED, AnchorState, SPDState, AnchorDecayState)


def radii(opt_state: optax.OptState, params: optax.Params) -> dict[str, Any]:
    """The learned radius of every constrained tensor, by name.

    For logging, outside `jax.jit`. Where several transformations of ours act on parts of
    the model (`optax.partition`), their radii are merged.

    Args:
        opt_state: any state with an `FTPState` or a `TPGMState` somewhere in it.
        params: the model's parameters; their numbers do not matter.

    Returns:
        Path to radius, in units of the transformation's norm, as Python floats; a list,
        one for each layer, where a tensor stacks layers. Zero before the first update.

    Raises:
        ValueError: there is no state with radii in `opt_state`, or it is of another model,
            or of several models at once.

    Examples:
        >>> import jax.numpy as jnp, optax, tpgm_jax
        >>> params = {"head": {"kernel": jnp.ones((3, 2))}, "bias": jnp.ones(2)}
        >>> tx = tpgm_jax.ftp(optax.adam(1e-3), exclude="head/.*")
        >>> grads = params
        >>> _, opt_state = tx.update(grads, tx.init(params), params)
        >>> tpgm_jax.radii(opt_state, params)
        {'bias': 9.99999993922529e-09}
    """
    known = leaf_names(params)
    merged: dict[str, Any] = {}
    states = [state for state in ours(opt_state) if isinstance(state, LEARNED)]
    if not states:
        raise ValueError(
            "`opt_state` holds no state of `ftp` or `tpgm`, so there are no learned radii in "
            "it: pass what `init` or `update` of the whole optimizer returned."
        )
    for state in states:
        names = known_names(state, known)
        # Through `leaves`, as `nnx.Optimizer` wraps each array of a state in a variable.
        (values,), (layers,) = jax.tree.leaves(state.radii), jax.tree.leaves(state.layers)
        pairs = [(x, int(n)) for x, n in zip(names, np.asarray(layers), strict=True) if n >= 0]
        merged |= named([x for x, _ in pairs], [n for _, n in pairs], values)
    return merged


def known_names(state: Any, known: Collection[str]) -> list[str]:
    """The leaves that one of our states is about, if it is of one model, and of that one."""
    (step,) = jax.tree.leaves(state.step)
    if np.ndim(step) != 0:
        raise ValueError(
            f"`opt_state` holds steps of shape {np.shape(step)}, for several models at once: "
            "pick one, `jax.tree.map(lambda x: x[i], opt_state)`."
        )
    names = leaf_names(state.anchor)
    for name in names:
        if name not in known:
            raise ValueError(
                f"`params` lacks {name!r}, which `opt_state` constrains; the closest it has: "
                f"{closest(name, known) or 'none'}. Pass the parameters that `init` saw."
            )
    return names


def named(names: Sequence[str], layers: Sequence[int], values: Any) -> dict[str, Any]:
    """A vector of radii by name: a float, or a list where `layers` is not 0."""
    numbers, found, start = np.asarray(values).tolist(), {}, 0
    for name, count in zip(names, layers, strict=True):
        stop = start + max(count, 1)
        found[name] = numbers[start:stop] if count else numbers[start]
        start = stop
    return found


def set_anchor(
    opt_state: optax.OptState,
    params: optax.Params,
    *,
    reset: bool = True,
    importance: optax.Params | None = None,
) -> optax.OptState:
    """Anchors the optimizer at other parameters.

    For a checkpoint that is loaded after `init`, and for the next task of a continual run.
    Where several transformations of ours act on parts of the model, all of them move.

    Args:
        opt_state: any state with one of ours somewhere in it.
        params: the new anchor, which is copied; the parameters of the whole model.
        reset: learn the radii anew. Step, radii, their optimizer and the displacement
            start afresh, as after `init`; the base optimizer's state stays. Without it only
            the anchor moves.
        importance: new importances for `add_anchor_decay`, such as those of the task that has
            just been learned, which are copied. By default it keeps its old ones.

    Returns:
        The state with its anchors exchanged.

    Raises:
        ValueError: there is no state of ours in `opt_state`; a leaf of the old anchor is
            missing from `params`, or has another shape; likewise for `importance`, or there are
            none to exchange.

    Examples:
        >>> import jax.numpy as jnp, optax, tpgm_jax
        >>> tx = optax.chain(optax.clip(1.0), tpgm_jax.ftp(optax.adam(1e-3)))
        >>> opt_state = tx.init({"kernel": jnp.zeros((3, 2))})
        >>> checkpoint = {"kernel": jnp.ones((3, 2))}
        >>> opt_state = tpgm_jax.set_anchor(opt_state, checkpoint)
    """
    _check_any_of_ours(opt_state)
    if importance is not None and not any(map(_weighs, ours(opt_state))):
        raise ValueError(
            "`set_anchor` was handed `importance`, but `opt_state` holds none to exchange: build "
            "`add_anchor_decay` with those of the first task, or with ones."
        )

    def replace(node):
        if not _is_ours(node):
            return node
        changes = {"anchor": _anchor.moved(node.anchor, params)}
        if importance is not None and _weighs(node):
            changes["importance"] = _anchor.moved(node.importance, importance, "importance")
        if reset:
            # At step 0 the next update starts the radii and their optimizer by itself.
            zeroed = [x for x in ("step", "radii", "displacement") if x in node._fields]
            changes |= {x: jax.tree.map(_zeros, getattr(node, x)) for x in zeroed}
        return node._replace(**changes)

    return jax.tree.map(replace, opt_state, is_leaf=_is_ours)


def offload(opt_state: optax.OptState) -> optax.OptState:
    """Moves anchors, displacements and importances to the host's memory, `pinned_host`.

    Each `update` then moves them in where it uses them, and the new displacement back, so
    that devices hold them during a step alone. The numbers are the same; the steps take
    longer by the transfers. What the base optimizer keeps stays where it is.

    Args:
        opt_state: any state with one of ours somewhere in it. It may be used inside
            `jax.jit`: `jax.jit(lambda params: offload(tx.init(params)))`.

    Returns:
        The state, with those arrays elsewhere. Layout over devices stays as it is.

    Raises:
        ValueError: there is no state of ours in `opt_state`.

    Examples:
        >>> import jax.numpy as jnp, optax, tpgm_jax
        >>> tx = tpgm_jax.ftp(optax.adam(1e-3))
        >>> opt_state = tpgm_jax.offload(tx.init({"kernel": jnp.zeros((3, 2))}))
        >>> opt_state.anchor["kernel"].sharding.memory_kind
        'pinned_host'
    """
    _check_any_of_ours(opt_state)

    def moved(node):
        if not _is_ours(node):
            return node
        fields = [x for x in LARGE if x in node._fields]
        return node._replace(**{x: jax.tree.map(on_host, getattr(node, x)) for x in fields})

    return jax.tree.map(moved, opt_state, is_leaf=_is_ours)


def _weighs(node: Any) -> bool:
    """Whether it is a state with importances; holes are no leaves."""
    return isinstance(node, AnchorDecayState) and bool(jax.tree.leaves(node.importance))


def _zeros(array: Any) -> jax.Array:
    # By way of the device, as JAX makes no zeros on the host.
    return beside(jnp.zeros_like(on_device(array)), array)


def _check_any_of_ours(opt_state: optax.OptState) -> None:
    if not ours(opt_state):
        raise ValueError(
            "`opt_state` holds no state of this library, so there is no anchor in it: pass "
            "what `init` or `update` of the whole optimizer returned."
        )


def _is_ours(node: Any) -> bool:
    return isinstance(node, OURS)


def ours(opt_state: optax.OptState) -> list[Any]:
    """Our states in a user's."""
    return [node for node in jax.tree.leaves(opt_state, is_leaf=_is_ours) if _is_ours(node)]
