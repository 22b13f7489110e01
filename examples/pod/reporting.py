"""The output of a run: progress, TensorBoard, and a table of losses and radii at the end.

All processes compute the same. Only the first one prints.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from tqdm import tqdm

import tpgm_jax
from examples.pod.settings import Refused
from examples.pod.training import State


def say(text: str) -> None:
    """Prints, on the first process."""
    if jax.process_index() == 0:
        print(text, flush=True)


class Log:
    """A progress bar and, if asked for, TensorBoard."""

    def __init__(self, title: str, first: int, steps: int, every: int, tensorboard: str | None):
        """
        Args:
            title: title of the bar and of the curves.
            first: number of steps done before.
            steps: total number of steps.
            every: steps between shown numbers. To read them, the host waits for the devices.
            tensorboard: folder for TensorBoard's files.
        """
        speaks = jax.process_index() == 0
        self.title, self.every = title, every
        self.bar = tqdm(desc=title, initial=first, total=steps, unit="step", disable=not speaks)
        self.writer = _writer()(tensorboard) if tensorboard and speaks else None

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()
        if self.writer is not None:
            self.writer.close()

    def step(self, step: int, loss: jax.Array, state: State) -> None:
        """Counts one more step."""
        self.bar.update()
        if step % self.every:
            return
        value = float(loss)  # on all processes, so that none gets far ahead of its devices
        self.bar.set_postfix(loss=f"{value:.3f}")
        if self.writer is not None:
            self.writer.add_scalar(f"{self.title}/loss", value, step)
            for name, radius in radii(state).items():
                for layer, r in enumerate(np.atleast_1d(radius)):
                    self.writer.add_scalar(f"radius/{name}/{layer}", r, step)


def radii(state: State) -> dict[str, Any]:
    """The radii by name. Empty if the method learns none."""
    learned = optax.tree.get_all_with_path(state.opt_state, "radii")
    return tpgm_jax.radii(state.opt_state, state.params) if learned else {}


def check_tensorboard(folder: str | None) -> None:
    """
    Raises:
        Refused: TensorBoard is requested, but tensorboardX is not installed.
    """
    if folder is not None:
        _writer()


def _writer() -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise Refused("`--tensorboard` needs tensorboardX: pip install tensorboardX.") from error
    return SummaryWriter


def memory(state: State) -> str:
    """The memory that a state takes on each device, as text."""

    def megabytes(tree):
        parts = [(x.sharding.shard_shape(x.shape), x.dtype) for x in jax.tree.leaves(tree)]
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in parts) / 1e6

    return (
        f"on each device: parameters {megabytes(state.params):.2f} MB, "
        f"optimizer state {megabytes(state.opt_state):.2f} MB"
    )


def table(losses: Mapping[str, Mapping[str, float]]) -> str:
    """Losses by moment and data, in nats for each token."""
    columns = list(next(iter(losses.values())))
    lines = [" " * 22 + "".join(f"{name:>20}" for name in columns)]
    for moment, row in losses.items():
        lines.append(f"{moment:<22}" + "".join(f"{row[name]:20.3f}" for name in columns))
    return "\n".join(lines)


def lines(radii: Mapping[str, Any]) -> str:
    """One line for each tensor, its layers in a row."""
    width = max(map(len, radii), default=0)
    return "\n".join(
        f"  {name:<{width}}  " + "  ".join(f"{r:.3f}" for r in np.atleast_1d(radius))
        for name, radius in radii.items()
    )
