"""The settings that determine the numbers of a run."""

from dataclasses import asdict, dataclass, field
from typing import Any

METHODS = ("ftp", "tpgm", "none")


class Refused(ValueError):
    """The requested run is not possible. The message names the change to make."""


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """Settings that determine all results of a run, together with the text if there is one.

    Each is an option of the command line. A checkpoint stores them, and only a run with the same
    settings resumes from it.
    """

    method: str = _option("ftp", "the method around AdamW: " + ", ".join(METHODS))
    every: int = _option(1, "updates between radius steps of tpgm")
    steps: int = _option(300, "steps of fine-tuning")
    pretraining_steps: int = _option(300, "steps of pre-training")
    learning_rate: float = _option(3e-3, "of fine-tuning at its first step; falls to 0")
    batch: int = _option(16, "rows of tokens in a step, over all devices")
    length: int = _option(64, "tokens in a row")
    width: int = _option(64, "of the decoder, numbers to a token")
    layers: int = _option(2, "of the decoder")
    heads: int = _option(4, "of its attention")
    seed: int = _option(0, "of weights and data")
    text: str = _option("", "file to fine-tune on; without it, a made-up language")

    def all(self) -> dict[str, Any]:
        """The settings of the fine-tuned model, by name."""
        return asdict(self)

    def pretraining(self) -> dict[str, Any]:
        """The settings of the pre-trained model."""
        names = ("pretraining_steps", "batch", "seed")
        return self.model() | {name: getattr(self, name) for name in names}

    def model(self) -> dict[str, Any]:
        """The settings that determine the shapes of the parameters."""
        names = ("length", "width", "layers", "heads")
        return {name: getattr(self, name) for name in names}

    def check(self, devices: int) -> None:
        """
        Raises:
            Refused: a number is out of range, or does not fit another or the devices.
        """
        if self.method not in METHODS:
            expected = ", ".join(METHODS)
            raise Refused(f"`--method` must be one of {expected}; got {self.method!r}.")
        for name, value in asdict(self).items():
            least = 0 if name == "seed" else 1
            if isinstance(value, int) and value < least:
                raise Refused(f"`--{name.replace('_', '-')}` must be {least} or more; got {value}.")
        for name, value, what, parts in (
            ("batch", self.batch, "devices", devices),
            ("width", self.width, "heads", self.heads),
        ):
            if value % parts:
                raise Refused(
                    f"`--{name}` is {value}, which {parts} {what} cannot divide: use a multiple "
                    f"of {parts}."
                )
