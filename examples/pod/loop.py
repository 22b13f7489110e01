"""The loop: resume, step, save, log. Pre-training and fine-tuning both use it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

from examples.pod import reporting
from examples.pod.checkpoints import Checkpoints
from examples.pod.training import Program, State

# Maps "train" or "held-out" and a step to tokens.
Batch = Callable[[str, int], jax.Array]


class Logging(NamedTuple):
    """The steps between shown numbers, and TensorBoard's folder, if any."""

    every: int
    tensorboard: str | None


def train(
    title: str,
    program: Program,
    start: Callable[[], optax.Params],
    batch: Batch,
    steps: int,
    checkpoints: Checkpoints,
    logging: Logging,
) -> State:
    """Trains from the latest checkpoint, or from the start if there is none.

    Args:
        title: of the progress bar.
        program: the compiled functions.
        start: returns the first parameters; called only if there is no checkpoint.
        batch: the data.
        steps: the total, including the steps before the checkpoint.
        checkpoints: to resume from and save to.
        logging: how to show numbers.
    """
    done = checkpoints.latest()
    if done is None:
        done, state = 0, program.start(start())
    else:
        # The optimizer's state holds the anchor, so it comes from the checkpoint too.
        state = checkpoints.restore(done, program.abstract)
        reporting.say(f"{title}: resumed after step {done} of {steps}")
    with reporting.Log(title, done, steps, *logging) as log:
        for t in range(done, steps):
            state, loss = program.step(state, batch("train", t), batch("held-out", t))
            checkpoints.save(t + 1, state, last=t + 1 == steps)
            log.step(t + 1, loss, state)
    return state
