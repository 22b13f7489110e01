"""TPGM: learn the radii on held-out data, by gradient descent through the projection.

A bi-level problem. The inner one is ordinary training, projected; the outer one asks for
the radii at which the projected parameters do best on data that training does not see.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tpgm_jax import _anchor, _radii
from tpgm_jax._axes import AxesSpec, layout
from tpgm_jax._candidate import candidate
from tpgm_jax._checks import (
    check_anchor,
    check_count,
    check_norm,
    check_params,
    check_trees,
    check_unit,
    with_extra_args,
)
from tpgm_jax._guard import all_finite, finite_or_zero, where
from tpgm_jax._names import Exclude
from tpgm_jax._unit import units


class TPGMState(NamedTuple):
    """State of `tpgm`.

    Attributes:
        step: updates made since `init` or `set_anchor`, int32 of shape `()`.
        base_state: state of the wrapped optimizer.
        anchor: the parameters given to `init`; holes at leaves that are not constrained, and
            everywhere if the anchor comes from elsewhere.
        radii: `[G]`, one for each group, in units of `norm`; zeros until the first update.
        radius_state: state of the optimizer of `radii`.
        layers: int32, for each leaf how many layers it stacks; 0: it is not stacked;
            -1: it is not constrained. For `tpgm_jax.radii`.
        skipped: updates that were not made and radius steps that were not taken, as a gradient was
            not finite or moments would have overflown; int32 of shape `()`.
    """

    step: jax.typing.ArrayLike
    base_state: optax.OptState
    anchor: optax.Params
    radii: jax.Array
    radius_state: optax.OptState
    layers: jax.Array
    skipped: jax.typing.ArrayLike


def tpgm(
    base_optimizer: optax.GradientTransformation,
    *,
    steps: int = 1,
    every: int = 1,
    radius_optimizer: optax.GradientTransformation | None = None,
    norm: str = "mars",
    exclude: Exclude | None = None,
    axes: AxesSpec | None = None,
    anchor: str = "init",
    anchor_dtype: jax.typing.DTypeLike | None = None,
    axis_name: str | Sequence[str] | None = None,
    unit: str = "norm",
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer to keep each tensor within a radius learned on held-out data.

    Trainable Projected Gradient Method. Writing `W` for a tensor, `W0` for its value at
    `init`, `u` for the base optimizer's update and `N` for the norm,

        d = W + u - W0,    n = N(d) + 1e-8
        first update:             r = min over rows of N(d) / 2
        every `every`-th update, `steps` times:
            r = clip(r, 1e-8, max over rows of N(d))
            r = r - adam(d/dr value_fn(W0 + min(1, r / n) * d))
        r  = clip(r, 1e-8, max over rows of N(d))
        W' = W0 + min(1, r / n) * d

    `update` takes one keyword more, `value_fn`: the loss on held-out data, in evaluation
    mode, as a function of the parameters. Each radius step costs one forward and one
    backward pass of it. A function that requires two arguments is called with the radius
    step `i` as well, to choose a batch by:

        tx.update(grads, state, params, value_fn=lambda params: loss(params, held_out))
        tx.update(grads, state, params, value_fn=lambda params, i: loss(params, batches[i]))

    Wrappers that drop extra arguments can not be used around it: `optax.MultiSteps` inside
    `optax.chain`, `optax.lookahead`, `split_real_and_imaginary`, and linen's
    `TrainState.apply_gradients` (`tpgm_jax.linen.TrainState` hands them on). Nothing may follow
    it in a chain, as that would move `W'` again. The base optimizer is not handed `value_fn`,
    as its own line search may want the training loss under that name.

    A step whose gradient is not finite, in whatever tensor, is skipped: constrained parameters,
    radii and their optimizer stay as they were, and the base optimizer is handed zeros. So is a
    radius step at which the held-out loss's gradient is not finite. `skipped` in the state
    counts both. Numbers that are not finite in the base optimizer's own update count as 0.

    The radii's own Adam is in the state as well, so that a bare `optax.tree.get(state, "count")`
    finds two; tell them apart by `filtering=lambda path, _: "radius_state" not in
    jax.tree_util.keystr(path)`.

    Where this differs from the authors' program:

    1. All state is in the optimizer state, so that a resumed run equals an uninterrupted one.
    2. The base optimizer and the optimizer of the radii may be any of optax's.
    3. `d` is summed as `(W - W0) + u`, which rounds less.

    Args:
        base_optimizer: any optax transformation.
        steps: radius steps in a row.
        every: updates between such rows; the others only clip and project.
        radius_optimizer: any optax transformation; it updates the vector of radii by their
            gradient. Default `optax.adam(1e-2)`, a step in `unit`.
        norm: "mars", the L1 norm of each row, or "l2", the norm of the whole tensor.
        exclude: leaves that get the base optimizer's update untouched; as for `ftp`.
        axes: which axes index rows and stacked layers; as for `ftp`.
        anchor: where `W0` comes from: "init", "argument" or "zero"; as for `ftp`.
        anchor_dtype: dtype of the copy that "init" keeps; as for `ftp`.
        axis_name: under `jax.shard_map` or `jax.pmap`, the axis or axes along which devices hold
            different held-out data: the loss and its gradient are averaged over them, so that
            radii stay equal on all devices. To average `grads` is up to the caller, as for any
            optimizer. Under `jax.jit` with shardings there is nothing to say.
        unit: in what `radius_optimizer` measures radii, "norm" or "anchor"; as for `ftp`.

    Returns:
        A transformation whose `update` needs `params` and `value_fn`. Its state is a
        `TPGMState`.

    Raises:
        ValueError, TypeError: in the factory for arguments out of range, in `init` for
            patterns that match nothing, in `update` for trees that do not fit and for a
            `value_fn` that is missing, not callable, or not scalar.

    Examples:
        Training pulls towards 2, held-out data towards 0.1:

        >>> import jax, jax.numpy as jnp, optax, tpgm_jax
        >>> pretrained = {"kernel": jnp.zeros((3, 2))}
        >>> tx = tpgm_jax.tpgm(optax.sgd(0.1))
        >>> def loss(params, target):
        ...     return jnp.sum((params["kernel"] - target) ** 2)
        >>> @jax.jit
        ... def step(params, state):
        ...     grads = jax.grad(loss)(params, 2.0)
        ...     updates, state = tx.update(
        ...         grads, state, params, value_fn=lambda params: loss(params, 0.1))
        ...     return optax.apply_updates(params, updates), state
        >>> params, state = pretrained, tx.init(pretrained)
        >>> for _ in range(200):
        ...     params, state = step(params, state)
        >>> print(f"{params['kernel'].mean():.2f}")
        0.10
        >>> {name: round(r, 2) for name, r in tpgm_jax.radii(state, params).items()}
        {'kernel': 0.3}

    References:
        Tian et al., "Trainable Projected Gradient Method for Robust Fine-tuning",
        CVPR 2023, https://arxiv.org/abs/2303.10720
    """
    base = with_extra_args(base_optimizer, "base_optimizer")
    radius_base = _radii.optimizer(radius_optimizer)
    check_norm(norm)
    check_anchor(anchor, anchor_dtype)
    check_unit(unit, anchor)
    check_count(steps, "steps")
    check_count(every, "every")

    def init_fn(params: optax.Params) -> TPGMState:
        parts = layout(params, exclude, axes)
        radii = _radii.full(parts, 0.0, _radii.radii_dtype(params, parts))
        return TPGMState(
            step=jnp.zeros([], jnp.int32),
            base_state=base.init(params),
            anchor=_anchor.held(params, parts, anchor, anchor_dtype),
            radii=radii,
            radius_state=radius_base.init(radii),
            layers=jnp.array(parts.layers, jnp.int32),
            skipped=jnp.zeros([], jnp.int32),
        )

    def update_fn(updates, state, params=None, *, value_fn=None, **extra_args):
        params = check_params(params, "tpgm")
        parts = layout(params, exclude, axes)
        check_trees(updates, params, state, parts, "tpgm", anchor=anchor == "init")
        w0 = _anchor.used(anchor, state.anchor, extra_args.get("anchor"), params, parts)
        held_out_loss = _of_params_and_step(value_fn)

        finite = all_finite(jax.tree.leaves(updates))
        base_updates, base_state = base.update(
            where(finite, updates, 0.0), state.base_state, params, **extra_args
        )
        u = finite_or_zero(finite, parts.select(base_updates))
        w_plus_u = candidate(parts.replace(base_updates, u), params, w0, parts, norm)
        dtype = state.radii.dtype
        scale = units(unit, parts.select(w0), parts, norm, dtype)

        def averaged(x):
            return x if axis_name is None else jax.lax.pmean(x, axis_name)

        # Loss and gradient both: `shard_map` adds up gradients over devices by itself, so that the
        # losses have to be a mean; where nobody tracks what is replicated, as in `pmap`, each
        # device has the gradient of its own loss, even of a mean.
        def value(r, i):
            return averaged(held_out_loss(optax.apply_updates(params, w_plus_u.project(r)), i))

        def radius_step(i, carry):
            radii, radius_state, skipped = carry
            r = w_plus_u.clip(radii)
            gradient = averaged(_radii.gather(jax.grad(value)(r, i), parts, dtype))
            clipped = _radii.gather(r, parts, dtype)
            radii, radius_state, taken = _radii.descend(
                radius_base, gradient, radius_state, clipped, scale
            )
            return radii, radius_state, jnp.where(taken, skipped, optax.safe_increment(skipped))

        def learn(carry):
            # XLA on CPU runs convolutions inside a loop on one core, ten times as long.
            if isinstance(steps, int) and steps == 1:
                return radius_step(jnp.zeros([], jnp.int32), carry)
            return jax.lax.fori_loop(0, steps, radius_step, carry)

        first, before = state.step == 0, jnp.asarray(state.skipped)
        radii = jnp.where(first, w_plus_u.smallest(dtype) / 2, state.radii)
        start = (
            radii,
            _radii.where_first(first, radius_base.init(radii / scale), state.radius_state),
            before,
        )
        if isinstance(every, int) and every == 1:
            radii, radius_state, skipped = learn(start)
        else:
            radii, radius_state, skipped = jax.lax.cond(
                state.step % every == 0, learn, lambda carry: carry, start
            )
        r = w_plus_u.clip(radii)
        projected = w_plus_u.project(r)
        return parts.replace(projected, where(finite, parts.select(projected), 0.0)), TPGMState(
            step=jnp.where(finite, optax.safe_increment(state.step), state.step),
            base_state=base_state,
            anchor=state.anchor,
            radii=where(finite, _radii.gather(r, parts, dtype), state.radii),
            radius_state=where(finite, radius_state, state.radius_state),
            layers=state.layers,
            skipped=jnp.where(finite, skipped, optax.safe_increment(before)),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _of_params_and_step(value_fn: Any) -> Callable[[optax.Params, jax.Array], jax.Array]:
    """`value_fn` as a function of the parameters and the radius step, checked."""
    if value_fn is None:
        raise ValueError(
            "`tpgm` learns its radii on held-out data, so `update` needs `value_fn`: call "
            "`update(grads, state, params, value_fn=lambda params: held_out_loss(params))`. If "
            "you did, a wrapper dropped it: `optax.MultiSteps` inside `optax.chain` (put it "
            "outermost), `optax.lookahead`, `split_real_and_imaginary`, and linen's "
            "`TrainState.apply_gradients` (use `tpgm_jax.linen.TrainState`) do."
        )
    if not callable(value_fn):
        raise TypeError(
            "`value_fn` must be a function of the parameters that returns the held-out loss; "
            f"got {type(value_fn).__name__}."
        )
    takes_step = _required_arguments(value_fn) > 1

    def held_out_loss(params, i):
        return scalar(value_fn(params, i) if takes_step else value_fn(params))

    return held_out_loss


def _required_arguments(f: Callable[..., Any]) -> int:
    """Positional arguments of `f` without a default."""
    try:
        parameters = inspect.signature(f).parameters.values()
    except ValueError:  # some callables written in C do not say
        return 1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in parameters)


def scalar(value: Any) -> jax.Array:
    """What `value_fn` returned, in float32 at least, so that half precision does not
    round its gradient away."""
    if not hasattr(value, "shape") and not isinstance(value, int | float):
        raise TypeError(
            f"`value_fn` must return one number, the held-out loss; got {type(value).__name__}. "
            "Return the loss alone, without auxiliary outputs."
        )
    if jnp.shape(value) != ():
        raise ValueError(
            "`value_fn` must return one number, the held-out loss; got an array of shape "
            f"{jnp.shape(value)}. Take its mean."
        )
    return jnp.asarray(value, jnp.promote_types(jnp.result_type(value), jnp.float32))
