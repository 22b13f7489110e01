"""The plain baselines: decay towards the anchor, and the straight line to it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tpgm_jax import _anchor
from tpgm_jax._axes import layout
from tpgm_jax._checks import (
    check_anchor,
    check_fraction,
    check_not_negative,
    check_params,
    check_same_shapes,
    check_trees,
)
from tpgm_jax._names import Exclude, by_name, excluded
from tpgm_jax._placement import on_device
from tpgm_jax._projection import displacement, wide_dtype


class AnchorDecayState(NamedTuple):
    """State of `add_anchor_decay`.

    Attributes:
        step: updates made since `init` or `set_anchor`, int32 of shape `()`.
        anchor: the parameters given to `init`; holes at leaves that are not constrained, and
            everywhere if the anchor comes from elsewhere.
        importance: a factor for each weight, shaped like the parameters; holes at leaves that
            are not constrained, and everywhere if none was given.
    """

    step: jax.typing.ArrayLike
    anchor: optax.Params
    importance: optax.Params


def add_anchor_decay(
    weight: optax.ScalarOrSchedule,
    *,
    importance: optax.Params | None = None,
    exclude: Exclude | None = None,
    anchor: str = "init",
    anchor_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adds a pull towards the anchor: L2-SP, and with importances EWC.

    The anchored `optax.add_decayed_weights`. Writing `W` for a weight, `W0` for its value at
    `init`, `g` for the incoming update and `F` for the weight's importance (1 if none is given),

        g' = g + weight * F * (W - W0)

    The pull is an addition to the *gradient*, of the same sign: what follows in the chain turns
    it round, as it does the gradient. Where it stands in the chain says which method it is.

    Coupled, before the optimizer: the gradient of `weight / 2 * sum F * (W - W0)^2` joins that of
    the loss, as in L2-SP and EWC, and goes through momentum and Adam's scaling.

        optax.chain(add_anchor_decay(1e-2), optax.adam(1e-3))

    Decoupled, between scaling and learning rate: each step moves `W` the fraction
    `learning_rate * weight` of the way to `W0`, as AdamW decays towards 0.

        optax.chain(
            optax.scale_by_adam(), add_anchor_decay(1e-2), optax.scale_by_learning_rate(1e-3))

    Clipping goes before it, as it would clip the pull too.

    Args:
        weight: strength of the pull, 0 or more. Coupled, in units of the loss per squared unit
            of the parameters (and of `importance`); decoupled, in units of
            `1 / learning_rate`. May be a schedule of the step.
        importance: a tree of the parameters' shapes, with a factor of 0 or more for each weight,
            such as the diagonal of the Fisher information at the anchor: the mean over examples
            of the squared gradient of the log likelihood. Found by name; leaves that are excluded
            may be missing. `init` copies it into the state; for the next task's,
            `set_anchor(opt_state, params, importance=fisher)`. It must be laid out over devices
            as the parameters are.
        exclude: leaves whose update passes untouched, such as a new head; as for `ftp`.
        anchor: where `W0` comes from: "init", "argument" or "zero"; as for `ftp`.
        anchor_dtype: dtype of the copy that "init" keeps; as for `ftp`.

    Returns:
        A transformation whose `update` needs `params`. Its state is an `AnchorDecayState`.

    Raises:
        ValueError, TypeError: in the factory for arguments out of range, in `init` for patterns
            that match nothing and importances that do not fit, in `update` for trees that do
            not fit.

    Examples:
        The loss pulls towards 3, with the slope `2 * (W - 3)`, and the anchor is 0. A weight of
        4 meets it at `2 * 3 / (2 + 4)`; with an importance of a quarter, at `2 * 3 / (2 + 1)`:

        >>> import jax.numpy as jnp, optax, tpgm_jax
        >>> pretrained = jnp.zeros(2)
        >>> tx = optax.chain(
        ...     tpgm_jax.add_anchor_decay(4.0, importance=jnp.array([1.0, 0.25])), optax.sgd(0.1))
        >>> params, state = pretrained, tx.init(pretrained)
        >>> for _ in range(100):
        ...     updates, state = tx.update(2 * (params - 3), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> print(params.round(4))
        [1. 2.]

    References:
        Li et al., "Explicit Inductive Bias for Transfer Learning with Convolutional Networks",
        ICML 2018, https://arxiv.org/abs/1802.01483

        Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017,
        https://arxiv.org/abs/1612.00796
    """
    check_not_negative(weight, "weight", schedule=True)
    check_anchor(anchor, anchor_dtype)

    def init_fn(params: optax.Params) -> AnchorDecayState:
        parts = layout(params, exclude)
        factors = _anchor.holes(params)
        if importance is not None:
            remedy = "give a factor for every weight"
            factors = _anchor.matched(importance, params, parts, "`importance`", remedy)
            factors = _anchor.copied(factors, parts)
        held = _anchor.held(params, parts, anchor, anchor_dtype)
        return AnchorDecayState(jnp.zeros([], jnp.int32), held, factors)

    def update_fn(updates, state, params=None, **extra_args):
        params = check_params(params, "add_anchor_decay")
        parts = layout(params, exclude)
        kept = {"anchor": anchor == "init", "importance": importance is not None}
        check_trees(updates, params, state, parts, "add_anchor_decay", **kept)
        whole_w0 = _anchor.used(anchor, state.anchor, extra_args.get("anchor"), params, parts)

        g, w, w0 = (parts.select(tree) for tree in (updates, params, whole_w0))
        pulls = [displacement(*leaf) for leaf in zip(w, w0, strict=True)]
        if importance is not None:
            factors = [on_device(x) for x in parts.select(state.importance)]
            pulls = [f * x for f, x in zip(factors, pulls, strict=True)]
        now = weight(state.step) if callable(weight) else weight
        pulled = [(x + now * pull).astype(x.dtype) for x, pull in zip(g, pulls, strict=True)]
        step = optax.safe_increment(state.step)
        return parts.replace(updates, pulled), AnchorDecayState(
            step, state.anchor, state.importance
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def interpolate(
    anchor: optax.Params,
    params: optax.Params,
    alpha: jax.typing.ArrayLike,
    *,
    exclude: Exclude | None = None,
) -> Any:
    """Parameters on the straight line from the anchor to the fine-tuned ones: WiSE-FT.

    Writing `W` for a fine-tuned weight and `W0` for its anchor,

        W' = (1 - alpha) * W0 + alpha * W

    summed as `W0 + alpha * (W - W0)`, so that a weight that has not moved stays as it is.
    At 0 and 1 the result is the anchor and the fine-tuned parameters, bit for bit. Leaves that
    are no floats (counters, random keys) are those of `params`.

    Args:
        anchor: the pre-trained parameters, of the same leaves as `params`, found by name.
        params: the fine-tuned parameters.
        alpha: how far to go, in [0, 1]; one number, which may be traced. For several at once:
            `jax.vmap(interpolate, in_axes=(None, None, 0))`.
        exclude: leaves that are those of `params`, such as a new head, and that `anchor` need
            not have; as for `ftp`.

    Returns:
        Parameters in the structure and dtypes of `params`.

    Raises:
        ValueError: an alpha outside [0, 1] or of several numbers; trees that differ.
        TypeError: an alpha that is no number.

    Examples:
        >>> import jax, jax.numpy as jnp, tpgm_jax
        >>> anchor, tuned = {"kernel": jnp.zeros(3)}, {"kernel": jnp.array([1.0, 2.0, 4.0])}
        >>> print(tpgm_jax.interpolate(anchor, tuned, 0.5)["kernel"])
        [0.5 1.  2. ]
        >>> several = jax.vmap(tpgm_jax.interpolate, in_axes=(None, None, 0))
        >>> print(several(anchor, tuned, jnp.array([0.0, 0.25, 1.0]))["kernel"])
        [[0.   0.   0.  ]
         [0.25 0.5  1.  ]
         [1.   2.   4.  ]]

    References:
        Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022,
        https://arxiv.org/abs/2109.01903
    """
    check_fraction(alpha, "alpha")
    if jnp.ndim(alpha) > 0:
        raise ValueError(
            f"`alpha` must be one number; got an array of shape {jnp.shape(alpha)}. For several "
            "at once, use `jax.vmap(interpolate, in_axes=(None, None, 0))`."
        )
    tuned, start = by_name(params), by_name(anchor)
    flags = excluded(exclude, list(tuned), list(tuned.values()))
    fixed = {name for name, flag in zip(tuned, flags, strict=True) if flag}

    def shared(tree: dict[str, Any]) -> dict[str, Any]:
        return {name: leaf for name, leaf in tree.items() if name not in fixed}

    check_same_shapes(shared(tuned), shared(start), "anchor", "interpolate")

    def mixed(name: str, w: Any) -> Any:
        if name in fixed or not jnp.issubdtype(jnp.result_type(w), jnp.inexact):
            return w
        w, w0 = jnp.asarray(w), jnp.asarray(start[name])
        dtype = wide_dtype(w)
        a = jnp.asarray(alpha, jnp.finfo(dtype).dtype)
        between = (w0.astype(dtype) + a * displacement(w, w0)).astype(w.dtype)
        # Selected, as 0 times infinity is NaN, and minus 0 plus 0 is 0.
        return jnp.where(a == 0, w0.astype(w.dtype), jnp.where(a == 1, w, between))

    leaves = [mixed(*item) for item in tuned.items()]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)
