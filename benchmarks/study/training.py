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

_compiled: dict[Any, Any] = {}


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
    importance: Any = 0.0,
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
    numbers = (jnp.float32(x) for x in (run["learning_rate"], value(run.get("setting", ""))))
    key = jax.random.key(run["seed"])
    program = trainer(net, method, exclude)
    outcome, seconds = timed(program, splits, params, state, rows, *numbers, importance, key)
    return Trained(*outcome, seconds=seconds)


@cache
def trainer(net: nn.Module, method: Method, exclude: str | None) -> Any:
    """The compiled part of `finetune`. The rate falls to 0 along a cosine."""

    def loss(params: Any, split: Split, rows: jax.Array) -> jax.Array:
        images, labels = (jnp.take(x, rows, axis=0) for x in split)
        return cross_entropy(net.apply, params, images, labels)

    def run(splits: Any, params: Any, state: Any, rows: Any, rate: Any, *own: Any) -> Any:
        (train, radius), (value, importance, key) = splits, own
        steps, batch = rows[0].shape
        cosine = optax.cosine_decay_schedule(1.0, steps)

        # The remainder, because a state to go on from has counted steps.
        def schedule(step: Any) -> Any:
            return rate * cosine(step % steps)

        epoch = -(-len(train.labels) // batch)
        made = method(Hyper(schedule, value, importance, key, epoch, exclude))
        tx = optax.with_extra_args_support(made)

        def step(carry: Any, rows: Any) -> tuple[Any, None]:
            def held_out_loss(params: Any) -> jax.Array:
                return loss(params, radius, rows[1])  # only TPGM computes it

            params, mean, state, count = carry
            grads = jax.grad(loss)(params, train, rows[0])
            updates, state = tx.update(grads, state, params, held_out_loss=held_out_loss)
            params = optax.apply_updates(params, updates)
            count += 1
            mean = jax.tree.map(lambda m, p: m + (p - m) / count, mean, params)
            return (params, mean, state, count), None

        carry = params, params, tx.init(params) if state is None else state, 0.0
        return jax.lax.scan(step, carry, rows)[0][:3]

    # The recorded runs had an axis for several runs. Without the axis, XLA rounds differently.
    @jax.jit
    def run_one(splits: Any, *args: Any) -> Any:
        stacked = jax.tree.map(lambda x: jnp.expand_dims(x, 0), args)
        outcome = jax.vmap(lambda *args: run(splits, *args))(*stacked)
        return jax.tree.map(lambda x: x[0], outcome)

    return run_one


def timed(program: Any, *args: Any) -> tuple[Any, float]:
    """The result, and the seconds without compiling."""
    shapes = tuple(jnp.shape(x) for x in jax.tree.leaves(args))
    if (program, shapes) not in _compiled:
        _compiled[program, shapes] = program.lower(*args).compile()
    started = time.perf_counter()
    result = jax.block_until_ready(_compiled[program, shapes](*args))
    return result, time.perf_counter() - started
