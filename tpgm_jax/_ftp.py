"""FTP: learn the radii from the training gradient, one projection behind.

The loss gradient `g_t` is taken at parameters that the previous step's projection made,
so its product with the derivative of that projection says how the loss would change had
the radius been larger. It costs no forward or backward pass.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from tpgm_jax import _anchor, _radii
from tpgm_jax._axes import AxesSpec, layout
from tpgm_jax._candidate import candidate
from tpgm_jax._checks import (
    check_anchor,
    check_choice,
    check_fraction,
    check_norm,
    check_params,
    check_positive,
    check_trees,
    check_unit,
    with_extra_args,
)
from tpgm_jax._guard import all_finite, finite_or_zero, where
from tpgm_jax._hyper_gradient import hyper_gradient
from tpgm_jax._names import Exclude
from tpgm_jax._placement import beside, on_device
from tpgm_jax._previous import MEMORY, kept, recovered
from tpgm_jax._projection import EPSILON
from tpgm_jax._unit import units


class FTPState(NamedTuple):
    """State of `ftp`.

    Attributes:
        step: updates made since `init` or `set_anchor`, int32 of shape `()`.
        base_state: state of the wrapped optimizer.
        anchor: the parameters given to `init`; holes at leaves that are not constrained, and
            everywhere if the anchor comes from elsewhere.
        radii: `[G]`, one for each group, in units of `norm`; zeros until the first update.
        radius_state: state of the optimizer of `radii`.
        displacement: `c`, how far the last step would have gone from the anchor. Shaped
            like the parameters; holes at leaves that are not constrained, and everywhere
            with `memory="compact"`.
        layers: int32, for each leaf how many layers it stacks; 0: it is not stacked;
            -1: it is not constrained. For `tpgm_jax.radii`.
        skipped: updates that were not made, as the gradient or its product with the displacement
            was not finite, or that left the radii alone, as their moments would have
            overflown; int32 of shape `()`.
    """

    step: jax.typing.ArrayLike
    base_state: optax.OptState
    anchor: optax.Params
    radii: jax.Array
    radius_state: optax.OptState
    displacement: optax.Params
    layers: jax.Array
    skipped: jax.typing.ArrayLike


def ftp(
    base_optimizer: optax.GradientTransformation,
    *,
    k: optax.ScalarOrSchedule = 1.0,
    radius_optimizer: optax.GradientTransformation | None = None,
    norm: str = "mars",
    exclude: Exclude | None = None,
    axes: AxesSpec | None = None,
    unit: str = "norm",
    initial_radius: jax.typing.ArrayLike = 1e-8,
    exact_gradient: bool = False,
    memory: str = "full",
    anchor: str = "init",
    anchor_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer to keep each tensor within a learned radius of its anchor.

    Fast Trainable Projection. Writing `W` for a tensor, `W0` for its value at `init`, `g`
    for the gradient, `u` for the base optimizer's update, `N` for the norm, step `t` is

        c_t = W + u - W0,    n_t = N(c_t) + 1e-8
        t = 1:  r = initial_radius
        t > 1:  h = sum over rows of <g, c_{t-1}> / n_{t-1}
                h = k * h  if h > 0
                r = clip(r - adam(h), 1e-8, max over rows of n_t)
        W' = W0 + min(1, r / n_t) * c_t

    With the default radius the first update is all but discarded, while the base
    optimizer's state advances; the radii then grow by about 1e-2 a step.

    `ftp` wraps the base optimizer, since the radii need `g` as it was before momentum,
    decay and learning rate. What changes the gradient goes before it in a chain, and
    nothing may follow it, which would move `W'` again:

        optax.chain(optax.clip_by_global_norm(1.0), ftp(optax.adamw(1e-4)))

    A step whose gradient is not finite, in whatever tensor, is skipped: constrained parameters,
    radii, their optimizer and the displacement stay as they were, `skipped` in the state counts
    one more, and the base optimizer is handed zeros. Numbers that are not finite in the base
    optimizer's own update count as 0.

    The radii's own Adam is in the state as well, so that a bare `optax.tree.get(state, "count")`
    finds two; tell them apart by `filtering=lambda path, _: "radius_state" not in
    jax.tree_util.keystr(path)`.

    Where this differs from the authors' program:

    1. `k` is obeyed. Theirs ran as if it were 1, whatever was asked.
    2. The radii and all that they depend on are in the state, so that a resumed run
       equals an uninterrupted one. Theirs restarts at `r = 1e-8`, at the anchor.
    3. The base optimizer and the optimizer of the radii may be any of optax's.
    4. `c_t` is summed as `(W - W0) + u`, which rounds less.

    Args:
        base_optimizer: any optax transformation; it is handed the raw gradient and all
            extra arguments.
        k: in [0, 1], how much of a push to shrink a radius is obeyed: 1 is the strongest
            regularisation, at 0 no radius is ever pushed down. May be a schedule of the step.
        radius_optimizer: any optax transformation; it updates the vector of radii by `h`.
            Default `optax.adam(1e-2)`, a step in `unit`.
        norm: "mars", the L1 norm of each row, which shares its tensor's radius with the
            other rows; or "l2", the norm of the whole tensor.
        exclude: leaves that get the base optimizer's update untouched, such as a new head:
            a regular expression or several, matched in full against `/`-joined paths; a
            callable `(path, leaf) -> bool`; or a tree of bools.
        axes: `Axes` by regular expression, or a callable `(path, leaf) -> Axes | None`:
            which axes index rows, and which index stacked layers. The default reads
            Flax's names and shapes, and knows of no stacked layers.
        unit: in what `radius_optimizer` measures radii. "norm": the norm itself, as published.
            "anchor": the size `U` of the anchor in that norm, for tensors with row axes the mean of
            `N(W0)` over rows ("l2": `N(W0)`), and for a bias or scale of `n` numbers what `n`
            typical weights of those have. It is then handed `r / U` and the gradient in that,
            so that a step of 1e-2 is a hundredth of the weights, whatever their number. `radii`
            are in units of the norm all the same. Not for `anchor="zero"`.
        initial_radius: radius at the first step, in `unit`. Positive.
        exact_gradient: take `h` over the rows outside the ball alone, where the previous
            projection depended on the radius. The published method sums over all rows.
        memory: "full" keeps `c` in the state, an array as large as the parameters. "compact"
            recovers it from the parameters: `c_{t-1} / n_{t-1}` is `(W - W0) / N(W - W0)`. So
            that this is not lost among roundings, no row is then pulled nearer to its anchor
            than `256 * eps * N(W0)` (in half precision `eps * N(W0)`); the radii and the next
            step do without that floor.
        anchor: where `W0` comes from. "init": the parameters that `init` sees, copied.
            "argument": the keyword `anchor` of each `update`, for those who hold the pre-trained
            model anyway. "zero": zeros, for adapters. The latter two keep nothing.
        anchor_dtype: dtype of the copy that "init" keeps; by default that of the parameters.
            `jnp.bfloat16` halves its memory, and is exact for weights that were published in
            it. Others it rounds, by up to 2^-8 of each, and radii are about the rounded ones.

    Returns:
        A transformation whose `update` needs `params`. Its state is an `FTPState`.

    Raises:
        ValueError, TypeError: in the factory for arguments out of range, in `init` for
            patterns that match nothing, in `update` for trees that do not fit.

    Examples:
        >>> import jax.numpy as jnp, optax, tpgm_jax
        >>> pretrained = {"kernel": jnp.zeros((2, 2))}
        >>> grads = {"kernel": jnp.full((2, 2), -1.0)}
        >>> tx = tpgm_jax.ftp(optax.sgd(0.1))  # which alone would move 0.3 in 3 steps
        >>> params, state = pretrained, tx.init(pretrained)
        >>> for _ in range(3):
        ...     updates, state = tx.update(grads, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> {name: round(r, 3) for name, r in tpgm_jax.radii(state, params).items()}
        {'kernel': 0.016}
        >>> print(params["kernel"].round(3))
        [[0.008 0.008]
         [0.008 0.008]]

    References:
        Tian et al., "Fast Trainable Projection for Robust Fine-Tuning", NeurIPS 2023,
        https://arxiv.org/abs/2310.19182
    """
    base = with_extra_args(base_optimizer, "base_optimizer")
    radius_base = _radii.optimizer(radius_optimizer)
    check_norm(norm)
    check_fraction(k, "k", schedule=True)
    check_positive(initial_radius, "initial_radius")
    check_choice(memory, MEMORY, "memory")
    check_anchor(anchor, anchor_dtype)
    check_unit(unit, anchor)
    full = memory == "full"
    if exact_gradient and not full:
        raise ValueError(
            "`exact_gradient` needs `memory='full'`: which rows were outside the ball before they "
            "were projected can not be told from where they are now."
        )

    def init_fn(params: optax.Params) -> FTPState:
        parts = layout(params, exclude, axes)
        radii = _radii.full(parts, 0.0, _radii.radii_dtype(params, parts))
        return FTPState(
            step=jnp.zeros([], jnp.int32),
            base_state=base.init(params),
            anchor=_anchor.held(params, parts, anchor, anchor_dtype),
            radii=radii,
            radius_state=radius_base.init(radii),
            displacement=_anchor.zeros(params, parts) if full else _anchor.holes(params),
            layers=jnp.array(parts.layers, jnp.int32),
            skipped=jnp.zeros([], jnp.int32),
        )

    def update_fn(updates, state, params=None, **extra_args):
        params = check_params(params, "ftp")
        parts = layout(params, exclude, axes)
        check_trees(
            updates, params, state, parts, "ftp", anchor=anchor == "init", displacement=full
        )
        whole_w0 = _anchor.used(anchor, state.anchor, extra_args.get("anchor"), params, parts)

        dtype, first = state.radii.dtype, state.step == 0
        g, w, w0 = (parts.select(tree) for tree in (updates, params, whole_w0))
        r_previous = _radii.spread(state.radii, parts, w)
        stored = parts.select(state.displacement) if full else []
        if full:
            previous = kept([on_device(x) for x in stored], w, w0, parts, norm)
        else:
            previous = recovered(w, w0, r_previous, first, parts, norm)
        h = hyper_gradient(g, previous, r_previous, exact_gradient, parts, norm)
        push = _radii.gather(h, parts, dtype)
        # A product with NaN or infinity is never finite, so that the gradients that are in `h` need
        # no pass of their own. Floors and units join, so that devices sum all of them in one go.
        pairs = zip(previous.floor, parts.tensors, strict=True)
        floors = [jnp.sum(x, axis=tensor.rows, keepdims=True) for x, tensor in pairs]
        scale = units(unit, w0, parts, norm, dtype)
        stage = jnp.concatenate([push, _radii.gather(floors, parts, dtype), scale])
        # Of rows inside the ball, though, the exact gradient has none.
        unseen = g if exact_gradient else []
        finite = all_finite([stage, *unseen, *parts.leave(updates)])

        # All that follows waits for `finite`, and so for the last use of the old displacement: XLA
        # then writes the new one in its place, where it would copy both (on CPU, a quarter
        # of the step's time), and sums over devices together what belongs to the same stage.
        base_updates, base_state = base.update(
            where(finite, updates, 0.0), state.base_state, params, **extra_args
        )
        u = finite_or_zero(finite, parts.select(base_updates))
        d = [x + y.astype(x.dtype) for x, y in zip(previous.start, u, strict=True)]
        if full:
            d = where(finite, d, previous.c)
        w_plus_u = candidate(base_updates, params, whole_w0, parts, norm, d)

        push = jnp.where(push > 0, (k(state.step) if callable(k) else k) * push, push)
        # The compact memory takes any displacement for a projected one, even the first.
        push = jnp.where(first, 0.0, push)
        initial = jnp.asarray(initial_radius, dtype) * scale
        learned, radius_state, taken = _radii.descend(
            radius_base,
            push.astype(dtype),
            _radii.where_first(first, radius_base.init(initial / scale), state.radius_state),
            jnp.where(first, initial, state.radii),
            scale,
        )
        # The projection does without the upper clip, beyond which a radius constrains nothing: it
        # would have all leaves wait for each other's norms.
        learned = jnp.where(first, initial, jnp.maximum(learned, _radii.SMALLEST))
        largest = w_plus_u.largest(dtype) + EPSILON
        r = _radii.spread(learned, parts, w)
        if full:
            c = [beside(x.astype(old.dtype), old) for x, old in zip(d, stored, strict=True)]
            displacements = parts.replace(state.displacement, c)
        else:
            r = [jnp.maximum(*x) for x in zip(r, previous.floor, strict=True)]
            displacements = state.displacement
        radii = jnp.where(first, initial, jnp.minimum(learned, largest))

        projected = w_plus_u.project(r)
        return parts.replace(projected, where(finite, parts.select(projected), 0.0)), FTPState(
            step=jnp.where(finite, optax.safe_increment(state.step), state.step),
            base_state=base_state,
            anchor=state.anchor,
            radii=where(finite, radii, state.radii),
            radius_state=where(finite, radius_state, state.radius_state),
            displacement=displacements,
            layers=state.layers,
            skipped=jnp.where(finite & taken, state.skipped, optax.safe_increment(state.skipped)),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
