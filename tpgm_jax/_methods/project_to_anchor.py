"""The projection with a fixed radius: MARS-SP, and the l2 ball."""

from __future__ import annotations  # so that `help` shows names, and not what they expand to

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tpgm_jax._core.checks import check_positive, number_at
from tpgm_jax._core.names import Nothing
from tpgm_jax._core.problem import initial_fields, initial_unit_size, make_problem
from tpgm_jax._core.spec import AnchorSource, AxesSpec, Exclude, Norm, Options, Unit


class ProjectToAnchorState(NamedTuple):
    """State of `project_to_anchor`.

    Attributes:
        step, anchor, spec, fingerprint: as in `FTPState`.
        unit_size: `[G]`, the size of the anchor in which `radius` is given; a
            placeholder for `unit="norm"`.
    """

    step: jax.typing.ArrayLike
    anchor: optax.Params
    unit_size: jax.Array | Nothing
    spec: Any
    fingerprint: jax.Array


def project_to_anchor(
    radius: optax.ScalarOrSchedule,
    *,
    norm: Norm = "mars",
    unit: Unit = "norm",
    exclude: Exclude | None = None,
    axes: AxesSpec | None = None,
    anchor: AnchorSource = "init",
    anchor_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Keeps every parameter within a fixed distance of its value at `init`.

    Writing `W` for a tensor, `W0` for its value at `init`, `u` for the incoming update and
    `N` for the norm, the parameters after the step are the candidate pulled back to the
    ball:

        c  = W + u - W0,    n = N(c) + 1e-8
        W' = W0 + min(1, radius / n) * c

    It must be the last transformation in a chain, because anything after it moves `W'` again.

    Args:
        radius: size of the ball, in `unit`. Positive. May be a schedule of the step, which may
            reach 0, and is checked as `k` of `ftp`.
        norm: "mars", the L1 norm of each row, or "l2", the norm of the whole tensor.
        unit: what `radius` is measured in, "norm" or "anchor"; as for `ftp`.
        exclude: leaves whose update passes unchanged; as for `ftp`.
        axes: which axes index rows and stacked layers; as for `ftp`.
        anchor: where `W0` comes from: "init", "argument" or "zero"; as for `ftp`.
        anchor_dtype: dtype of the copy that "init" stores; as for `ftp`.

    Returns:
        A transformation whose `update` needs `params`. Its state is a `ProjectToAnchorState`.

    Raises:
        ValueError, TypeError: as for `ftp`.

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
    options = Options("project_to_anchor", norm, unit, exclude, axes, anchor, anchor_dtype).check()

    def init_fn(params: optax.Params) -> ProjectToAnchorState:
        fields = initial_fields(options, params)
        number_at(radius, fields["step"], "radius")
        return ProjectToAnchorState(unit_size=initial_unit_size(fields, params), **fields)

    def update_fn(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, ProjectToAnchorState]:
        p = make_problem(options, updates, state, params, extra_args)

        # c = (W - W0) + u
        c = [d + u.astype(d.dtype) for d, u in zip(p.differences(), p.g, strict=True)]

        # W' = W0 + min(1, radius / n) * c
        now = number_at(radius, state.step, "radius")
        r = p.spread(jnp.asarray(now, p.radii_dtype) * p.unit_size(state))
        new = p.spec.layout.replace(updates, p.project(c, p.norms(c), r))
        return new, state._replace(step=optax.safe_increment(state.step), spec=p.spec)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
