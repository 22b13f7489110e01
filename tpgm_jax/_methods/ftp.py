"""FTP: learn the radii from the training gradient, one projection behind.

The loss gradient `g_t` is taken at the parameters that the previous step's projection made. So its
product with the derivative of that projection in the radius is the derivative of the loss in the
radius. No additional forward or backward pass is needed.
"""

from __future__ import annotations  # so that `help` shows names, and not what they expand to

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tpgm_jax._core import checks
from tpgm_jax._core import displacement as _displacement
from tpgm_jax._core import radii as _radii
from tpgm_jax._core.anchor import empty_like, zeros_like
from tpgm_jax._core.ball import EPSILON
from tpgm_jax._core.finite import all_finite, select, zero_unless
from tpgm_jax._core.names import Nothing
from tpgm_jax._core.optimizers import init_base, radius_optimizer_or_default, with_extra_args
from tpgm_jax._core.problem import Problem, initial_fields, initial_radii, make_problem
from tpgm_jax._core.spec import AnchorSource, AxesSpec, Exclude, Memory, Norm, Options, Unit


class FTPState(NamedTuple):
    """State of `ftp`.

    Attributes:
        step: updates made since `init` or `set_anchor`, int32 of shape `()`.
        base_state: state of the wrapped optimizer.
        anchor: the parameters given to `init`; placeholders for leaves that are not constrained,
            and for all leaves if the anchor comes from elsewhere.
        radii: `[G]`, one for each group, in units of `norm`; zeros until the first update.
        row_norms: `N(c)`, how far each row would have gone from its anchor in the last step, before
            the projection. One array `[k, ...]` for each kind of `k` equal leaves.
        anchor_norms: `N(W0)` of each row, like `row_norms`; a placeholder for `memory="full"`.
        radius_state: state of the optimizer of `radii`.
        unit_size: `[G]`, the size of the anchor, the unit of the radius optimizer; a placeholder
            for `unit="norm"`.
        displacement: `c`, how far the last step would have gone from the anchor. Shaped
            like the parameters; placeholders for leaves that are not constrained, and for all
            leaves with `memory="compact"`.
        skipped: number of steps skipped because the gradient, or `<g, c>`, was not finite, plus
            radius steps skipped because the radius optimizer would have overflowed; int32 of
            shape `()`.
        spec: how the state was made: norm, unit, memory, rows, layers. Static.
        fingerprint: checksums of `spec`, so that a checkpoint made with other options is noticed;
            uint32 of shape `(9,)`.
    """

    step: jax.typing.ArrayLike
    base_state: optax.OptState
    anchor: optax.Params
    radii: jax.Array
    row_norms: tuple[jax.Array, ...]
    anchor_norms: tuple[jax.Array, ...] | Nothing
    radius_state: optax.OptState
    unit_size: jax.Array | Nothing
    displacement: optax.Params
    skipped: jax.typing.ArrayLike
    spec: Any
    fingerprint: jax.Array


def ftp(
    base_optimizer: optax.GradientTransformation,
    *,
    k: optax.ScalarOrSchedule = 1.0,
    initial_radius: jax.typing.ArrayLike = 1e-8,
    memory: Memory = "full",
    radius_optimizer: optax.GradientTransformation | None = None,
    norm: Norm = "mars",
    unit: Unit = "norm",
    exclude: Exclude | None = None,
    axes: AxesSpec | None = None,
    anchor: AnchorSource = "init",
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

    `h` is the derivative in `r` of `<g, W0 + (r / n_{t-1}) c_{t-1}>`, the linear model of the loss
    at the projected parameters. With the default radius the first update is all but discarded, but
    the base optimizer's state advances; the radii then grow by about 1e-2 a step.

    `ftp` wraps the base optimizer, because the radii need `g` before momentum, decay and learning
    rate. Transformations of the gradient go before it in a chain. Nothing may follow it, because
    that would move `W'` again:

        optax.chain(optax.clip_by_global_norm(1.0), ftp(optax.adamw(1e-4)))

    A step is skipped if any number of its gradient is not finite. Then all parameters (the excluded
    ones too), the radii and their optimizer stay as they were, and `skipped` in the state counts
    one more. The displacement becomes `W - W0` and its norm `min(n, r)`, which gives the same next
    `h` up to the rounding of `W`: a row whose radius is below that rounding adds 0 to it. The base
    optimizer gets zeros as its gradient, so its clock and its moments advance. If the gradient is
    finite but the base optimizer's update is not, the entries that are not finite count as 0.

    The radius optimizer's state is in the state as well, so `optax.tree.get(state, "count")` finds
    two counts. Separate them by `filtering=lambda path, _: "radius_state" not in
    jax.tree_util.keystr(path)`.

    Where this differs from the authors' program:

    1. `k` is used. Their DomainNet script runs with 1 whatever `--k` is.
    2. The radii and all that they depend on are in the state, so a resumed run equals an
       uninterrupted one. Theirs restarts at `r = 1e-8`, at the anchor.
    3. The base optimizer and the radius optimizer may be any of optax's.
    4. `c_t` is summed as `(W - W0) + u`, which rounds less.

    Args:
        base_optimizer: any optax transformation. It gets the raw gradient and all extra arguments.
        k: in [0, 1], the factor of a positive `h`, which pushes a radius down: 1 is the strongest
            regularisation; at 0 no radius is ever pushed down. May be a schedule of the
            step; skipped steps do not count. A schedule's value out of range raises outside
            `jax.jit`; inside, where it cannot be checked, it counts as the nearest bound.
        initial_radius: radius at the first step, in `unit`. Positive.
        memory: "full" stores `c` in the state, an array as large as the parameters. "compact"
            recovers it from the parameters, because `W - W0` is `s c / n` with
            `s = min(n, max(r, floor))` after a projection. To keep the direction above rounding
            error, rows stay at least `floor = 256 * eps * N(W0)` (in half precision
            `eps * N(W0)`) from their anchor. Floors affect neither the radii nor the next step.
        radius_optimizer: any optax transformation; it updates the vector of radii by `h`.
            Default `optax.adam(1e-2)`, a step in `unit`.
        norm: "mars", the L1 norm of each row, where all rows of a tensor share one radius; or
            "l2", the norm of the whole tensor.
        unit: in what `radius_optimizer` measures radii. "norm": the norm itself, as published.
            "anchor": the size `U` of the anchor in that norm, computed in `init` and `set_anchor`.
            For tensors with row axes `U` is the mean of `N(W0)` over rows ("l2": `N(W0)`); for a
            bias or scale of `n` numbers it is the norm of `n` typical weights of those tensors.
            The radius optimizer then gets `r / U` and the gradient in `r / U`, so a step of 1e-2 is
            a hundredth of the weights, whatever their number. `radii` stay in units of the norm.
            Not for `anchor="zero"`.
        exclude: leaves that get the base optimizer's update unchanged, such as a new head:
            a regular expression or several, matched in full against `/`-joined paths; a
            callable `(path, leaf) -> bool`; or a tree of bools.
        axes: `Axes` by regular expression, or a callable `(path, leaf) -> Axes | None`:
            which axes index rows, and which index stacked layers. Of several patterns that match,
            the first counts. The default infers rows from names and shapes, and assumes that no
            tensor stacks layers.
        anchor: where `W0` comes from. "init": the parameters that `init` gets, copied.
            "argument": the keyword `anchor` of each `update`, for those who hold the pre-trained
            model anyway; hand `init` the pre-trained parameters too if `unit="anchor"` or
            `memory="compact"`. "zero": zeros, for adapters. The latter two store no anchor.
        anchor_dtype: dtype of the copy that "init" stores; by default the dtype of the parameters.
            `jnp.bfloat16` halves its memory, and is exact for weights that were published in
            it. Other weights are rounded, each by up to 2^-8 of its size, and distances are
            measured from the rounded ones.

    Returns:
        A transformation whose `update` needs `params`. Its state is an `FTPState`.

    Raises:
        ValueError, TypeError: in the factory for arguments out of range, in `init` for
            patterns that match nothing, in `update` for trees that do not fit and for a state that
            was made with other options.

    Examples:
        >>> import jax.numpy as jnp, optax, tpgm_jax
        >>> pretrained = {"kernel": jnp.zeros((2, 2))}
        >>> grads = {"kernel": jnp.full((2, 2), -1.0)}
        >>> tx = tpgm_jax.ftp(optax.sgd(0.1))  # sgd alone would move 0.3 in 3 steps
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
    radius_base = radius_optimizer_or_default(radius_optimizer)
    options = Options("ftp", norm, unit, exclude, axes, anchor, anchor_dtype, memory).check()
    checks.check_fraction(k, "k", schedule=True)
    checks.check_positive(initial_radius, "initial_radius")
    full = memory == "full"

    def init_fn(params: optax.Params) -> FTPState:
        fields = initial_fields(options, params)
        checks.number_at(k, fields["step"], "k", largest=1)
        layout = fields["spec"].layout
        return FTPState(
            base_state=init_base(base, params, "ftp"),
            displacement=zeros_like(params, layout) if full else empty_like(params),
            anchor_norms=_displacement.initial_anchor_norms(fields, params),
            **fields,
            **initial_radii(fields, params, radius_base),
        )

    def update_fn(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, FTPState]:
        p = make_problem(options, updates, state, params, extra_args)
        first, unit_size = state.step == 0, p.unit_size(state)

        # c_{t-1} and n_{t-1}
        norms = state.row_norms
        floors = None if full else _displacement.row_floors(p, state.anchor_norms)
        if floors is None:
            previous = _displacement.stored_displacement(p, state.displacement, norms)
        else:
            spread = p.spread(state.radii)
            previous = _displacement.recover_displacement(p, spread, norms, floors)

        # h = d/dr <g, W0 + (r / n_{t-1}) c_{t-1}>
        h = p.gather(hyper_gradient(p, previous))

        # A product with NaN or infinity is never finite, so `h` covers the gradients in it, and
        # only excluded leaves need a pass.
        finite = all_finite([h, *p.spec.layout.unconstrained(updates)])

        # u = base(g). Everything below waits for `finite`, and so for the last use of the old
        # displacement: XLA then overwrites it with the new one instead of copying both (on CPU, a
        # quarter of the step's time), and devices sum over all leaves at once.
        base_updates, u, base_state = p.base_step(base, finite, state.base_state, extra_args)

        # c_t = (W - W0) + u,  and `sizes` = N(c_t), which is n_t without the 1e-8
        c = [d + x.astype(d.dtype) for d, x in zip(previous.d, u, strict=True)]
        sizes = p.norms(c)

        # h = k * h  if h > 0
        # Cast to the dtype of the radii, because a schedule may return another.
        now = checks.number_at(k, state.step, "k", largest=1)
        h = jnp.where(h > 0, now * h, h).astype(p.radii_dtype)
        # t = 1:  r = initial_radius. The recovered `c` is not 0 at the first step, but there was no
        # projection, so `h` is.
        initial = jnp.asarray(initial_radius, h.dtype) * unit_size
        # t > 1:  r = clip(r - adam(h), 1e-8, max over rows of n_t)
        r, radius_state, taken = _radii.descend(
            radius_base,
            jnp.where(first, 0.0, h),
            _radii.restart(first, radius_base, initial / unit_size, state.radius_state),
            jnp.where(first, initial, state.radii),
            unit_size,
        )
        r = jnp.where(first, initial, jnp.maximum(r, _radii.SMALLEST))
        largest = p.gather(p.reduce_rows(jnp.max, sizes)) + EPSILON
        clipped = jnp.where(first, initial, jnp.minimum(r, largest))

        # W' = W0 + min(1, r / n_t) c_t. The upper clip is left out, because a larger radius has the
        # same projection, and because every leaf would wait for the norms of all. A skipped step
        # stores its displacement `W - W0` too, because to restore the old one takes another pass.
        ends = p.spread(r)
        if floors is not None:
            ends = [jnp.maximum(*pair) for pair in zip(ends, floors, strict=True)]
            # On GPUs XLA would divide the radii of several kinds in one kernel. All their `c` would
            # be in memory at once: twice as many temporaries.
            ends = jax.lax.optimization_barrier(ends)
        new = p.project(c, sizes, ends)
        stored = state.displacement
        # A skipped first step has projected nothing, so its `W - W0` keeps its own norms.
        after_skip = _displacement.norms_after_skip(p, norms, state.radii) if full else norms
        return p.spec.layout.replace(base_updates, zero_unless(finite, new)), state._replace(
            step=jnp.where(finite, optax.safe_increment(state.step), state.step),
            spec=p.spec,
            base_state=base_state,
            radii=select(finite, clipped, state.radii),
            row_norms=p.row_norms(sizes, after_skip, update=(finite | first) if full else finite),
            radius_state=select(finite, radius_state, state.radius_state),
            displacement=_displacement.store_displacement(p, stored, c) if full else stored,
            skipped=jnp.where(finite & taken, state.skipped, optax.safe_increment(state.skipped)),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def hyper_gradient(problem: Problem, previous: _displacement.Previous) -> list[jax.Array]:
    """The derivative in the radii of the loss's linear model at the projected parameters.

    The gradient `g_t` was taken where the previous projection ended, so the chain rule only needs
    the derivative of that projection in its radius:

        h = d/dr <g, W0 + (r / n) c> = sum over rows of <g, c> / n

    Returns:
        Stacks of one number for each group, in units of loss per unit of `norm`.
    """
    # The products are summed first, because they are as large as the parameters.
    g = [x.astype(c.dtype) for x, c in zip(problem.g, previous.c, strict=True)]
    slopes, dtype = problem.scaled_products(g, previous.c, previous.n), problem.radii_dtype

    def linear_loss(r: list[jax.Array]) -> jax.Array:
        terms = [jnp.sum(x * slope).astype(dtype) for x, slope in zip(r, slopes, strict=True)]
        return sum(terms, jnp.zeros([], dtype))

    # The loss is linear in `r`, so its derivative is the same at every radius.
    return jax.grad(linear_loss)(problem.spread(jnp.zeros(problem.spec.layout.groups, dtype)))
