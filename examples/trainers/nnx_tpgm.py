"""Fine-tunes a Flax NNX model with TPGM: `nnx.Optimizer`, BatchNorm, Dropout, `held_out_loss`.

python -m examples.trainers.nnx_tpgm [--fast]
"""

from collections.abc import Sequence
from typing import Any

import jax
import optax
from flax import nnx

import tpgm_jax
from examples.trainers.data import accuracies, batches, load, report


class Network(nnx.Module):
    """Images `[n, 16, 16]` to logits `[n, 10]`."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden_1 = nnx.Linear(256, 256, use_bias=False, rngs=rngs)
        self.norm_1 = nnx.BatchNorm(256, momentum=0.95, rngs=rngs)
        self.hidden_2 = nnx.Linear(256, 256, use_bias=False, rngs=rngs)
        self.norm_2 = nnx.BatchNorm(256, momentum=0.95, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(256, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = images.reshape(len(images), -1)
        x = self.dropout(nnx.relu(self.norm_1(self.hidden_1(x))))
        x = self.dropout(nnx.relu(self.norm_2(self.hidden_2(x))))
        return self.head(x)


def loss(model, batch):
    logits = model(batch.images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()


def in_evaluation_mode(model):
    """A view of the model that uses the stored statistics and no dropout."""
    return nnx.view(model, deterministic=True, use_running_average=True)


@nnx.jit
def train_step(model, optimizer, batch, held_out):
    # In training mode, which updates the batch statistics and the dropout key of `model`.
    grads = nnx.grad(loss)(model, batch)

    # TPGM evaluates parameters on held-out data in evaluation mode, as the model would be used. The
    # statistics of training do not change. In training mode Flax would raise an error.
    graph, _, rest = nnx.split(in_evaluation_mode(model), nnx.Param, ...)

    def held_out_loss(params):
        return loss(nnx.merge(graph, params, rest), held_out)

    optimizer.update(model, grads, held_out_loss=held_out_loss)


@nnx.jit
def predict(model, images):
    return in_evaluation_mode(model)(images)


def train(model, tx, split, held_out, steps, title):
    """Trains a copy of the model; the anchor of its optimizer is the original."""
    model = nnx.clone(model)
    # With this, an optimizer that takes no `held_out_loss` ignores it.
    optimizer = nnx.Optimizer(model, optax.with_extra_args_support(tx), wrt=nnx.Param)
    for batch in batches(split, steps, title):
        train_step(model, optimizer, batch, held_out)
    return model, optimizer


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Pre-trains, fine-tunes with and without TPGM, and prints accuracies and radii."""
    task = load(arguments, __doc__)
    fresh, steps = Network(nnx.Rngs(0)), task.pretraining_steps
    pretrained, _ = train(
        fresh, optax.adam(1e-3), task.printed, task.held_out, steps, "pre-training"
    )

    adam = optax.adam(optax.cosine_decay_schedule(1e-2, task.steps))
    # With this unit a radius step is 1 % of the weights' size, for rows and for norms' scales.
    optimizers = {"Adam": adam, "TPGM": tpgm_jax.tpgm(adam, unit="anchor")}
    tuned = {
        name: train(pretrained, tx, task.train, task.held_out, task.steps, name)
        for name, tx in optimizers.items()
    }

    models = {"pre-trained": pretrained} | {name: model for name, (model, _) in tuned.items()}
    rows = accuracies(predict, models, task)
    model, optimizer = tuned["TPGM"]
    radii = tpgm_jax.radii(optimizer.opt_state, nnx.state(model, nnx.Param))
    report(rows, radii)
    return {"accuracies": rows, "radii": radii, "models": models, "optimizer": optimizer}


if __name__ == "__main__":
    main()
