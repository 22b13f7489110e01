"""The compiled functions of a run: start, step, evaluation."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from examples.papers.models import Network, arrays
from examples.pod import sharding

LAYOUTS = ("data", "fsdp")  # copies of the parameters on every device, or parts of them


class State(NamedTuple):
    """The arrays that steps pass on, and that checkpoints store."""

    params: optax.Params
    stats: Any
    opt_state: optax.OptState


class Batch(NamedTuple):
    """Images on the devices.

    Attributes:
        image: float32, `(batch, size, size, 3)`.
        label: int32, `(batch,)`.
        mask: bool, `(batch,)`; false for images that do not count.
    """

    image: jax.Array
    label: jax.Array
    mask: jax.Array


class Program(NamedTuple):
    """The compiled functions of one run.

    Attributes:
        start: from parameters and statistics, which it donates, the first `State`.
        step: from `(state, batch, held_out)` the next state and the loss. Donates `state`.
            `held_out` is `None` for methods that learn from the training batch alone.
        abstract: a `State` of shapes, dtypes and shardings, to restore a checkpoint into.
    """

    start: Callable[[optax.Params, Any], State]
    step: Any
    abstract: State


def cross_entropy(logits: jax.Array, batch: Batch) -> jax.Array:
    """Mean over the images that count, in nats."""
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), batch.label
    )
    return jnp.sum(losses, where=batch.mask) / jnp.maximum(jnp.sum(batch.mask), 1)


def held_out_loss(network: Network, params: optax.Params, given: tuple[Any, Batch]) -> jax.Array:
    """The loss in evaluation mode, on statistics and a batch."""
    stats, batch = given
    return cross_entropy(network.evaluate(params, stats, batch.image), batch)


def compiled(
    network: Network,
    tx: optax.GradientTransformationExtraArgs,
    mesh: jax.sharding.Mesh,
    layout: str,
    train_statistics: bool = True,
) -> Program:
    """The jitted functions of a run.

    Args:
        network: the model.
        tx: the optimizer.
        mesh: of all devices; see `examples.pod.sharding.mesh`.
        layout: one of `LAYOUTS`.
        train_statistics: normalize by the batch and update the statistics. Otherwise the model
            is in evaluation mode, so that only `tx` changes the input of the head.
    """
    params, stats = jax.eval_shape(lambda: arrays(network.make(0)))
    whole = NamedSharding(mesh, P())
    param_shardings = (
        sharding.of_params(params, mesh)
        if layout == "fsdp"
        else jax.tree.map(lambda _: whole, params)
    )
    stat_shardings = jax.tree.map(lambda _: whole, stats)
    shardings = State(
        param_shardings, stat_shardings, sharding.of_state(tx, params, param_shardings)
    )

    # Jitted, so that each device makes its own part of the optimizer's state.
    first = jax.jit(
        lambda params, stats: State(params, stats, tx.init(params)),
        out_shardings=shardings,
        donate_argnums=(0, 1),
    )

    def start(params: Any, stats: Any) -> State:
        return first(*jax.device_put((params, stats), (param_shardings, stat_shardings)))

    def loss(params: Any, stats: Any, batch: Batch) -> Any:
        if train_statistics:
            logits, stats = network.train(params, stats, batch.image)
        else:
            logits = network.evaluate(params, stats, batch.image)
        return cross_entropy(logits, batch), stats

    @partial(jax.jit, donate_argnums=0, out_shardings=(shardings, whole))
    def step(state: State, batch: Batch, held_out: Batch | None) -> tuple[State, jax.Array]:
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, stats), grads = gradient(state.params, state.stats, batch)
        extra = {}
        if held_out is not None:
            # TPGM judges the model as it would be used now, so with the newest statistics.
            extra["held_out_loss"] = lambda params: held_out_loss(
                network, params, (stats, held_out)
            )
        updates, opt_state = tx.update(grads, state.opt_state, state.params, **extra)
        return State(optax.apply_updates(state.params, updates), stats, opt_state), value

    def struct(x: Any, placed: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed)

    shapes = jax.tree.map(struct, (params, stats), (param_shardings, stat_shardings))
    return Program(start, step, jax.eval_shape(first, *shapes))


def place(program: Program, arrays: tuple[Any, Any]) -> tuple[Any, Any]:
    """Parameters and statistics, with the shardings of the run."""
    like = program.abstract.params, program.abstract.stats
    return jax.device_put(arrays, jax.tree.map(lambda x: x.sharding, like))


def on_devices(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> Batch:
    """The images of all processes, divided over all devices."""
    divided = NamedSharding(mesh, P(mesh.axis_names[0]))
    return Batch(
        *(jax.make_array_from_process_local_data(divided, batch[name]) for name in Batch._fields)
    )


def abstract_batch(size: int, batch: int, mesh: jax.sharding.Mesh) -> Batch:
    """Shapes of a batch, to compile a step without images."""
    divided = NamedSharding(mesh, P(mesh.axis_names[0]))
    shapes = ((batch, size, size, 3), jnp.float32), ((batch,), jnp.int32), ((batch,), jnp.bool_)
    structs: list[Any] = [jax.ShapeDtypeStruct(*x, sharding=divided) for x in shapes]
    return Batch(*structs)
