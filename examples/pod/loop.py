"""The loop: resume, step, save, log. Pre-training and fine-tuning both are this."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

from examples.pod import reporting
from examples.pod.checkpoints import Checkpoints
from examples.pod.training import Program, State

# From "train" or "held-out" and a step to tokens.
Batch = Callable[[str, int], jax.Array]


class Logging(NamedTuple):
    """How often to show numbers, and in which folder, if any, to draw them."""

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
        program: what is compiled.
        start: the parameters to start from; called if there is no checkpoint.
        batch: the data.
        steps: in all, those before the checkpoint included.
        checkpoints: to resume from and save to.
        logging: what to show.
    """
    done = checkpoints.latest()
    if done is None:
        done, state = 0, program.start(start())
    else:
        # The anchor is in the optimizer's state, and so comes from the checkpoint.
        state = checkpoints.restore(done, program.abstract)
        reporting.say(f"{title}: resumed after step {done} of {steps}")
    with reporting.Log(title, done, steps, *logging) as log:
        for t in range(done, steps):
            state, loss = program.step(state, batch("train", t), batch("held-out", t))
            checkpoints.save(t + 1, state, last=t + 1 == steps)
            log.step(t + 1, loss, state)
    return state
