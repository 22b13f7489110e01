"""SPD: weight decay towards the anchor, only where it helps and only as far as the step went.

If a step moves a tensor away from its anchor although the gradient points back there, part of
the distance that the step adds is taken back.
"""

from __future__ import annotations  # so that `help` shows names, and not what they expand to

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tpgm_jax._core.ball import wide_dtype
from tpgm_jax._core.checks import check_not_negative, number_at
from tpgm_jax._core.finite import all_finite, zero_unless
from tpgm_jax._core.optimizers import init_base, with_extra_args
from tpgm_jax._core.problem import initial_fields, make_problem
from tpgm_jax._core.spec import AnchorSource, AxesSpec, Exclude, Options


class SPDState(NamedTuple):
    """State of `spd`.

    Attributes:
        step, base_state, anchor, spec, fingerprint: as in `FTPState`.
        skipped: number of steps skipped because the gradient was not finite, int32 of shape `()`.
    """

    step: jax.typing.ArrayLike
    base_state: optax.OptState
    anchor: optax.Params
    skipped: jax.typing.ArrayLike
    spec: Any
    fingerprint: jax.Array


def spd(
    base_optimizer: optax.GradientTransformation,
    *,
    strength: optax.ScalarOrSchedule = 1.0,
    exclude: Exclude | None = None,
    axes: AxesSpec | None = None,
    anchor: AnchorSource = "init",
    anchor_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer to take back steps away from the anchor that the gradient opposes.

    Selective Projection Decay. Writing `W` for a tensor, `W0` for its value at `init`, `g` for
    the gradient, `u` for the base optimizer's update and `|.|` for the l2 norm of the tensor, or
    of one layer if the tensor stacks layers,

        d = W - W0,    c = W + u - W0
        q  = clip((|c| - |d|) / |c|, 0, 1)  if <g, d> > 0,  else 0
        W' = W0 + (1 - strength * q) * c

    With `<g, d> > 0` the loss falls towards the anchor. If the step goes further away anyway, a
    strength of 1 ends it at the distance where it began. All other steps equal the base
    optimizer's; the first step is one of them if it starts at the anchor. Nothing is learned,
    and each step needs one inner product and two norms of each tensor.

    A small step of plain gradient descent goes along `-g`, and so towards the anchor whenever
    `<g, d> > 0`: `spd` hardly ever acts then. It needs a base optimizer with momentum, or one that
    scales each weight, such as Adam.

    `spd` wraps the base optimizer, because it needs `g` before momentum, decay and learning rate.
    Transformations of the gradient go before it in a chain. Nothing may follow it, because that
    would move `W'` again:

        optax.chain(optax.clip_by_global_norm(1.0), spd(optax.adamw(1e-4)))

    A step is skipped if any number of its gradient is not finite. Then all parameters (the excluded
    ones too) stay as they were, and `skipped` in the state counts one more. The base optimizer gets
    zeros as its gradient, so its clock and its moments advance. If the gradient is finite but the
    base optimizer's update is not, the entries that are not finite count as 0.

    Args:
        base_optimizer: any optax transformation. It gets the raw gradient and all extra arguments.
        strength: how much of the added distance is taken back, 0 or more; without a unit, and
            not multiplied by the learning rate. 0 leaves the base optimizer alone, 1 projects
            onto the previous distance, and beyond 1 a step may even end on the other side of the
            anchor. May be a schedule of the step, checked as `k` of `ftp`.
        exclude: leaves that get the base optimizer's update unchanged; as for `ftp`.
        axes: which axes index stacked layers; as for `ftp`. Rows make no difference here.
        anchor: where `W0` comes from: "init", "argument" or "zero"; as for `ftp`.
        anchor_dtype: dtype of the copy that "init" stores; as for `ftp`.

    Returns:
        A transformation whose `update` needs `params`. Its state is an `SPDState`.

    Raises:
        ValueError, TypeError: as for `ftp`.

    Examples:
        The first gradient leads away from the anchor. At the second step, momentum alone would
        reach 0.29, although the gradient already points back:

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
    options = Options("spd", "l2", "norm", exclude, axes, anchor, anchor_dtype).check()
    check_not_negative(strength, "strength", schedule=True)

    def init_fn(params: optax.Params) -> SPDState:
        fields, skipped = initial_fields(options, params), jnp.zeros([], jnp.int32)
        number_at(strength, fields["step"], "strength")
        return SPDState(base_state=init_base(base, params, "spd"), skipped=skipped, **fields)

    def update_fn(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, SPDState]:
        p = make_problem(options, updates, state, params, extra_args)

        # d = W - W0,  |d|,  <g, d>
        d = p.differences()
        g = [x.astype(wide_dtype(x)) for x in p.g]
        before, slopes = p.norms(d), p.inner_products(g, d)

        # u = base(g). A product with NaN or infinity is never finite, so `slopes` cover the
        # gradients in them, and only excluded leaves need a pass.
        finite = all_finite([p.gather(slopes), *p.spec.layout.unconstrained(updates)])
        base_updates, u, base_state = p.base_step(base, finite, state.base_state, extra_args)

        # c = (W - W0) + u,  |c|
        c = [x + y.astype(x.dtype) for x, y in zip(d, u, strict=True)]
        after = p.norms(c)

        # W' = W0 + (1 - strength * q) * c
        now = number_at(strength, state.step, "strength")
        ratios = [remaining_share(*leaf, now) for leaf in zip(slopes, before, after, strict=True)]
        new = zero_unless(finite, p.scale(c, ratios))
        return p.spec.layout.replace(base_updates, new), state._replace(
            step=jnp.where(finite, optax.safe_increment(state.step), state.step),
            spec=p.spec,
            base_state=base_state,
            skipped=jnp.where(finite, state.skipped, optax.safe_increment(state.skipped)),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def remaining_share(
    slope: jax.Array, before: jax.Array, after: jax.Array, strength: jax.typing.ArrayLike
) -> jax.Array:
    """`1 - strength * q` of each group, and 1 for steps that equal the base optimizer's.

    Args:
        slope: `<g, d>`.
        before: `|d|`.
        after: `|c|`.
        strength: the factor of `q`.
    """
    acts = (slope > 0) & (after > before)
    # Compute `1 - q` directly: `1 - (1 - |d| / |c|)` would cancel for large `|c|`. The division is
    # safe, because `after > before >= 0` wherever `acts`.
    remaining = before / jnp.where(acts, after, 1.0)
    strength = jnp.asarray(strength, after.dtype)
    return jnp.where(acts, (1 - strength) + strength * remaining, 1.0)
