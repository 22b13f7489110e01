"""The methods: plain Adam, two optimizers around it, and two corrections after training."""

import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

import tpgm_jax
from examples.digits.data import Split
from examples.digits.models import Apply, cross_entropy
from examples.digits.training import MakeOptimizer

# All methods fine-tune with Adam. They differ in the optimizer around it.
OPTIMIZERS: dict[str, MakeOptimizer] = {
    "adam": optax.adam,
    "ftp": lambda learning_rate: tpgm_jax.ftp(optax.adam(learning_rate)),
    "tpgm": lambda learning_rate: tpgm_jax.tpgm(optax.adam(learning_rate)),
}

LABELS = {
    "adam": "plain Adam",
    "wise_ft": "WiSE-FT 0.5",
    "tpgm_post_hoc": "TPGM post hoc",
    "tpgm": "TPGM",
    "ftp": "FTP",
}


def wise_ft(tuned: optax.Params, anchor: optax.Params) -> optax.Params:
    """WiSE-FT at 0.5: the mean of fine-tuned and pre-trained parameters."""
    return jax.tree.map(lambda w, w0: (w + w0) / 2, tuned, anchor)


def tpgm_post_hoc(
    apply: Apply, tuned: optax.Params, anchor: optax.Params, held_out: Split, steps: int
) -> tpgm_jax.FittedRadii:
    """TPGM on runs that Adam has finished, all at once.

    The runs are stacked along a leading axis, which `axes` declares to be layers, so each run has
    its own radii. The held-out losses are summed, so the radii of one run do not affect another's,
    and the result equals one `fit_radii` for each run.

    Args:
        apply: the network.
        tuned: fine-tuned parameters, every leaf `[runs, ...]`.
        anchor: pre-trained parameters.
        held_out: the data on which radii are learned, all of it at every step.
        steps: radius steps.

    Returns:
        `FittedRadii` with `params` as `tuned`, and for each name a radius for each run.
    """

    def held_out_loss(params: optax.Params, batch: Split) -> jax.Array:
        return jnp.sum(jax.vmap(lambda p: cross_entropy(apply, p, *batch))(params))

    anchors = jax.tree.map(lambda w, w0: jnp.broadcast_to(w0, w.shape), tuned, anchor)
    batches = tqdm([held_out] * steps, desc=LABELS["tpgm_post_hoc"], unit="step")
    axes = {".*": tpgm_jax.Axes(layers=0)}
    return tpgm_jax.fit_radii(held_out_loss, tuned, anchors, batches, axes=axes)
