"""The methods of the demo: AdamW, two optimizers around it, and a correction after training."""

from typing import Any

import optax

import tpgm_jax
from examples.digits.training import MakeOptimizer
from examples.sentiment.training import HEAD

WEIGHT_DECAY = 0.01
L2SP_WEIGHT = 0.1
WISE_ALPHA = 0.8


def adamw(rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(rate, weight_decay=WEIGHT_DECAY)


def pulled(
    rate: optax.Schedule, weight: float = L2SP_WEIGHT, importance: Any = None
) -> optax.GradientTransformation:
    """L2-SP, or EWC. The pull goes through AdamW's moments, like a term of the loss."""
    pull = tpgm_jax.add_anchor_decay(weight, importance=importance, exclude=HEAD)
    return optax.chain(pull, adamw(rate))


# No method constrains the head: it is new.
OPTIMIZERS: dict[str, MakeOptimizer] = {
    "finetune": adamw,
    "l2sp": pulled,
    "ftp": lambda rate: tpgm_jax.ftp(adamw(rate), exclude=HEAD),
}
LABELS = {
    "finetune": "AdamW",
    "wise": f"WiSE-FT {WISE_ALPHA:g}",
    "l2sp": f"L2-SP {L2SP_WEIGHT:g}",
    "ftp": "FTP",
}
