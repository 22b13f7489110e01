"""One radius step on held-out data, for `tpgm` and `fit_radii`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tpgm_jax._core import radii as _radii
from tpgm_jax._core.ball import wide_dtype
from tpgm_jax._core.problem import Problem


def radius_step(
    loss_at: Callable[[list[jax.Array]], jax.Array],
    problem: Problem,
    sizes: list[jax.Array],
    radii: jax.Array,
    radius_state: optax.OptState,
    optimizer: optax.GradientTransformationExtraArgs,
    unit_size: jax.Array,
    axis_name: str | Sequence[str] | None = None,
) -> tuple[jax.Array, jax.Array, optax.OptState, jax.Array]:
    """`r = clip(r, 1e-8, max over rows of N(c))`, and then `r = r - adam(d/dr loss_at(r))`.

    Args:
        loss_at: the held-out loss of the parameters that are projected with stacks of radii `r`.
        problem: with the layout.
        sizes: stacks of `N(c)`.
        radii: `[G]`.
        radius_state: state of `optimizer`.
        optimizer: of the radii.
        unit_size: `[G]`, the unit in which it measures radii.
        axis_name: axes of `shard_map` or `pmap` to average over.

    Returns:
        The loss before the step; radii; state of the optimizer; whether the step was taken.
    """

    def average(x: jax.Array) -> jax.Array:
        return x if axis_name is None else jax.lax.pmean(x, axis_name)

    # Average both the loss and the gradient. Under `shard_map`, JAX already sums gradients over
    # devices, so the loss must be a mean. Under `pmap` it does not: each device differentiates its
    # own loss, so the gradient must be averaged too.
    r = problem.clip(radii, sizes)
    loss, slopes = jax.value_and_grad(lambda r: average(loss_at(r)))(r)
    gradient = average(problem.gather(slopes))
    clipped = problem.gather(r)
    return loss, *_radii.descend(optimizer, gradient, radius_state, clipped, unit_size)


def check_held_out_loss(held_out_loss: Any) -> Callable[..., jax.Array]:
    """`held_out_loss` with a checked result, in float32 or wider, so that half precision does not
    round its gradient away."""
    if held_out_loss is None:
        raise ValueError(
            "`tpgm` learns its radii on held-out data, so `update` needs `held_out_loss`: call "
            "`update(grads, state, params, held_out_loss=lambda params: ...)`. If you did, a "
            "wrapper dropped it: `optax.MultiSteps` inside `optax.chain` (put it outermost), "
            "`optax.lookahead`, `split_real_and_imaginary` and linen's "
            "`TrainState.apply_gradients` (use `tpgm_jax.linen.TrainState`) do. `value_fn` goes to "
            "the base optimizer."
        )
    if not callable(held_out_loss):
        raise TypeError(
            "`held_out_loss` must be a function of the parameters that returns the held-out loss; "
            f"got {type(held_out_loss).__name__}."
        )

    def checked(params: optax.Params, *batch: Any) -> jax.Array:
        try:
            return _as_scalar(held_out_loss(params, *batch))
        except Exception as error:
            if any(map(_is_placeholder, jax.tree.leaves(params, is_leaf=_is_placeholder))):
                error.add_note(
                    "`held_out_loss` got parameters with placeholders (`optax.MaskedNode`), "
                    "because `optax.partition` or `optax.masked` passes `tpgm` a part of the tree. "
                    "Take `tpgm` out of it, and `exclude` the other leaves: they then get the base "
                    "optimizer's update, and `held_out_loss` gets the whole tree."
                )
            elif type(params).__module__.startswith("flax.nnx"):
                error.add_note(
                    "`held_out_loss` got the parameters, an `nnx.State`, and not the model. With "
                    "`graph, _, rest = nnx.split(model, nnx.Param, ...)` before the update, the "
                    "model is `nnx.merge(graph, params, rest)`."
                )
            raise

    return checked


def _is_placeholder(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _as_scalar(value: Any) -> jax.Array:
    if not hasattr(value, "shape") and not isinstance(value, int | float):
        raise TypeError(
            "`held_out_loss` must return one number; got "
            f"{type(value).__name__}. Return the loss alone, without auxiliary outputs."
        )
    if jnp.shape(value) != ():
        raise ValueError(
            "`held_out_loss` must return one number; got an array of shape "
            f"{jnp.shape(value)}. Take its mean."
        )
    # A sum over a tree without leaves is the Python number 0.
    value = jnp.asarray(float(value) if isinstance(value, int) else value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            f"`held_out_loss` returned a number of {value.dtype}, from which no radius can be "
            "learned, because it has no gradient: return a differentiable loss, such as the cross "
            "entropy instead of a count of errors."
        )
    return value.astype(wide_dtype(value))


def check_batches(batches: Any, steps: Any) -> None:
    """Every array of `batches` must have a leading axis of size `steps`, if that is known."""
    for leaf in jax.tree.leaves(batches):
        shape = jnp.shape(leaf)
        if not shape or (isinstance(steps, int) and shape[0] != steps):
            raise ValueError(
                f"`held_out_batch` has an array of shape {shape}, but with `steps={steps}` every "
                "array needs a leading axis of that size, one batch for each radius step: stack "
                "the batches."
            )


def batch_at(batches: Any, i: jax.Array) -> Any:
    """The batch of radius step `i`."""
    return jax.tree.map(lambda x: jnp.asarray(x)[i], batches)
