"""TPGM: learn the radii on held-out data, by gradient descent through the projection.

A bi-level problem. The inner one is ordinary training, projected; the outer one finds
the radii that minimise the loss of the projected parameters on held-out data.
"""

from __future__ import annotations  # so that `help` shows names, and not what they expand to

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tpgm_jax._core import checks
from tpgm_jax._core import radii as _radii
from tpgm_jax._core.finite import all_finite, select, zero_unless
from tpgm_jax._core.names import Nothing
from tpgm_jax._core.optimizers import init_base, radius_optimizer_or_default, with_extra_args
from tpgm_jax._core.problem import initial_fields, initial_radii, make_problem
from tpgm_jax._core.spec import AnchorSource, AxesSpec, Exclude, Norm, Options, Unit
from tpgm_jax._methods.held_out import batch_at, check_batches, check_held_out_loss, radius_step


class TPGMState(NamedTuple):
    """State of `tpgm`.

    Attributes:
        step, base_state, anchor, radii, row_norms, radius_state, unit_size: as in `FTPState`.
        skipped: number of steps skipped because the gradient was not finite, plus radius steps
            skipped because the held-out gradient was not finite or the radius optimizer would have
            overflowed; int32 of shape `()`.
        spec, fingerprint: as in `FTPState`.
    """

    step: jax.typing.ArrayLike
    base_state: optax.OptState
    anchor: optax.Params
    radii: jax.Array
    row_norms: tuple[jax.Array, ...]
    radius_state: optax.OptState
    unit_size: jax.Array | Nothing
    skipped: jax.typing.ArrayLike
    spec: Any
    fingerprint: jax.Array


def tpgm(
    base_optimizer: optax.GradientTransformation,
    *,
    steps: int = 1,
    every: int = 1,
    axis_name: str | Sequence[str] | None = None,
    radius_optimizer: optax.GradientTransformation | None = None,
    norm: Norm = "mars",
    unit: Unit = "norm",
    exclude: Exclude | None = None,
    axes: AxesSpec | None = None,
    anchor: AnchorSource = "init",
    anchor_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer to keep each tensor within a radius learned on held-out data.

    Trainable Projected Gradient Method. Writing `W` for a tensor, `W0` for its value at
    `init`, `u` for the base optimizer's update and `N` for the norm,

        c = W + u - W0,    n = N(c) + 1e-8
        first update:             r = min over rows of N(c) / 2
        updates 1, 1 + every, 1 + 2 every and so on, `steps` times:
            r = clip(r, 1e-8, max over rows of N(c))
            r = r - adam(d/dr held_out_loss(W0 + min(1, r / n) * c))
        r  = clip(r, 1e-8, max over rows of N(c))
        W' = W0 + min(1, r / n) * c

    `update` takes two more keywords. `held_out_loss` is the loss on held-out data, in evaluation
    mode: a function of the parameters, or of the parameters and a batch if `held_out_batch` is
    given. Each radius step costs one forward and one backward pass of it. With `steps > 1`, the
    arrays in `held_out_batch` have a leading axis of size `steps`, one batch for each radius step.

        tx.update(grads, state, params, held_out_loss=lambda params: loss(params, held_out))
        tx.update(grads, state, params, held_out_loss=loss, held_out_batch=held_out)

    All other keywords reach the base optimizer, such as the `value_fn` of `optax.lbfgs`, which is
    the training loss.

    Wrappers that drop extra arguments cannot be used around it: `optax.MultiSteps` inside
    `optax.chain`, `optax.lookahead`, `split_real_and_imaginary`, and linen's
    `TrainState.apply_gradients` (`tpgm_jax.linen.TrainState` passes them on). Nothing may follow
    it in a chain, because that would move `W'` again.

    A step is skipped if any number of its gradient is not finite. Then all parameters (the excluded
    ones too), the radii and their optimizer stay as they were. The base optimizer gets zeros as its
    gradient, so its clock and its moments advance. A radius step is skipped if the gradient of the
    held-out loss is not finite. `skipped` in the state counts both. If the gradient is finite but
    the base optimizer's update is not, the entries that are not finite count as 0.

    The radius optimizer's state is in the state as well, so `optax.tree.get(state, "count")` finds
    two counts. Separate them by `filtering=lambda path, _: "radius_state" not in
    jax.tree_util.keystr(path)`.

    Where this differs from the authors' program:

    1. All state is in the optimizer state, so a resumed run equals an uninterrupted one.
    2. The base optimizer and the radius optimizer may be any of optax's.
    3. `c` is summed as `(W - W0) + u`, which rounds less.

    Args:
        base_optimizer: any optax transformation.
        steps: radius steps in a row.
        every: radius steps are taken in updates 1, 1 + `every`, 1 + 2 `every` and so on; the other
            updates only clip and project. Skipped steps do not count.
        axis_name: under `jax.shard_map` or `jax.pmap`, the axis or axes along which devices hold
            different held-out data. The loss and its gradient are averaged over them, so that
            radii stay equal on all devices. The caller averages `grads`, as for any optimizer.
            Under `jax.jit` with shardings it is not needed.
        radius_optimizer: any optax transformation; it updates the vector of radii by their
            gradient. Default `optax.adam(1e-2)`, a step in `unit`.
        norm: "mars", the L1 norm of each row, or "l2", the norm of the whole tensor.
        unit: in what `radius_optimizer` measures radii, "norm" or "anchor"; as for `ftp`.
        exclude: leaves that get the base optimizer's update unchanged; as for `ftp`.
        axes: which axes index rows and stacked layers; as for `ftp`.
        anchor: where `W0` comes from: "init", "argument" or "zero"; as for `ftp`.
        anchor_dtype: dtype of the copy that "init" stores; as for `ftp`.

    Returns:
        A transformation whose `update` needs `params` and `held_out_loss`. Its state is a
        `TPGMState`.

    Raises:
        ValueError, TypeError: as for `ftp`, and for a `held_out_loss` that is missing, not
            callable, or not scalar.

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
        ...         grads, state, params, held_out_loss=loss, held_out_batch=0.1)
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
    radius_base = radius_optimizer_or_default(radius_optimizer)
    options = Options("tpgm", norm, unit, exclude, axes, anchor, anchor_dtype).check()
    checks.check_count(steps, "steps")
    checks.check_count(every, "every")
    axis_names = axis_name if isinstance(axis_name, list | tuple) else (axis_name,)
    if axis_name is not None and not all(isinstance(name, str) for name in axis_names):
        raise TypeError(
            f"`axis_name` must be the name of an axis of `shard_map` or `pmap`, or several; got "
            f"{axis_name!r}."
        )

    def init_fn(params: optax.Params) -> TPGMState:
        fields = initial_fields(options, params)
        radius_fields = initial_radii(fields, params, radius_base)
        return TPGMState(base_state=init_base(base, params, "tpgm"), **fields, **radius_fields)

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        held_out_loss: Callable[..., jax.typing.ArrayLike] | None = None,
        held_out_batch: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, TPGMState]:
        p = make_problem(options, updates, state, params, extra_args)
        loss = check_held_out_loss(held_out_loss)
        one = isinstance(steps, int) and steps == 1
        if not one:
            check_batches(held_out_batch, steps)
        first, before, unit_size = state.step == 0, jnp.asarray(state.skipped), p.unit_size(state)

        # u = base(g),  c = (W - W0) + u,  N(c)
        finite = all_finite(jax.tree.leaves(updates))
        base_updates, u, base_state = p.base_step(base, finite, state.base_state, extra_args)
        c = [d + x.astype(d.dtype) for d, x in zip(p.differences(), u, strict=True)]
        sizes = p.norms(c)

        # first update:  r = min over rows of N(c) / 2
        initial = p.gather(p.reduce_rows(jnp.min, sizes)) / 2
        radii = jnp.where(first, initial, state.radii)
        start = _radii.restart(first, radius_base, radii / unit_size, state.radius_state)
        carry = radii, start, before

        # r = clip(r, 1e-8, max over rows of N(c))
        # r = r - adam(d/dr held_out_loss(W0 + min(1, r / n) * c))
        def step(i, carry):
            radii, radius_state, skipped = carry
            batch = held_out_batch if one else batch_at(held_out_batch, i)

            def loss_at(r):
                moved = p.spec.layout.replace(base_updates, p.project(c, sizes, r))
                params_at_r = optax.apply_updates(p.params, moved)
                return loss(params_at_r) if batch is None else loss(params_at_r, batch)

            _, radii, radius_state, taken = radius_step(
                loss_at, p, sizes, radii, radius_state, radius_base, unit_size, axis_name
            )
            return radii, radius_state, jnp.where(taken, skipped, optax.safe_increment(skipped))

        def learn(carry):
            # XLA on CPU runs convolutions inside a loop on one core, which takes ten times as long.
            if one:
                return step(jnp.zeros([], jnp.int32), carry)
            return jax.lax.fori_loop(0, steps, step, carry)

        # updates 1, 1 + every, 1 + 2 every and so on
        if isinstance(every, int) and every == 1:
            carry = learn(carry)
        else:
            carry = jax.lax.cond(state.step % every == 0, learn, lambda carry: carry, carry)
        radii, radius_state, skipped = carry

        # r = clip(r, 1e-8, max over rows of N(c)),  W' = W0 + min(1, r / n) * c
        r = p.clip(radii, sizes)
        new = p.project(c, sizes, r)
        return p.spec.layout.replace(base_updates, zero_unless(finite, new)), state._replace(
            step=jnp.where(finite, optax.safe_increment(state.step), state.step),
            spec=p.spec,
            base_state=base_state,
            radii=select(finite, p.gather(r), state.radii),
            row_norms=p.row_norms(sizes, state.row_norms, update=finite),
            radius_state=select(finite, radius_state, state.radius_state),
            skipped=jnp.where(finite, skipped, optax.safe_increment(before)),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
