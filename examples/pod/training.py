"""The optimizers, and the compiled functions: start, step and evaluation."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import optax

import tpgm_jax
from examples.pod import model, sharding
from examples.pod.settings import Settings


class State(NamedTuple):
    """Parameters and optimizer state: carried from step to step, and saved in checkpoints."""

    params: optax.Params
    opt_state: optax.OptState


class Program(NamedTuple):
    """The compiled functions of one run.

    Attributes:
        fresh: returns new parameters.
        start: from parameters, which it donates, the first `State`.
        step: from `(state, tokens, held_out)` the next state and the loss. Donates `state`.
        abstract: a `State` of shapes, dtypes and shardings, to restore a checkpoint into.
    """

    fresh: Callable[[], optax.Params]
    start: Callable[[optax.Params], State]
    step: Callable[[State, jax.Array, jax.Array], tuple[State, jax.Array]]
    abstract: State


def optimizer(
    method: str, learning_rate: float, steps: int, every: int = 1
) -> optax.GradientTransformationExtraArgs:
    """Gradient clipping, then AdamW with a cosine schedule, which FTP and TPGM wrap.

    Args:
        method: one of `METHODS`.
        learning_rate: learning rate of the first step.
        steps: number of steps, after which the learning rate is 0.
        every: updates between TPGM's radius steps.
    """
    schedule = optax.cosine_decay_schedule(learning_rate, steps)
    # Without weight decay, because it pulls to 0 and not to the anchor.
    tx = optax.adamw(schedule, weight_decay=0.0)
    if method == "ftp":
        tx = tpgm_jax.ftp(tx, axes=model.AXES)
    elif method == "tpgm":
        tx = tpgm_jax.tpgm(tx, every=every, axes=model.AXES)
    # Clipping comes first, because FTP learns radii from the gradients that it receives.
    return optax.with_extra_args_support(optax.chain(optax.clip_by_global_norm(1.0), tx))


def compiled(
    settings: Settings, tx: optax.GradientTransformationExtraArgs, mesh: jax.sharding.Mesh
) -> Program:
    """The jitted functions of a run. They keep the shardings of `sharding`."""
    init = partial(model.init, settings)
    shapes = jax.eval_shape(init)
    params = sharding.of_params(shapes, mesh)
    state = State(params, sharding.of_state(tx, shapes, params))

    # Everything is jitted, so that each device makes its own part of an array and no host holds a
    # whole one. Arrays made outside `jit` would also belong to a single process.
    fresh = jax.jit(init, out_shardings=params)
    start = jax.jit(
        lambda params: State(params, tx.init(params)), out_shardings=state, donate_argnums=0
    )
    return Program(
        fresh, start, make_step(settings, tx, state), jax.eval_shape(start, fresh.eval_shape())
    )


def make_step(
    settings: Settings, tx: optax.GradientTransformationExtraArgs, shardings: State
) -> Callable[[State, jax.Array, jax.Array], tuple[State, jax.Array]]:
    """The training step."""

    @partial(jax.jit, donate_argnums=0, out_shardings=(shardings, None))
    def step(state, tokens, held_out):
        loss = partial(model.loss, settings=settings)
        value, grads = jax.value_and_grad(loss)(state.params, tokens)
        # TPGM learns its radii from this. The others ignore it, and then it is not computed.
        extra = {"held_out_loss": loss, "held_out_batch": held_out}
        updates, opt_state = tx.update(grads, state.opt_state, state.params, **extra)
        return State(optax.apply_updates(state.params, updates), opt_state), value

    return step


def make_evaluation(settings: Settings) -> Callable[[optax.Params, jax.Array], Any]:
    """The loss alone."""
    return jax.jit(partial(model.loss, settings=settings))
