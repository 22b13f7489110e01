"""Fine-tunes with FTP on gradients accumulated over several batches: `optax.MultiSteps`.

    python -m examples.trainers.accumulation [--fast]

`MultiSteps` goes outermost, around clipping and FTP: both then receive the mean gradient, and the
radii change only at actual steps. TPGM works too, because `MultiSteps` passes `held_out_loss` on;
inside `optax.chain` it would drop it. But `MultiSteps` computes a whole step for every batch and
discards most of them, so TPGM's radius steps are computed for every batch too.
"""

from collections.abc import Sequence
from typing import Any

import jax
import optax

import tpgm_jax
from examples.digits.models import MLP, cross_entropy
from examples.trainers.data import BATCH, accuracies, batches, load, report

PARTS = 4  # batches in a step

network = MLP(hidden=(256, 256))


def train(params, tx, split, steps, title, size=BATCH):
    """Trains from `params`, which become the anchor."""

    @jax.jit
    def train_step(params, opt_state, batch):
        grads = jax.grad(lambda params: cross_entropy(network.apply, params, *batch))(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state  # zeros, between the steps

    opt_state = tx.init(params)
    for batch in batches(split, steps, title, size):
        params, opt_state = train_step(params, opt_state, batch)
    return params, opt_state


def accumulated(optimizer):
    """Clips and steps once for `PARTS` batches."""
    inner = optax.chain(optax.clip_by_global_norm(1.0), optimizer)
    return optax.MultiSteps(inner, every_k_schedule=PARTS)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Pre-trains, fine-tunes with and without FTP, and prints accuracies and radii."""
    task = load(arguments, __doc__)
    fresh = network.init(jax.random.key(0), task.test.images[:1])
    steps = task.pretraining_steps
    pretrained, _ = train(fresh, optax.adam(1e-3), task.printed, steps, "pre-training")

    # Schedules count steps, one for every `PARTS` batches.
    adam = optax.adam(optax.cosine_decay_schedule(1e-2, task.steps))
    # With this unit a radius step is 1 % of the weights' size, for rows and for biases.
    optimizers = {"Adam": adam, "FTP": tpgm_jax.ftp(adam, unit="anchor")}
    models, states = {"pre-trained": pretrained}, {}
    for name, optimizer in optimizers.items():
        tx, parts = accumulated(optimizer), PARTS * task.steps
        models[name], states[name] = train(
            pretrained, tx, task.train, parts, name, size=BATCH // PARTS
        )

    predict = jax.jit(network.apply)
    rows = accuracies(predict, models, task)
    radii = tpgm_jax.radii(states["FTP"], pretrained)
    report(rows, radii)
    return {"accuracies": rows, "radii": radii, "models": models, "states": states}


if __name__ == "__main__":
    main()
