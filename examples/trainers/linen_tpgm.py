"""Fine-tunes a Flax linen model with TPGM, in a `TrainState` with batch statistics and dropout.

python -m examples.trainers.linen_tpgm [--fast]
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import optax

import tpgm_jax
import tpgm_jax.linen
from examples.trainers.data import accuracies, batches, load, report


class Network(nn.Module):
    """Images `[n, 16, 16]` to logits `[n, 10]`."""

    @nn.compact
    def __call__(self, images: jax.Array, *, training: bool) -> jax.Array:
        x = images.reshape(len(images), -1)
        for i in (1, 2):
            x = nn.Dense(256, use_bias=False, name=f"hidden_{i}")(x)
            x = nn.BatchNorm(use_running_average=not training, momentum=0.95, name=f"norm_{i}")(x)
            x = nn.Dropout(0.1, deterministic=not training)(nn.relu(x))
        return nn.Dense(10, name="head")(x)


# Flax's own class drops `held_out_loss`, which TPGM needs. FTP needs no extra arguments.
class TrainState(tpgm_jax.linen.TrainState):
    batch_stats: Any


@jax.jit
def train_step(state, batch, held_out):
    def loss(params):  # in training mode
        logits, moved = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            batch.images,
            training=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.fold_in(jax.random.key(0), state.step)},
        )
        return cross_entropy(logits, batch.labels), moved["batch_stats"]

    grads, batch_stats = jax.grad(loss, has_aux=True)(state.params)

    def held_out_loss(params):  # in evaluation mode, as the model would be used
        variables = {"params": params, "batch_stats": batch_stats}
        logits = state.apply_fn(variables, held_out.images, training=False)
        return cross_entropy(logits, held_out.labels)

    # As in Flax, keywords replace fields of the state. Arguments of the optimizer go into
    # `extra_args`; an optimizer that takes none does not receive them.
    return state.apply_gradients(
        grads=grads, batch_stats=batch_stats, extra_args={"held_out_loss": held_out_loss}
    )


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@jax.jit
def predict(state, images):
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return state.apply_fn(variables, images, training=False)


def train(variables, tx, split, held_out, steps, title):
    """Trains from `variables`, which become the anchor."""
    state = TrainState.create(apply_fn=Network().apply, tx=tx, **variables)
    for batch in batches(split, steps, title):
        state = train_step(state, batch, held_out)
    return state


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Pre-trains, fine-tunes with and without TPGM, and prints accuracies and radii."""
    task = load(arguments, __doc__)
    fresh = Network().init(jax.random.key(0), task.test.images[:1], training=False)
    printed, steps = task.printed, task.pretraining_steps
    pretrained = train(fresh, optax.adam(1e-3), printed, task.held_out, steps, "pre-training")
    start = {"params": pretrained.params, "batch_stats": pretrained.batch_stats}

    adam = optax.adam(optax.cosine_decay_schedule(1e-2, task.steps))
    states = {"pre-trained": pretrained}
    # With this unit a radius step is 1 % of the weights' size, for rows and for norms' scales.
    for name, tx in {"Adam": adam, "TPGM": tpgm_jax.tpgm(adam, unit="anchor")}.items():
        states[name] = train(start, tx, task.train, task.held_out, task.steps, name)

    rows = accuracies(predict, states, task)
    radii = tpgm_jax.radii(states["TPGM"].opt_state, states["TPGM"].params)
    report(rows, radii)
    return {"accuracies": rows, "radii": radii, "states": states}


if __name__ == "__main__":
    main()
