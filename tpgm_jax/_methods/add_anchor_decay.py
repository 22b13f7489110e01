"""L2-SP and EWC: decay towards the anchor."""

from __future__ import annotations  # so that `help` shows names, and not what they expand to

from typing import Any, NamedTuple

import jax
import optax

from tpgm_jax._core.anchor import check_importance, copy_tree, empty_like, match_leaves
from tpgm_jax._core.ball import wide_dtype
from tpgm_jax._core.checks import check_not_negative, number_at
from tpgm_jax._core.placement import to_device
from tpgm_jax._core.problem import initial_fields, make_problem
from tpgm_jax._core.spec import AnchorSource, Exclude, Options


class AnchorDecayState(NamedTuple):
    """State of `add_anchor_decay`.

    Attributes:
        step, anchor, spec, fingerprint: as in `FTPState`.
        importance: a factor for each weight, shaped like the parameters; placeholders for leaves
            that are not constrained, and for all leaves if none was given.
    """

    step: jax.typing.ArrayLike
    anchor: optax.Params
    importance: optax.Params
    spec: Any
    fingerprint: jax.Array


def add_anchor_decay(
    weight: optax.ScalarOrSchedule,
    *,
    importance: optax.Params | None = None,
    exclude: Exclude | None = None,
    anchor: AnchorSource = "init",
    anchor_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adds a pull towards the anchor: L2-SP, and with importances EWC.

    The anchored `optax.add_decayed_weights`. Writing `W` for a weight, `W0` for its value at
    `init`, `g` for the incoming update and `F` for the weight's importance (1 if none is given),

        g' = g + weight * F * (W - W0)

    The pull is added to the *gradient*, with the same sign, and the transformations that follow
    in the chain reverse it as they reverse the gradient. Its place in the chain decides the method.

    Coupled, before the optimizer, as in L2-SP and EWC: the gradient of
    `weight / 2 * sum F * (W - W0)^2` is added to the gradient of the loss, and goes through
    momentum and Adam's scaling.

        optax.chain(add_anchor_decay(1e-2), optax.adam(1e-3))

    Decoupled, between scaling and learning rate: each step moves `W` the fraction
    `learning_rate * weight` of the way to `W0`, as AdamW decays towards 0.

        optax.chain(
            optax.scale_by_adam(), add_anchor_decay(1e-2), optax.scale_by_learning_rate(1e-3))

    Clipping goes before it; after it, clipping would clip the pull too.

    Args:
        weight: strength of the pull, 0 or more. Coupled, in units of the loss per squared unit
            of the parameters (and of `importance`); decoupled, in units of
            `1 / learning_rate`. May be a schedule of the step, checked as `k` of `ftp`.
        importance: a tree of the parameters' shapes, with a factor of 0 or more for each weight,
            such as the diagonal of the Fisher information at the anchor: the mean over examples
            of the squared gradient of the log likelihood. Leaves are found by name, and excluded
            ones may be missing. `init` copies it into the state; replace it for the next task by
            `set_anchor(opt_state, params, importance=fisher)`. It must have the sharding of the
            parameters.
        exclude: leaves whose update passes unchanged, such as a new head; as for `ftp`.
        anchor: where `W0` comes from: "init", "argument" or "zero"; as for `ftp`.
        anchor_dtype: dtype of the copy that "init" stores; as for `ftp`.

    Returns:
        A transformation whose `update` needs `params`. Its state is an `AnchorDecayState`.

    Raises:
        ValueError, TypeError: as for `ftp`, and in `init` for importances that do not fit, are
            complex, or hold NaN, infinity or negative numbers.

    Examples:
        The loss pulls towards 3, with the slope `2 * (W - 3)`, and the anchor is 0. With a
        `weight` of 4 both pulls balance at `2 * 3 / (2 + 4)`; with an importance of a quarter, at
        `2 * 3 / (2 + 1)`:

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
    options = Options(
        "add_anchor_decay", exclude=exclude, anchor=anchor, anchor_dtype=anchor_dtype
    ).check()

    def init_fn(params: optax.Params) -> AnchorDecayState:
        fields, factors = initial_fields(options, params), empty_like(params)
        number_at(weight, fields["step"], "weight")
        if importance is not None:
            layout = fields["spec"].layout
            leaves = match_leaves(importance, layout, "`importance`")
            for tensor, leaf in zip(layout.tensors, leaves, strict=True):
                check_importance(leaf, f"`importance` has {tensor.name!r}")
            factors = copy_tree(layout.replace(params, leaves), layout)
        return AnchorDecayState(importance=factors, **fields)

    def update_fn(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, AnchorDecayState]:
        p = make_problem(options, updates, state, params, extra_args)
        if bool(jax.tree.leaves(state.importance)) != (importance is not None):
            has, lacks = ("state", "transformation")[:: 1 if importance is None else -1]
            raise ValueError(
                f"`add_anchor_decay` got a state that does not fit, because the {has} has "
                f"`importance` and the {lacks} has none: build the transformation like the one "
                "that made the state, or call `init` again."
            )

        # g' = g + weight * F * (W - W0)
        pulls = p.differences()
        if importance is not None:
            factors = [to_device(x) for x in p.spec.layout.constrained(state.importance)]
            pulls = [f.astype(wide_dtype(f)) * d for f, d in zip(factors, pulls, strict=True)]
        now = number_at(weight, state.step, "weight")
        pairs = zip(p.g, pulls, strict=True)
        new = [(g.astype(wide_dtype(g)) + now * x).astype(g.dtype) for g, x in pairs]
        step = optax.safe_increment(state.step)
        return p.spec.layout.replace(updates, new), state._replace(step=step, spec=p.spec)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
