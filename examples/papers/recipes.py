"""The papers' settings are the defaults: optimizer, learning rate, epochs, batch and more.

`docs/papers.md` lists which of these are published and which were chosen here.

References:
    Tian et al., "Trainable Projected Gradient Method for Robust Fine-tuning", CVPR 2023,
    arXiv 2303.10720
    Tian et al., "Fast Trainable Projection for Robust Fine-Tuning", NeurIPS 2023, arXiv 2310.19182
    Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, arXiv 2109.01903
"""

from dataclasses import asdict, dataclass
from typing import Any

METHODS = ("ftp", "tpgm", "finetune", "l2sp", "lpft", "wise", "spd")

# The one number that a method has besides the optimizer's; what it means is in `methods`.
STRENGTHS = {"ftp": 1.0, "l2sp": 1e-2, "wise": 0.5, "spd": 1.0}

OWN_DECAY = ("ftp", "l2sp", "spd")  # these pull to the anchor, so they do not also decay to 0


@dataclass(frozen=True)
class Recipe:
    """The settings that determine the numbers of a run, together with the files it reads.

    Attributes:
        experiment: "domainnet" or "imagenet".
        method: one of `METHODS`.
        model: a name in `models.MODELS`.
        optimizer: "sgd", with Nesterov momentum of 0.9, or "adam".
        learning_rate: at the first step, or after the warm-up; falls to 0 along a cosine.
        weight_decay: in the gradient for SGD, decoupled for Adam.
        epochs: passes over the training images.
        batch: images in a step, over all devices.
        warmup: steps in which the learning rate rises from 0.
        clip: largest global norm of a gradient; 0 for no limit.
        percent: share of DomainNet's training images.
        strength: the method's number; see `methods`. 0 for a method that has none.
        probe_epochs: epochs in which only the head is trained, before all else.
        post_hoc: radius steps of TPGM after fine-tuning; 0 for one radius step in each step.
        as_published: TPGM learns its radii on the validation images of the report.
        precision: dtype of the arithmetic, "bfloat16" or "float32". Parameters are float32.
        seed: of the head, the order of images and their crops.
    """

    experiment: str
    method: str
    model: str
    optimizer: str
    learning_rate: float
    weight_decay: float
    epochs: int
    batch: int
    warmup: int = 0
    clip: float = 0.0
    percent: int = 100
    strength: float = 0.0
    probe_epochs: int = 0
    post_hoc: int = 0
    as_published: bool = False
    precision: str = "bfloat16"
    seed: int = 0

    def settings(self) -> dict[str, Any]:
        """By name; a checkpoint stores them."""
        return asdict(self)

    def probe(self) -> dict[str, Any]:
        """The settings that determine the linear probe, which methods share."""
        names = ("experiment", "model", "batch", "percent", "probe_epochs", "precision", "seed")
        # TPGM may hold training images out.
        held_out = self.method == "tpgm" and not self.as_published
        return {name: getattr(self, name) for name in names} | {"held_out": held_out}


def domainnet(
    method: str, model: str = "clip-resnet50", optimizer: str = "sgd", percent: int = 100
) -> Recipe:
    """The recipe on DomainNet, fine-tuned on Real."""
    few = percent <= 10
    rate = {"sgd": 1e-1 if few else 1e-2, "adam": 1e-4}[optimizer]
    return Recipe(
        "domainnet",
        method,
        model,
        optimizer,
        learning_rate=rate,
        weight_decay=0.0 if optimizer == "adam" or method in OWN_DECAY else 5e-4,
        epochs=150 if few else 50,
        batch=256,
        percent=percent,
        strength=STRENGTHS.get(method, 0.0),
        probe_epochs=10 if method == "lpft" else 0,
    )


def imagenet(
    method: str, model: str = "clip-vit-b16", optimizer: str = "adam", head: bool = False
) -> Recipe:
    """The recipe on ImageNet.

    Args:
        method: one of `METHODS`.
        model: a name in `models.MODELS`.
        optimizer: "sgd" or "adam".
        head: whether a head is given. Otherwise one is trained first, because WiSE-FT and TPGM
            after training need pre-trained weights that classify.
    """
    return Recipe(
        "imagenet",
        method,
        model,
        optimizer,
        learning_rate={"sgd": 1e-2, "adam": 3e-5}[optimizer],
        weight_decay=0.0 if method in OWN_DECAY else {"sgd": 5e-4, "adam": 0.1}[optimizer],
        epochs=10,
        batch=512,
        warmup=500,
        clip=1.0,
        strength=STRENGTHS.get(method, 0.0),
        probe_epochs=0 if head and method != "lpft" else 1,
        post_hoc=200 if method == "tpgm" else 0,
    )
