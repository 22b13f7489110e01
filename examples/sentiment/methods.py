"""The methods of the demo: AdamW, two optimizers around it, and a correction after training."""

import optax

import tpgm_jax
from examples.digits.training import MakeOptimizer
from examples.sentiment.training import HEAD

WEIGHT_DECAY = 0.01
L2SP_WEIGHT = 0.1
WISE_ALPHA = 0.8


def adamw(rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(rate, weight_decay=WEIGHT_DECAY)


def l2sp(rate: optax.Schedule) -> optax.GradientTransformation:
    """Coupled: the pull goes through AdamW's moments, as it does if it is a term of the loss."""
    return optax.chain(tpgm_jax.add_anchor_decay(L2SP_WEIGHT, exclude=HEAD), adamw(rate))


# No method constrains the head: it is new.
OPTIMIZERS: dict[str, MakeOptimizer] = {
    "finetune": adamw,
    "l2sp": l2sp,
    "ftp": lambda rate: tpgm_jax.ftp(adamw(rate), exclude=HEAD),
}
LABELS = {
    "finetune": "AdamW",
    "wise": f"WiSE-FT {WISE_ALPHA:g}",
    "l2sp": f"L2-SP {L2SP_WEIGHT:g}",
    "ftp": "FTP",
}
