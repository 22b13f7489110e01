"""Training many runs at once, as one compiled program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from examples.digits.data import Split
from examples.digits.models import Apply, cross_entropy

# Maps a learning rate, here a schedule, to an optimizer.
MakeOptimizer = Callable[[Any], optax.GradientTransformation]


def shuffled(rng: np.random.Generator, examples: int, steps: int, batch: int) -> np.ndarray:
    """Rows of each batch, `[steps, batch]`: every example once in each epoch."""
    epochs = -(-steps * batch // examples)
    order = np.concatenate([rng.permutation(examples) for _ in range(epochs)])
    return order[: steps * batch].reshape(steps, batch).astype(np.int32)


def train(
    apply: Apply,
    params: optax.Params,
    make_optimizer: MakeOptimizer,
    learning_rates: np.ndarray,
    data: Split,
    batches: np.ndarray,
    *,
    held_out: Split | None = None,
    held_out_batches: np.ndarray | None = None,
    progress: Callable[[int], Any] = lambda steps: None,
) -> tuple[optax.Params, optax.OptState]:
    """Trains from `params`, once for each learning rate and order of the batches.

    The learning rate falls to 0 along a cosine. With held-out data, the optimizer receives
    `held_out_loss`, the loss on a held-out batch. It is not computed if the optimizer ignores it.

    Args:
        apply: the network.
        params: initial parameters of every run.
        make_optimizer: maps a schedule to an optimizer.
        learning_rates: `[runs]`, at the first step.
        data: the training data.
        batches: `[runs, steps, batch]`, rows of `data`.
        held_out: the data of `held_out_loss`.
        held_out_batches: `[runs, steps, batch]`, rows of `held_out`.
        progress: called with the number of steps since the last call.

    Returns:
        Parameters and optimizer state, every leaf with a leading axis `[runs]`.
    """
    steps = batches.shape[1]

    def optimizer(learning_rate):
        schedule = optax.cosine_decay_schedule(1.0, steps)
        tx = make_optimizer(lambda step: learning_rate * schedule(step))
        return optax.with_extra_args_support(tx)

    def loss(params, split, rows):
        images, labels = (jnp.take(x, rows, axis=0) for x in split)
        return cross_entropy(apply, params, images, labels)

    @jax.jit
    @jax.vmap
    def start(learning_rate):
        return params, optimizer(learning_rate).init(params)

    @jax.jit
    @jax.vmap
    def advance(learning_rate, carry, rows, held_out_rows):
        def step(carry, rows):
            params, state = carry
            rows, held_out_rows = rows
            grads = jax.grad(loss)(params, data, rows)
            extra = {}
            if held_out is not None:
                extra["held_out_loss"] = lambda params: loss(params, held_out, held_out_rows)
            updates, state = optimizer(learning_rate).update(grads, state, params, **extra)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, carry, (rows, held_out_rows))[0]

    carry = start(learning_rates)
    chunk = max(steps // 20, 1)  # a twentieth: often enough to see progress
    for first in range(0, steps, chunk):
        now = (slice(None), slice(first, first + chunk))
        held_out_rows = None if held_out_batches is None else held_out_batches[now]
        carry = advance(learning_rates, carry, batches[now], held_out_rows)
        jax.block_until_ready(carry)
        progress(min(chunk, steps - first))
    return carry
