"""Fine-tuning and testing, each one compiled program for all runs of a method.

Runs are stacked and trained by `vmap`: on a GPU many, on CPU one, as there a batched product
takes as long as its parts. All that tells runs of a method apart is an argument.
"""

import time
from functools import cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import tpgm_jax
from benchmarks.study.methods import HEAD, Hyper, Method
from benchmarks.study.models import network
from benchmarks.study.sets import sets
from examples.digits.data import Split
from examples.digits.models import Apply, cross_entropy

_compiled: dict[Any, Any] = {}


class Start(NamedTuple):
    """What tells the runs of a method apart; every leaf may be stacked, `[runs, ...]`.

    Attributes:
        params: where the run starts, and its anchor.
        rate: the learning rate at the first step; it falls to 0 along a cosine.
        value: of the method's other choice.
        key: of the run, as data.
        rows: `[steps, batch]`, which images of the training set are in each batch.
        held_out_rows: `[steps, batch]`, likewise of the set for radii.
        importance: EWC's.
    """

    params: Any
    rate: Any
    value: Any
    key: Any
    rows: Any
    held_out_rows: Any
    importance: Any


class Finished(NamedTuple):
    """What training returns.

    Attributes:
        params: after the last step.
        mean: of the parameters after each step.
        state: the optimizer's.
    """

    params: Any
    mean: Any
    state: Any


@cache
def trainer(net: nn.Module, head: str, recipe: Method) -> Any:
    """A compiled function from stacked `Start`, and the training and radius sets, to `Finished`."""
    apply = net.apply

    def loss(params: Any, split: Split, rows: jax.Array) -> jax.Array:
        images, labels = (jnp.take(x, rows, axis=0) for x in split)
        return cross_entropy(apply, params, images, labels)

    def run(start: Start, train: Split, radius: Split) -> Finished:
        steps, batch = start.rows.shape
        cosine = optax.cosine_decay_schedule(1.0, steps)
        hyper = Hyper(
            rate=lambda step: start.rate * cosine(step),
            value=start.value,
            importance=start.importance,
            key=start.key,
            epoch=-(-len(train.labels) // batch),
            exclude=None if head == "reused" else HEAD,
        )
        tx = optax.with_extra_args_support(recipe.make(hyper))

        def step(carry: Any, rows: Any) -> tuple[Any, None]:
            params, mean, state, count = carry
            rows, held_out = rows
            grads = jax.grad(loss)(params, train, rows)
            extra = {}
            if recipe.held_out:
                extra["held_out_loss"] = lambda params: loss(params, radius, held_out)
            updates, state = tx.update(grads, state, params, **extra)
            params = optax.apply_updates(params, updates)
            count += 1
            mean = jax.tree.map(lambda m, p: m + (p - m) / count, mean, params)
            return (params, mean, state, count), None

        carry = start.params, start.params, tx.init(start.params), 0.0
        (params, mean, state, _), _ = jax.lax.scan(step, carry, (start.rows, start.held_out_rows))
        return Finished(params, mean, state)

    return jax.jit(jax.vmap(run, (0, None, None)))


@cache
def fitter(model: str, head: str, steps: int) -> Any:
    """TPGM post hoc as one compiled function from tuned parameters and anchor to the outcome.

    `tpgm_jax.fit_radii` by another road, as that compiles anew for each run: TPGM's first update,
    from the anchor, with the whole way to the tuned parameters as the step.
    """
    apply = network(model).apply
    exclude = None if head == "reused" else HEAD
    tx = tpgm_jax.tpgm(optax.identity(), steps=steps, norm="l2", exclude=exclude)

    def fit(tuned: Any, anchor: Any, radius: Split) -> tuple[Any, Any]:
        way = jax.tree.map(jnp.subtract, tuned, anchor)

        def held_out_loss(params: Any) -> jax.Array:
            return cross_entropy(apply, params, *radius)

        state = tx.init(anchor)
        updates, state = tx.update(way, state, anchor, held_out_loss=held_out_loss)
        return optax.apply_updates(anchor, updates), state

    return jax.jit(jax.vmap(fit, (0, 0, None)))


@cache
def tester(model: str, shifts: tuple[str, ...]) -> Any:
    """A function from stacked parameters to accuracies in percent, `[runs]` by set.

    Args:
        model: by name.
        shifts: the sets to test on besides `validation` and `id`.
    """
    apply: Apply = network(model).apply
    tested = {name: sets().tested[name] for name in ("validation", "id", *shifts)}
    size = max(len(split.labels) for split in tested.values())
    images = np.zeros((len(tested), size, 16, 16), np.float32)
    labels = np.full((len(tested), size), -1, np.int32)  # no answer is right for what pads
    for i, split in enumerate(tested.values()):
        images[i, : len(split.labels)], labels[i, : len(split.labels)] = split

    # One set at a time: its activations then stay in the caches.
    def correct(params: Any, images: Any, labels: Any) -> jax.Array:
        def of_set(split: Any) -> jax.Array:
            return jnp.sum(jnp.argmax(apply(params, split[0]), axis=-1) == split[1])

        return jax.lax.map(of_set, (images, labels))

    counted = jax.jit(jax.vmap(correct, (0, None, None)))

    def test(params: Any) -> list[dict[str, float]]:
        runs = np.asarray(counted(params, images, labels))
        sizes = {name: len(split.labels) for name, split in tested.items()}
        return [
            {name: 100 * int(n) / sizes[name] for name, n in zip(sizes, run, strict=True)}
            for run in runs
        ]

    return test


def timed(program: Any, *args: Any) -> tuple[Any, float]:
    """What it returns, and the seconds that takes once compiled."""
    shapes = tuple(x.shape for x in jax.tree.leaves(args))
    if (program, shapes) not in _compiled:
        _compiled[program, shapes] = program.lower(*args).compile()
    started = time.perf_counter()
    outcome = jax.block_until_ready(_compiled[program, shapes](*args))
    return outcome, time.perf_counter() - started
