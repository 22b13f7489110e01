"""The methods: an optimizer for training, and for two of them a correction after it.

| method | during training | after it | `strength` |
|---|---|---|---|
| `finetune` | the base optimizer | | |
| `lpft` | the base optimizer, from a trained head | | |
| `l2sp` | decay towards the anchor, before the base optimizer | | of the decay |
| `spd` | `tpgm_jax.spd` | | of the projection |
| `ftp` | `tpgm_jax.ftp` | | its `k` |
| `tpgm` | `tpgm_jax.tpgm`; nothing if it comes after training | `tpgm_jax.fit_radii` | |
| `wise` | the base optimizer | `tpgm_jax.interpolate` | share of the fine-tuned weights |
"""

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import jax
import optax

import tpgm_jax
from examples.papers.models import AXES, NEW_HEAD
from examples.papers.recipes import Recipe

PROBE_RATE = 1e-3  # of Adam, for the head alone


def schedule(rate: float, steps: int, warmup: int = 0) -> optax.Schedule:
    """A linear rise over `warmup` steps, then a cosine to 0 at `steps`."""
    warmup = min(warmup, steps // 10)  # for runs of a few steps
    return optax.warmup_cosine_decay_schedule(0.0 if warmup else rate, rate, warmup, steps)


def optimizer(recipe: Recipe, steps: int, new_head: bool) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a run.

    Args:
        recipe: the settings.
        steps: number of steps, after which the learning rate is 0.
        new_head: whether the head is random; then no method constrains it.
    """
    rates = schedule(recipe.learning_rate, steps, recipe.warmup)
    exclude = NEW_HEAD if new_head else None
    keywords: dict[str, Any] = {"exclude": exclude, "axes": AXES[recipe.model]}
    if recipe.optimizer == "adam":
        tx = optax.adamw(rates, weight_decay=recipe.weight_decay)
    else:
        decay = optax.add_decayed_weights(recipe.weight_decay)
        tx = optax.chain(decay, optax.sgd(rates, momentum=0.9, nesterov=True))
    if recipe.method == "ftp":
        tx = tpgm_jax.ftp(tx, k=recipe.strength, **keywords)
    elif recipe.method == "spd":
        tx = tpgm_jax.spd(tx, strength=recipe.strength, **keywords)
    elif recipe.method == "l2sp":
        tx = optax.chain(tpgm_jax.add_anchor_decay(recipe.strength, exclude=exclude), tx)
    elif recipe.method == "tpgm" and not recipe.post_hoc:
        tx = tpgm_jax.tpgm(tx, **keywords)
    if recipe.clip:
        tx = optax.chain(optax.clip_by_global_norm(recipe.clip), tx)
    return optax.with_extra_args_support(tx)


def probe(steps: int) -> optax.GradientTransformationExtraArgs:
    """Adam for the head; everything else stays."""

    def labels(params: Any) -> Any:
        # By path and not by `params.items()`, because optax passes placeholders too.
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "head" if path[0].key == "head" else "body", params
        )

    parts: dict[Hashable, Any] = {
        "head": optax.adam(schedule(PROBE_RATE, steps)),
        "body": optax.set_to_zero(),
    }
    return optax.with_extra_args_support(optax.partition(parts, labels))


def learns_in_training(recipe: Recipe) -> bool:
    """Whether each step needs a held-out batch."""
    return recipe.method == "tpgm" and not recipe.post_hoc


def corrects(recipe: Recipe) -> bool:
    """Whether something follows the training."""
    return recipe.method == "wise" or bool(recipe.method == "tpgm" and recipe.post_hoc)


def correct(
    recipe: Recipe,
    tuned: tuple[optax.Params, Any],
    anchor: tuple[optax.Params, Any],
    new_head: bool,
    held_out_loss: Callable[[Any, Any], jax.Array],
    batches: Iterable[Any],
) -> tuple[Any, Any]:
    """WiSE-FT, or TPGM on a model that is fine-tuned.

    Args:
        recipe: the settings.
        tuned: fine-tuned parameters and batch statistics.
        anchor: pre-trained ones.
        new_head: whether the anchor's head is random; then the fine-tuned one stays.
        held_out_loss: `(params, (stats, batch))` to the loss in evaluation mode.
        batches: held-out batches for TPGM, one for each radius step.

    Returns:
        Parameters, and the batch statistics that go with them.
    """
    exclude = NEW_HEAD if new_head else None
    params, stats = tuned
    if recipe.method == "wise":
        params = tpgm_jax.interpolate(params, anchor[0], recipe.strength, exclude=exclude)
        return params, tpgm_jax.interpolate(stats, anchor[1], recipe.strength)
    keywords: dict[str, Any] = {"exclude": exclude, "axes": AXES[recipe.model]}
    pairs = ((stats, batch) for batch in batches)
    return tpgm_jax.fit_radii(held_out_loss, params, anchor[0], pairs, **keywords).params, stats


def radii(params: optax.Params, opt_state: optax.OptState) -> dict[str, float]:
    """The learned radii by name. Empty if the method learns none in training."""
    learned = optax.tree.get_all_with_path(opt_state, "radii")
    found = tpgm_jax.radii(opt_state, params) if learned else {}
    return {name: float(radius) for name, radius in found.items()}
