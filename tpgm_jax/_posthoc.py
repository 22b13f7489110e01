"""TPGM after the fact: learn radii for a model that is already fine-tuned."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tpgm_jax import _anchor, _radii
from tpgm_jax._axes import AxesSpec, layout
from tpgm_jax._candidate import candidate
from tpgm_jax._checks import check_norm, check_unit
from tpgm_jax._names import Exclude
from tpgm_jax._state import named
from tpgm_jax._tpgm import scalar
from tpgm_jax._unit import units


class FittedRadii(NamedTuple):
    """What `fit_radii` found.

    Attributes:
        params: the fine-tuned parameters, projected.
        radii: name to radius, in units of the norm; a list where a tensor stacks layers.
        losses: `[batches]`, the held-out loss before each radius step.
    """

    params: Any
    radii: dict[str, Any]
    losses: jax.Array


def fit_radii(
    value_fn: Callable[..., jax.typing.ArrayLike],
    params: optax.Params,
    anchor: optax.Params,
    batches: Iterable[Any],
    *,
    norm: str = "l2",
    radius_optimizer: optax.GradientTransformation | None = None,
    exclude: Exclude | None = None,
    axes: AxesSpec | None = None,
    unit: str = "norm",
) -> FittedRadii:
    """Learns radii on held-out data and projects fine-tuned parameters, once.

    Writing `W` for a fine-tuned tensor and `W0` for its anchor,

        d = W - W0,    n = N(d) + 1e-8
        r = min over rows of N(d) / 2
        for each batch:
            r = clip(r, 1e-8, max over rows of N(d))
            r = r - adam(d/dr value_fn(W0 + min(1, r / n) * d, batch))
        r  = clip(r, 1e-8, max over rows of N(d))
        W' = W0 + min(1, r / n) * d

    Under the l2 norm `W'` lies between anchor and `W`: a learned WiSE-FT, with one mixing
    weight for each tensor. The paper takes 200 steps. The batches must be of data that
    neither trained the model nor will be reported on.

    Args:
        value_fn: `(params, batch)` to the held-out loss, a scalar; in evaluation mode.
        params: the fine-tuned parameters.
        anchor: the pre-trained parameters, found by name; what is excluded it need not have.
        batches: any iterable; one radius step for each. All should have the same shapes,
            as another shape compiles the step again. Wrap it in `tqdm` to see progress.
        norm: "l2", one norm for each tensor, or "mars", one for each row.
        radius_optimizer: any optax transformation. Default `optax.adam(1e-2)`, a step in
            `unit`.
        exclude: leaves that are not projected, and enter `value_fn` as they are; as for `ftp`.
        axes: which axes index rows and stacked layers; as for `ftp`.
        unit: in what `radius_optimizer` measures radii, "norm" or "anchor"; as for `ftp`.

    Returns:
        `FittedRadii(params, radii, losses)`.

    Raises:
        ValueError: no batches; trees that differ; a `value_fn` that is not scalar.
        TypeError: `value_fn` is not callable; a constrained leaf is not floating point.

    Examples:
        Fine-tuning went to 2, held-out data asks for 0.5:

        >>> import jax.numpy as jnp, tpgm_jax
        >>> anchor, tuned = {"kernel": jnp.zeros((1, 4))}, {"kernel": jnp.full((1, 4), 2.0)}
        >>> def held_out_loss(params, target):
        ...     return jnp.mean((params["kernel"] - target) ** 2)
        >>> fitted = tpgm_jax.fit_radii(held_out_loss, tuned, anchor, [0.5] * 300)
        >>> print(fitted.params["kernel"].round(2))
        [[0.5 0.5 0.5 0.5]]
        >>> {name: round(r, 2) for name, r in fitted.radii.items()}  # sqrt(4 * 0.5^2)
        {'kernel': 1.0}

    References:
        Tian et al., "Trainable Projected Gradient Method for Robust Fine-tuning",
        CVPR 2023, https://arxiv.org/abs/2303.10720
    """
    check_norm(norm)
    check_unit(unit)
    optimizer = _radii.optimizer(radius_optimizer)
    if not callable(value_fn):
        raise TypeError(
            "`value_fn` must be a function `(params, batch)` that returns the held-out loss; "
            f"got {type(value_fn).__name__}."
        )
    parts = layout(params, exclude, axes)
    remedy = "pass the pre-trained parameters of the same model"
    anchor = _anchor.matched(anchor, params, parts, "the `anchor` of `fit_radii`", remedy)
    dtype = _radii.radii_dtype(params, parts)

    def tuned(params, anchor):
        return candidate(optax.tree.zeros_like(params), params, anchor, parts, norm)

    # Arguments, not closures: a model caught in a closure is a constant of the program.
    @jax.jit
    def start(params, anchor):
        w = tuned(params, anchor)
        radii = w.smallest(dtype) / 2
        return radii, optimizer.init(radii / units(unit, w.w0, parts, norm, dtype))

    @jax.jit
    def radius_step(radii, state, params, anchor, batch):
        w = tuned(params, anchor)

        def value(r):
            return scalar(value_fn(optax.apply_updates(params, w.project(r)), batch))

        r = w.clip(radii)
        loss, gradient = jax.value_and_grad(value)(r)
        gradient, clipped = (_radii.gather(x, parts, dtype) for x in (gradient, r))
        scale = units(unit, w.w0, parts, norm, dtype)
        radii, state, _ = _radii.descend(optimizer, gradient, state, clipped, scale)
        return radii, state, loss

    @jax.jit
    def finish(radii, params, anchor):
        w = tuned(params, anchor)
        r = w.clip(radii)
        return optax.apply_updates(params, w.project(r)), _radii.gather(r, parts, dtype)

    (radii, state), losses = start(params, anchor), []
    for batch in batches:
        radii, state, loss = radius_step(radii, state, params, anchor, batch)
        losses.append(loss)
    if not losses:
        raise ValueError(
            "`batches` is empty, so no radius was learned: pass held-out batches, one for "
            "each radius step. An iterator that was read before is empty the second time."
        )
    projected, radii = finish(radii, params, anchor)
    names = [tensor.name for tensor in parts.tensors]
    layers = [count for count in parts.layers if count >= 0]
    return FittedRadii(projected, named(names, layers, radii), jnp.stack(losses))
