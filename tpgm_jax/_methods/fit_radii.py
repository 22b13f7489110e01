"""TPGM after training: learn radii for a model that is already fine-tuned."""

from __future__ import annotations  # so that `help` shows names, and not what they expand to

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tpgm_jax._core import radii as _radii
from tpgm_jax._core.anchor import check_numbers, match_leaves
from tpgm_jax._core.optimizers import radius_optimizer_or_default
from tpgm_jax._core.problem import Problem
from tpgm_jax._core.spec import AxesSpec, Exclude, Norm, Options, Spec, Unit
from tpgm_jax._core.unit import divisor, unit_sizes
from tpgm_jax._methods.held_out import check_held_out_loss, radius_step


class FittedRadii(NamedTuple):
    """Result of `fit_radii`.

    Attributes:
        params: the fine-tuned parameters, projected.
        radii: name to radius, in units of the norm; a list if a tensor stacks layers.
        losses: `[batches]`, the held-out loss before each radius step.
    """

    params: Any
    radii: dict[str, Any]
    losses: jax.Array


def fit_radii(
    held_out_loss: Callable[..., jax.typing.ArrayLike],
    params: optax.Params,
    anchor: optax.Params,
    batches: Iterable[Any],
    *,
    radius_optimizer: optax.GradientTransformation | None = None,
    norm: Norm = "l2",
    unit: Unit = "norm",
    exclude: Exclude | None = None,
    axes: AxesSpec | None = None,
) -> FittedRadii:
    """Learns radii on held-out data and projects fine-tuned parameters, once.

    Writing `W` for a fine-tuned tensor and `W0` for its anchor,

        c = W - W0,    n = N(c) + 1e-8
        r = min over rows of N(c) / 2
        for each batch:
            r = clip(r, 1e-8, max over rows of N(c))
            r = r - adam(d/dr held_out_loss(W0 + min(1, r / n) * c, batch))
        r  = clip(r, 1e-8, max over rows of N(c))
        W' = W0 + min(1, r / n) * c

    Under the l2 norm `W'` is between the anchor and `W`: a learned WiSE-FT, with one mixing
    weight for each tensor. This is the published recipe, so "l2" is the default here, and
    "mars" is the default of `tpgm` and `ftp`. The paper takes 200 steps. Use batches that neither
    trained the model nor will measure it.

    The program is compiled once for a function and options, and used again in later calls with
    the same function. As with `jax.jit`, everything that `held_out_loss` reads besides its
    arguments is fixed when it is first called, and a new function, such as a `lambda` in a loop,
    is compiled anew and stays in memory until `jax.clear_caches()`.

    Args:
        held_out_loss: `(params, batch)` to the held-out loss, a scalar; in evaluation mode.
        params: the fine-tuned parameters.
        anchor: the pre-trained parameters, found by name. Excluded leaves may be missing.
        batches: any iterable; one radius step for each. All should have the same shapes,
            because another shape compiles the step again. Wrap it in `tqdm` to see progress.
        radius_optimizer: any optax transformation. Default `optax.adam(1e-2)`, a step in
            `unit`.
        norm: "l2", one norm for each tensor, or "mars", one for each row.
        unit: in what `radius_optimizer` measures radii, "norm" or "anchor"; as for `ftp`.
        exclude: leaves that are not projected, and enter `held_out_loss` unchanged; as for `ftp`.
        axes: which axes index rows and stacked layers; as for `ftp`.

    Returns:
        `FittedRadii(params, radii, losses)`.

    Raises:
        ValueError: no batches; trees that differ; a `held_out_loss` that is not scalar.
        TypeError: `held_out_loss` is not callable; `batches` are not iterable; a constrained leaf
            is not floating point.

    Examples:
        Fine-tuning moved the weights to 2, and the held-out loss is lowest at 0.5:

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
    if not callable(held_out_loss):
        raise TypeError(
            "`held_out_loss` must be a function `(params, batch)` that returns the held-out loss; "
            f"got {type(held_out_loss).__name__}."
        )
    spec = Options("fit_radii", norm, unit, exclude, axes).check().spec(params)
    optimizer = radius_optimizer_or_default(radius_optimizer)
    if not spec.layout.tensors:
        raise ValueError(
            "`fit_radii` got `params` without a tensor to project: pass the fine-tuned parameters."
        )
    iterator = _iterator(batches)
    try:
        hash(held_out_loss)
        loss = held_out_loss
    except TypeError:  # such as a method of an Equinox module: compile anew in each call
        loss = functools.partial(held_out_loss)
    w0 = match_leaves(anchor, spec.layout, "the `anchor` of `fit_radii`")
    trees = {"params": spec.layout.constrained(params), "anchor": w0}
    for what, leaves in trees.items():
        for tensor, leaf in zip(spec.layout.tensors, leaves, strict=True):
            check_numbers(leaf, f"`fit_radii` got `{what}` that has {tensor.name!r}")

    (radii, state, unit_size), losses = _start(params, w0, spec, optimizer), []
    for batch in iterator:
        model = params, w0, spec, optimizer
        radii, state, loss_before = _learn(loss, radii, state, unit_size, batch, *model)
        # Otherwise the host puts the batches of all steps on the devices at once. On a CPU, virtual
        # devices can also block each other if several steps are under way.
        losses.append(jax.block_until_ready(loss_before))
    if not losses:
        raise ValueError(
            "`batches` is empty, so no radius was learned: pass held-out batches, one for "
            "each radius step. An iterator that was read before is empty the second time."
        )
    projected, radii = _finish(radii, params, w0, spec)
    return FittedRadii(projected, _radii.radii_by_name(radii, spec.layout), jnp.stack(losses))


def _iterator(batches: Any) -> Iterator[Any]:
    try:
        if isinstance(batches, str | bytes | Mapping):  # would give letters, or keys
            raise TypeError("one batch")
        return iter(batches)
    except TypeError as error:
        raise TypeError(
            "`batches` must be an iterable of batches, one for each radius step; got "
            f"{type(batches).__name__}: pass a list of batches, or a data loader."
        ) from error


# The model is an argument of each program, because a model in a closure would be a constant.


@functools.partial(jax.jit, static_argnames=("spec", "optimizer"))
def _start(params: Any, w0: Any, spec: Spec, optimizer: Any) -> Any:
    """The first radii, the state of their optimizer, and its unit."""
    problem, _, sizes = _measure(params, w0, spec)
    radii = problem.gather(problem.reduce_rows(jnp.min, sizes)) / 2
    unit_size = divisor(unit_sizes(w0, spec, radii.dtype), len(radii), radii.dtype)
    return radii, optimizer.init(radii / unit_size), unit_size


@functools.partial(jax.jit, static_argnames=("loss", "spec", "optimizer"))
def _learn(
    loss: Any,
    radii: Any,
    state: Any,
    unit_size: Any,
    batch: Any,
    params: Any,
    w0: Any,
    spec: Spec,
    optimizer: Any,
) -> Any:
    """One radius step: radii, state of their optimizer, and the loss before the step."""
    problem, c, sizes = _measure(params, w0, spec)
    loss = check_held_out_loss(loss)

    def loss_at(r):
        return loss(_project(problem, c, sizes, r), batch)

    step = radius_step(loss_at, problem, sizes, radii, state, optimizer, unit_size)
    loss_before, radii, state, _ = step
    return radii, state, loss_before


@functools.partial(jax.jit, static_argnames="spec")
def _finish(radii: Any, params: Any, w0: Any, spec: Spec) -> Any:
    """The projected parameters, and the radii."""
    problem, c, sizes = _measure(params, w0, spec)
    r = problem.clip(radii, sizes)
    return _project(problem, c, sizes, r), problem.gather(r)


def _measure(params: Any, w0: Any, spec: Spec) -> Any:
    """The problem, `c = W - W0` and `N(c)`."""
    w = [jnp.asarray(x) for x in spec.layout.constrained(params)]
    problem = Problem(spec, params, params, w, w, w0)
    c = problem.differences()
    return problem, c, problem.norms(c)


def _project(problem: Problem, c: Any, sizes: Any, r: Any) -> Any:
    """The parameters, projected."""
    zeros = optax.tree.zeros_like(problem.params)
    moved = problem.spec.layout.replace(zeros, problem.project(c, sizes, r))
    return optax.apply_updates(problem.params, moved)
