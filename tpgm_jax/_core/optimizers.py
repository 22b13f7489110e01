"""The optimizers that users hand to the factories: of the parameters and of the radii."""

from typing import Any

import jax
import optax

# The published optimizer of the radii: a step of 1e-2 in units of the norm. It is built once, so
# that JAX finds the programs that it compiled for it.
_PUBLISHED = optax.adam(1e-2)


def with_extra_args(optimizer: Any, argument: str) -> optax.GradientTransformationExtraArgs:
    """`optimizer`, made to accept extra arguments."""
    if not (callable(getattr(optimizer, "init", None)) and hasattr(optimizer, "update")):
        got = repr(optimizer)
        if len(got) > 80:  # such as a whole model
            got = f"an object of type {type(optimizer).__name__}"
        raise TypeError(
            f"`{argument}` must be an optax transformation, such as `optax.adamw(1e-4)`; got {got}."
        )
    return optax.with_extra_args_support(optimizer)


def radius_optimizer_or_default(optimizer: Any) -> optax.GradientTransformationExtraArgs:
    """The radius optimizer that the user gave, or else the published one."""
    return with_extra_args(_PUBLISHED if optimizer is None else optimizer, "radius_optimizer")


def init_base(
    base: optax.GradientTransformation, params: optax.Params, caller: str
) -> optax.OptState:
    """The state of the base optimizer, if the projection can keep what users evaluate in the ball.

    Raises:
        ValueError: the base optimizer evaluates other weights than it returns, or returns weights
            only to probe the loss there.
    """
    state = base.init(params)
    if optax.tree.get_all_with_path(state, "ScheduleFreeState"):
        raise ValueError(
            f"`{caller}` cannot wrap `optax.contrib.schedule_free`, because `{caller}` constrains "
            "the weights at which gradients are taken, and `schedule_free_eval_params` computes "
            "others from them: use its base optimizer with a schedule, such as "
            f"`{caller}(optax.adamw(optax.cosine_decay_schedule(1e-4, steps)))`."
        )
    # In opaque mode SAM probes inside one update, and has no cache.
    if any(sam.cache is not None for _, sam in optax.tree.get_all_with_path(state, "SAMState")):
        raise ValueError(
            f"`{caller}` cannot wrap `optax.contrib.sam` as it is, because it returns steps uphill "
            "that only probe the loss: pass `opaque_mode=True` to `sam`, and `grad_fn` to `update`."
        )
    return state


def check_optimizer_state(expected: Any, received: Any, argument: str) -> None:
    """Raises if a state does not have the structure of the state that the optimizer makes."""
    if jax.tree.structure(received) != jax.tree.structure(expected):
        raise ValueError(
            f"the state was made with another `{argument}`, because its structure is "
            f"{jax.tree.structure(received)}, where {jax.tree.structure(expected)} is expected: "
            "build the transformation with the optimizer of the checkpoint, or call `init` again."
        )
