"""SPD: weight decay towards the anchor, only where it helps and only as far as it went.

A step that moves a tensor away from its anchor although the gradient points back there goes
against what training wants at the moment: part of what it adds to the distance is taken back.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from tpgm_jax import _anchor, _radii
from tpgm_jax._axes import AxesSpec, layout
from tpgm_jax._checks import (
    check_anchor,
    check_not_negative,
    check_params,
    check_trees,
    with_extra_args,
)
from tpgm_jax._guard import all_finite, finite_or_zero, where
from tpgm_jax._names import Exclude
from tpgm_jax._projection import displacement, inner_products, norms, scaled_update


class SPDState(NamedTuple):
    """State of `spd`.

    Attributes:
        step: updates made since `init` or `set_anchor`, int32 of shape `()`.
        base_state: state of the wrapped optimizer.
        anchor: the parameters given to `init`; holes at leaves that are not constrained, and
            everywhere if the anchor comes from elsewhere.
        skipped: updates that were not made, as the gradient was not finite, int32 of shape `()`.
    """

    step: jax.typing.ArrayLike
    base_state: optax.OptState
    anchor: optax.Params
    skipped: jax.typing.ArrayLike


def spd(
    base_optimizer: optax.GradientTransformation,
    *,
    strength: optax.ScalarOrSchedule = 1.0,
    exclude: Exclude | None = None,
    axes: AxesSpec | None = None,
    anchor: str = "init",
    anchor_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer to take back steps away from the anchor that the gradient opposes.

    Selective Projection Decay. Writing `W` for a tensor, `W0` for its value at `init`, `g` for
    the gradient, `u` for the base optimizer's update and `|.|` for the l2 norm of the tensor, or
    of one layer where the tensor stacks layers,

        d = W - W0,    c = W + u - W0
        q  = clip((|c| - |d|) / |c|, 0, 1)  if <g, d> > 0,  else 0
        W' = W0 + (1 - strength * q) * c

    With `<g, d> > 0` the loss falls towards the anchor. If the step leads further away all
    the same, a strength of 1 ends it at the distance where it began. All other steps, the
    first one among them if it starts at the anchor, are the base optimizer's. Nothing is learned,
    and each step needs one inner product and two norms of each tensor.

    A small step of plain gradient descent goes the way of `-g`, and so towards the anchor
    whenever `<g, d> > 0`: `spd` hardly ever acts then. It needs a base optimizer with
    momentum, or one that scales each weight, such as Adam.

    `spd` wraps the base optimizer, since it needs `g` as it was before momentum, decay and
    learning rate. What changes the gradient goes before it in a chain, and nothing may
    follow it, which would move `W'` again:

        optax.chain(optax.clip_by_global_norm(1.0), spd(optax.adamw(1e-4)))

    A step whose gradient is not finite, in whatever tensor, is skipped: constrained parameters
    stay as they were, `skipped` in the state counts one more, and the base optimizer is handed
    zeros. Numbers that are not finite in the base optimizer's own update count as 0.

    Args:
        base_optimizer: any optax transformation; it is handed the raw gradient and all
            extra arguments.
        strength: how much of the added distance is taken back, 0 or more; without a unit, and
            not multiplied by the learning rate. 0 leaves the base optimizer alone, 1 projects
            onto the previous distance, and beyond 1 a step may even end on the other side of the
            anchor. May be a schedule of the step.
        exclude: leaves that get the base optimizer's update untouched; as for `ftp`.
        axes: which axes index stacked layers; as for `ftp`. Rows make no difference here.
        anchor: where `W0` comes from: "init", "argument" or "zero"; as for `ftp`.
        anchor_dtype: dtype of the copy that "init" keeps; as for `ftp`.

    Returns:
        A transformation whose `update` needs `params`. Its state is an `SPDState`.

    Raises:
        ValueError, TypeError: in the factory for arguments out of range, in `init` for
            patterns that match nothing, in `update` for trees that do not fit.

    Examples:
        The first gradient leads away from the anchor. At the second step momentum would go on,
        to 0.29, where the gradient already points back:

        >>> import jax.numpy as jnp, optax, tpgm_jax
        >>> params = {"kernel": jnp.zeros((1, 2))}
        >>> tx = tpgm_jax.spd(optax.sgd(0.1, momentum=1.0))
        >>> state = tx.init(params)
        >>> for slope in (-1.5, 0.1):
        ...     grads = {"kernel": jnp.full((1, 2), slope)}
        ...     updates, state = tx.update(grads, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> print(params["kernel"])
        [[0.15 0.15]]

    References:
        Tian et al., "Rethinking Weight Decay for Robust Fine-Tuning of Foundation Models",
        NeurIPS 2024, https://arxiv.org/abs/2411.01713
    """
    base = with_extra_args(base_optimizer, "base_optimizer")
    check_not_negative(strength, "strength", schedule=True)
    check_anchor(anchor, anchor_dtype)

    def init_fn(params: optax.Params) -> SPDState:
        return SPDState(
            step=jnp.zeros([], jnp.int32),
            base_state=base.init(params),
            anchor=_anchor.held(params, layout(params, exclude, axes), anchor, anchor_dtype),
            skipped=jnp.zeros([], jnp.int32),
        )

    def update_fn(updates, state, params=None, **extra_args):
        params = check_params(params, "spd")
        parts = layout(params, exclude, axes)
        check_trees(updates, params, state, parts, "spd", anchor=anchor == "init")
        whole_w0 = _anchor.used(anchor, state.anchor, extra_args.get("anchor"), params, parts)

        g, w, w0 = (parts.select(tree) for tree in (updates, params, whole_w0))
        d = [displacement(*leaf) for leaf in zip(w, w0, strict=True)]
        before = [norms(*leaf, "l2") for leaf in zip(d, parts.tensors, strict=True)]
        slopes = [inner_products(*leaf, "l2") for leaf in zip(g, d, parts.tensors, strict=True)]
        # A product with NaN or infinity is never finite, so that the gradients that are in
        # `slopes` need no pass of their own.
        stage = _radii.gather(slopes, parts, _radii.radii_dtype(params, parts))
        finite = all_finite([stage, *parts.leave(updates)])

        base_updates, base_state = base.update(
            where(finite, updates, 0.0), state.base_state, params, **extra_args
        )
        u = finite_or_zero(finite, parts.select(base_updates))
        c = [x + y.astype(x.dtype) for x, y in zip(d, u, strict=True)]
        after = [norms(*leaf, "l2") for leaf in zip(c, parts.tensors, strict=True)]
        now = strength(state.step) if callable(strength) else strength
        leaves = zip(slopes, before, after, strict=True)
        ratios = [remaining(*leaf, now) for leaf in leaves]

        projected = [scaled_update(*leaf) for leaf in zip(w, w0, c, ratios, strict=True)]
        projected = where(finite, projected, 0.0)
        return parts.replace(base_updates, projected), SPDState(
            step=jnp.where(finite, optax.safe_increment(state.step), state.step),
            base_state=base_state,
            anchor=state.anchor,
            skipped=jnp.where(finite, state.skipped, optax.safe_increment(state.skipped)),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def remaining(
    slope: jax.Array, before: jax.Array, after: jax.Array, strength: jax.typing.ArrayLike
) -> jax.Array:
    """`1 - strength * q` of each group, and 1 where the step is the base optimizer's.

    Args:
        slope: `<g, d>`.
        before: `|d|`.
        after: `|c|`.
        strength: how much of `q` counts.
    """
    acts = (slope > 0) & (after > before)
    # `1 - q`, which to take from `q` would cancel where the candidate lies far out. Nothing is
    # divided by 0: a step that acts leads further away than some distance.
    kept = before / jnp.where(acts, after, 1.0)
    strength = jnp.asarray(strength, after.dtype)
    return jnp.where(acts, (1 - strength) + strength * kept, 1.0)
