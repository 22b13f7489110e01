"""Fine-tunes an Equinox model with FTP.

python -m examples.trainers.equinox_ftp [--fast]
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import optax

import tpgm_jax
from examples.trainers.data import accuracies, batches, load, report


def make_model(key):
    """Images `[256]` to logits `[10]`."""
    return eqx.nn.MLP(in_size=256, out_size=10, width_size=256, depth=2, key=key)


def parameters(model):
    """The trained arrays, without activation functions, for the optimizer."""
    return eqx.filter(model, eqx.is_inexact_array)


def logits(model, images):
    return jax.vmap(model)(images.reshape(len(images), -1))


def loss(model, batch):
    predicted = logits(model, batch.images)
    return optax.softmax_cross_entropy_with_integer_labels(predicted, batch.labels).mean()


@eqx.filter_jit
def train_step(model, opt_state, tx, batch):
    grads = eqx.filter_grad(loss)(model, batch)
    updates, opt_state = tx.update(grads, opt_state, parameters(model))
    return eqx.apply_updates(model, updates), opt_state


def train(model, tx, split, steps, title):
    """Trains from `model`, which becomes the anchor."""
    opt_state = tx.init(parameters(model))
    for batch in batches(split, steps, title):
        model, opt_state = train_step(model, opt_state, tx, batch)
    return model, opt_state


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Pre-trains, fine-tunes with and without FTP, and prints accuracies and radii."""
    task = load(arguments, __doc__)
    fresh = make_model(jax.random.key(0))
    pretrained, _ = train(
        fresh, optax.adam(1e-3), task.printed, task.pretraining_steps, "pre-training"
    )

    adam = optax.adam(optax.cosine_decay_schedule(1e-2, task.steps))
    # With this unit a radius step is 1 % of the weights' size, for rows and for biases.
    ftp = tpgm_jax.ftp(adam, unit="anchor")
    plain, _ = train(pretrained, adam, task.train, task.steps, "Adam")
    tuned, opt_state = train(pretrained, ftp, task.train, task.steps, "FTP")

    models = {"pre-trained": pretrained, "Adam": plain, "FTP": tuned}
    predict = eqx.filter_jit(logits)
    rows = accuracies(predict, models, task)
    radii = tpgm_jax.radii(opt_state, parameters(tuned))
    report(rows, radii)
    return {"accuracies": rows, "radii": radii, "models": models, "opt_state": opt_state}


if __name__ == "__main__":
    main()
