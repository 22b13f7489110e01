"""The projection with a fixed radius: MARS-SP, and the l2 ball."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from tpgm_jax import _anchor, _radii
from tpgm_jax._axes import AxesSpec, layout
from tpgm_jax._candidate import candidate
from tpgm_jax._checks import (
    check_anchor,
    check_norm,
    check_params,
    check_positive,
    check_trees,
    check_unit,
)
from tpgm_jax._names import Exclude
from tpgm_jax._unit import units


class AnchorState(NamedTuple):
    """State of `project_to_anchor`.

    Attributes:
        step: updates made since `init` or `set_anchor`, int32 of shape `()`.
        anchor: the parameters given to `init`; empty at leaves that are not constrained, and
            everywhere if the anchor comes from elsewhere.
    """

    step: jax.typing.ArrayLike
    anchor: optax.Params


def project_to_anchor(
    radius: optax.ScalarOrSchedule,
    *,
    norm: str = "mars",
    exclude: Exclude | None = None,
    axes: AxesSpec | None = None,
    anchor: str = "init",
    anchor_dtype: jax.typing.DTypeLike | None = None,
    unit: str = "norm",
) -> optax.GradientTransformationExtraArgs:
    """Keeps every parameter within a fixed distance of its value at `init`.

    Writing `W` for a tensor, `W0` for its value at `init`, `u` for the incoming update and
    `N` for the norm, the parameters after the step are the candidate pulled back to the
    ball:

        d  = W + u - W0,    n = N(d) + 1e-8
        W' = W0 + min(1, radius / n) * d

    Must be the last transformation in a chain: anything after it moves `W'` again.

    Args:
        radius: size of the ball, in `unit`. Positive. May be a schedule of the step.
        norm: "mars", the L1 norm of each row, or "l2", the norm of the whole tensor.
        exclude: leaves whose update passes untouched; as for `ftp`.
        axes: which axes index rows and stacked layers; as for `ftp`.
        anchor: where `W0` comes from: "init", "argument" or "zero"; as for `ftp`.
        anchor_dtype: dtype of the copy that "init" keeps; as for `ftp`.
        unit: what `radius` is measured in, "norm" or "anchor"; as for `ftp`.

    Returns:
        A transformation whose `update` needs `params`. Its state is an `AnchorState`.

    Raises:
        ValueError, TypeError: in the factory for arguments out of range, in `init` for
            patterns that match nothing, in `update` for trees that do not fit.

    Examples:
        The first output unit may move 2, and would have moved 4; the second moves 1.

        >>> import jax.numpy as jnp, tpgm_jax
        >>> pretrained = jnp.zeros((2, 2))
        >>> tx = tpgm_jax.project_to_anchor(2.0)
        >>> step = jnp.array([[3.0, 0.5], [1.0, 0.5]])
        >>> updates, _ = tx.update(step, tx.init(pretrained), pretrained)
        >>> print(updates)
        [[1.5 0.5]
         [0.5 0.5]]

    References:
        Gouk et al., "Distance-Based Regularisation of Deep Networks for Fine-Tuning",
        ICLR 2021, https://arxiv.org/abs/2002.08253
    """
    check_positive(radius, "radius", schedule=True)
    check_norm(norm)
    check_anchor(anchor, anchor_dtype)
    check_unit(unit, anchor)

    def init_fn(params: optax.Params) -> AnchorState:
        parts = layout(params, exclude, axes)
        held = _anchor.held(params, parts, anchor, anchor_dtype)
        return AnchorState(step=jnp.zeros([], jnp.int32), anchor=held)

    def update_fn(updates, state, params=None, **extra_args):
        params = check_params(params, "project_to_anchor")
        parts = layout(params, exclude, axes)
        check_trees(updates, params, state, parts, "project_to_anchor", anchor=anchor == "init")
        w0 = _anchor.used(anchor, state.anchor, extra_args.get("anchor"), params, parts)

        now = radius(state.step) if callable(radius) else radius
        dtype = _radii.radii_dtype(params, parts)
        radii = jnp.asarray(now * units(unit, parts.select(w0), parts, norm, dtype))
        w_plus_u = candidate(updates, params, w0, parts, norm)
        projected = w_plus_u.project(_radii.spread(radii, parts, w_plus_u.w))
        step = optax.safe_increment(state.step)
        return projected, AnchorState(step, state.anchor)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
