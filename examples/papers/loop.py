"""The loop: resume, step, save, show."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import numpy as np
from tqdm import tqdm

from examples.papers.checkpoints import Checkpoints
from examples.papers.training import Program, State, on_devices
from examples.pod.reporting import say


class Source(Protocol):
    """The part of `loader.Loader` that the loop uses."""

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


def train(
    title: str,
    program: Program,
    start: Callable[[], tuple[Any, Any]],
    loaders: dict[str, Source],
    steps: int,
    batch: int,
    mesh: jax.sharding.Mesh,
    checkpoints: Checkpoints,
    log_every: int,
) -> State:
    """Trains from the latest checkpoint, or from the start if there is none.

    Args:
        title: of the progress bar.
        program: the compiled functions.
        start: returns the first parameters and statistics; called only if there is no checkpoint.
        loaders: "train", and "held-out" if the method needs it. They must not end before `steps`.
        steps: the total, including the steps before the checkpoint.
        batch: images in a step, over all processes.
        mesh: of all devices.
        checkpoints: to resume from and save to.
        log_every: steps between shown losses.
    """
    done = checkpoints.latest()
    if done is None:
        done, state = 0, program.start(*start())
    else:
        state, positions = checkpoints.restore_run(done, program.abstract)
        for name, loader in loaders.items():
            loader.restore(positions[name])
        say(f"{title}: resumed after step {done} of {steps}")
    batches = {name: iter(loader) for name, loader in loaders.items()}
    with tqdm(
        desc=title,
        initial=done * batch,
        total=steps * batch,
        unit="image",
        disable=jax.process_index() > 0,
    ) as bar:
        waited: jax.Array | None = None
        for t in range(done, steps):
            given = {name: on_devices(next(x), mesh) for name, x in batches.items()}
            state, loss = program.step(state, given["train"], given.get("held-out"))
            positions = {name: loader.state() for name, loader in loaders.items()}
            checkpoints.save_run(t + 1, state, positions, last=t + 1 == steps)
            # The host reads the next images while the devices compute, but is not further ahead,
            # because images that wait take memory.
            jax.block_until_ready(waited)
            waited = loss
            if (t + 1) % log_every == 0:
                bar.set_postfix(loss=f"{float(loss):.3f}", refresh=False)
            bar.update(batch)
    return state
