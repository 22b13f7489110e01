"""Fine-tuning. One program is compiled for all runs of a method on a network."""

import time
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from benchmarks.recording import value
from benchmarks.study.methods import Hyper, Method
from benchmarks.study.pretraining import Setup
from benchmarks.study.sets import DATA_SEED
from examples.digits.data import Split, generator
from examples.digits.models import cross_entropy
from examples.digits.training import shuffled


class Trained(NamedTuple):
    """The last parameters, their mean over all steps, the optimizer's state, and the seconds."""

    params: Any
    mean: Any = None
    state: Any = None
    seconds: float = 0.0


def finetune(
    net: nn.Module,
    method: Method,
    run: Mapping[str, Any],
    params: optax.Params,
    splits: tuple[Split, Split],
    setup: Setup,
    *,
    exclude: str | None = None,
    importance: Any = None,
    order: str = "train",
    state: Any = None,
) -> Trained:
    """One training from `params`, with the learning rate, setting and seed of the row `run`.

    `splits` are the images to train on, and those to learn radii on. Equal seeds and names of the
    `order` give equal batches. `exclude` and `importance` are as in `Hyper`. With the `state` of
    an optimizer, training goes on from there.
    """
    steps, batch = setup.sizes.steps, setup.sizes.batch
    rows = [
        shuffled(generator(DATA_SEED, f"{x} {run['seed']}"), len(labels), steps, batch)
        for x, (_, labels) in zip((order, "radius"), splits, strict=True)
    ]
    epoch = -(-len(splits[0].labels) // batch)
    start, step = trainer(net, method, exclude, steps, epoch)
    numbers = (jnp.float32(x) for x in (run["learning_rate"], value(run.get("setting", ""))))
    given = *numbers, importance, jax.random.key(run["seed"])
    splits = jax.device_put(splits)
    carry = params, params, start(params, *given) if state is None else state, jnp.float32(0)
    jax.block_until_ready(step(carry, rows[0][0], rows[1][0], splits, *given))  # compiles
    started = time.perf_counter()
    for batches in zip(*rows, strict=True):
        carry = step(carry, *batches, splits, *given)
    params, mean, state, _ = jax.block_until_ready(carry)
    return Trained(params, mean, state, time.perf_counter() - started)


@cache
def trainer(net: nn.Module, method: Method, exclude: str | None, steps: int, epoch: int) -> Any:
    """The optimizer's first state, and a step. In a scan, convolutions would be slow on CPU."""
    cosine = optax.cosine_decay_schedule(1.0, steps)

    def optimizer(rate: Any, value: Any, importance: Any, key: Any) -> Any:
        # The remainder, because a state to go on from has counted steps.
        def schedule(step: Any) -> Any:
            return rate * cosine(step % steps)

        made = method(Hyper(schedule, value, importance, key, epoch, exclude))
        return optax.with_extra_args_support(made)

    def loss(params: Any, split: Split, rows: jax.Array) -> jax.Array:
        images, labels = (jnp.take(x, rows, axis=0) for x in split)
        return cross_entropy(net.apply, params, images, labels)

    @jax.jit
    def step(carry: Any, rows: Any, held_out: Any, splits: Any, *given: Any) -> Any:
        (params, mean, state, count), (train, radius) = carry, splits
        grads = jax.grad(loss)(params, train, rows)
        extra = {"held_out_loss": lambda params: loss(params, radius, held_out)}  # TPGM's alone
        updates, state = optimizer(*given).update(grads, state, params, **extra)
        params, count = optax.apply_updates(params, updates), count + 1
        return params, optax.incremental_update(params, mean, 1 / count), state, count

    return jax.jit(lambda params, *given: optimizer(*given).init(params)), step
