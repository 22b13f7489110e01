"""Fine-tunes adapters (LoRA) with FTP, anchored at zero, on frozen weights.

    python -m examples.trainers.lora [--fast]

A layer `x @ W` becomes `x @ W + x @ A @ B`. `W` is frozen and in no optimizer. `B` starts at zero,
so `A @ B`, the displacement from the pre-trained model, starts at zero and has to stay small. FTP
keeps `B` near zero with `anchor="zero"`, which needs no copy. It excludes `A`, which starts at
random: if both were near zero, both gradients would vanish. For a radius `r` of `B`, and columns of
both,

    |A B_j|_1 <= r * max over k of |A_k|_1

so the product can still grow with `A`. The last printed lines show how large it became.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import tpgm_jax
from examples.trainers.data import accuracies, batches, load, report

RANK = 8


class Network(nnx.Module):
    """Images `[n, 16, 16]` to logits `[n, 10]`."""

    def __init__(self, rngs: nnx.Rngs):
        sizes = ((256, 256), (256, 256), (256, 10))
        self.layers: nnx.List[Any] = nnx.List([nnx.Linear(*size, rngs=rngs) for size in sizes])

    def __call__(self, images: jax.Array) -> jax.Array:
        x = images.reshape(len(images), -1)
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


def with_adapters(pretrained: Network) -> Network:
    """A copy with an adapter in each layer, `lora_a` random and `lora_b` zero."""
    model, rngs = nnx.clone(pretrained), nnx.Rngs(1)
    for i, linear in enumerate(model.layers):
        size = linear.in_features, RANK, linear.out_features
        model.layers[i] = nnx.LoRA(*size, base_module=linear, rngs=rngs)
    return model


def train(model, tx, kind, split, steps, title):
    """Trains the variables of one kind. Computes no gradients of the others."""
    optimizer = nnx.Optimizer(model, tx, wrt=kind)

    def loss(model, batch):
        logits = model(batch.images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()

    @nnx.jit
    def train_step(model, optimizer, batch):
        optimizer.update(model, nnx.grad(loss, argnums=nnx.DiffState(0, kind))(model, batch))

    for batch in batches(split, steps, title):
        train_step(model, optimizer, batch)
    return optimizer


@nnx.jit
def predict(model, images):
    return model(images)


def product_sizes(model: Network) -> list[float]:
    """The Frobenius norm of `A @ B` divided by the Frobenius norm of `W`, for each layer."""
    return [
        float(
            jnp.linalg.norm(layer.lora_a[...] @ layer.lora_b[...])
            / jnp.linalg.norm(layer.base_module.kernel[...])
        )
        for layer in model.layers
    ]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Pre-trains, fine-tunes with and without FTP, and prints accuracies and radii."""
    task = load(arguments, __doc__)
    pretrained = Network(nnx.Rngs(0))
    steps = task.pretraining_steps
    train(pretrained, optax.adam(1e-3), nnx.Param, task.printed, steps, "pre-training")

    # At 1e-2 the low rank alone makes adapters robust, and FTP adds nothing.
    adam = optax.adam(optax.cosine_decay_schedule(3e-2, task.steps))
    plain, near = with_adapters(pretrained), with_adapters(pretrained)
    train(plain, adam, nnx.LoRAParam, task.train, task.steps, "Adam")
    ftp = tpgm_jax.ftp(adam, exclude=r".*/lora_a", anchor="zero")
    optimizer = train(near, ftp, nnx.LoRAParam, task.train, task.steps, "FTP")

    models = {"pre-trained": pretrained, "Adam": plain, "FTP": near}
    rows = accuracies(predict, models, task)
    radii = tpgm_jax.radii(optimizer.opt_state, nnx.state(near, nnx.LoRAParam))
    report(rows, radii)
    for name in ("Adam", "FTP"):
        sizes = ", ".join(f"{size:.2f}" for size in product_sizes(models[name]))
        print(f"size of A @ B by layer, in units of W: {sizes} ({name})")
    return {"accuracies": rows, "radii": radii, "models": models, "optimizer": optimizer}


if __name__ == "__main__":
    main()
