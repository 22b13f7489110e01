"""The sizes of the demo."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Sizes of the experiment; the defaults are the demo's.

    Attributes:
        seed: determines everything.
        repeats: orders of the batches, for each method and learning rate.
        learning_rates: Adam's at the first step; a cosine takes it to 0.
        steps: of fine-tuning.
        batch: images to a step of fine-tuning, and to a radius step of TPGM.
        radius_steps: of TPGM after training.
        pretraining_images: printed digits to pre-train on.
        pretraining_steps: of Adam on them.
        pretraining_batch: images to one of those steps.
        pretraining_learning_rate: at the first of those steps.
    """

    seed: int = 0
    repeats: int = 3
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    steps: int = 1000
    batch: int = 64
    radius_steps: int = 200
    pretraining_images: int = 60_000
    pretraining_steps: int = 4000
    pretraining_batch: int = 256
    pretraining_learning_rate: float = 1e-3


def fast(seed: int) -> Settings:
    """Runs all of the demo in seconds; the numbers mean nothing."""
    return Settings(
        seed=seed,
        repeats=1,
        steps=20,
        radius_steps=5,
        pretraining_images=2000,
        pretraining_steps=60,
        pretraining_batch=64,
    )
