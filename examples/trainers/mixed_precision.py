"""Fine-tunes with FTP in mixed precision: bfloat16 arithmetic on float32 weights.

    python -m examples.trainers.mixed_precision [--fast]

The optimizer stores and updates float32 master weights, and the loss casts them. If the weights
themselves were bfloat16, neighbouring numbers near 0.1 would be 0.0005 apart, and a row could not
keep to a smaller radius. FTP starts with radii near 0; the last printed line shows a radius of
0.001. Accuracies hardly differ here, because radii become large.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import tpgm_jax
from examples.digits.models import MLP
from examples.trainers.data import accuracies, batches, load, report

network = MLP(hidden=(256, 256))


def cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype), tree)


@jax.jit
def predict(params, images):
    """Logits. All arithmetic is in bfloat16, for parameters of any dtype."""
    return network.apply(cast(params, jnp.bfloat16), images.astype(jnp.bfloat16))


def train(params, tx, split, steps, title):
    """Trains from `params`, which become the anchor."""

    def loss(params, batch):
        # The softmax is in float32, because in bfloat16 its sum of exponentials is too coarse.
        logits = jnp.asarray(predict(params, batch.images), jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()

    @jax.jit
    def train_step(params, opt_state, batch):
        # The cast is part of the loss, so gradients have the dtype of `params`. bfloat16 has the
        # range of float32, so no loss scaling is needed.
        grads = jax.grad(loss)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    opt_state = tx.init(params)
    for batch in batches(split, steps, title):
        params, opt_state = train_step(params, opt_state, batch)
    return params, opt_state


def farthest_row(kernel, anchor, radius, dtype):
    """Distance of the farthest row after projection to `radius`, with weights of this dtype."""
    kernel, anchor = kernel.astype(dtype), anchor.astype(dtype)
    tx = tpgm_jax.project_to_anchor(radius)
    updates: Any = jax.jit(tx.update)(jnp.zeros_like(kernel), tx.init(anchor), kernel)[0]
    d = (kernel + updates).astype(jnp.float32) - anchor.astype(jnp.float32)
    return float(jnp.abs(d).sum(axis=0).max())


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Pre-trains, fine-tunes weights of both dtypes, and prints accuracies and radii."""
    task = load(arguments, __doc__)
    fresh = network.init(jax.random.key(0), task.test.images[:1])
    steps = task.pretraining_steps
    pretrained, _ = train(fresh, optax.adam(1e-3), task.printed, steps, "pre-training")

    adam = optax.adam(optax.cosine_decay_schedule(1e-2, task.steps))
    # With this unit a radius step is 1 % of the weights' size, for rows and for biases.
    tx = tpgm_jax.ftp(adam, unit="anchor")
    models, states = {"pre-trained": pretrained}, {}
    for name, dtype in {"FTP, float32": jnp.float32, "FTP, bfloat16": jnp.bfloat16}.items():
        start = cast(pretrained, dtype)
        models[name], states[name] = train(start, tx, task.train, task.steps, name)

    rows = accuracies(predict, models, task)
    radii = tpgm_jax.radii(states["FTP, float32"], pretrained)
    report(rows, radii)
    tuned = models["FTP, float32"]["params"]["layer_1"]["kernel"]
    anchor = pretrained["params"]["layer_1"]["kernel"]
    found = {name: farthest_row(tuned, anchor, 0.001, name) for name in ("float32", "bfloat16")}
    print("within a radius of 0.001:", ", ".join(f"{x:.5f} ({name})" for name, x in found.items()))
    return {"accuracies": rows, "radii": radii, "models": models, "within": found}


if __name__ == "__main__":
    main()
