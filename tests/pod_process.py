"""One process of `examples.pod_finetune` that stops at a given place.

`test_processes.py` and `test_pod.py` start it, with the place before the program's own arguments.
"""

import itertools
import os
import signal
import sys
import time
from pathlib import Path

import jax

from examples.pod import training
from examples.pod_finetune import main

LONGEST = 300.0  # seconds to wait for the kill; a process must not outlive its test for long


def stop_in_step(number: int, marker: Path) -> None:
    """Makes the last process wait in the middle of a step that it has dispatched.

    The first process does not enter this step. The step's collectives wait for it, so the step
    cannot end. `marker` is written when the step is running.
    """
    make_step = training.make_step

    def make_stopping_step(*args):
        step, calls = make_step(*args), itertools.count(1)

        def stopping_step(*args):
            if next(calls) < number:
                return step(*args)
            if jax.process_index() > 0:
                state, loss = step(*args)
                ready = [x.is_ready() for x in jax.tree.leaves((state, loss))]
                written = marker.with_suffix(".partial")
                written.write_text("too late" if any(ready) else "in the middle of the step")
                written.rename(marker)
            time.sleep(LONGEST)
            sys.exit("the test did not kill this process")

        return stopping_step

    training.make_step = make_stopping_step


def die_in_save(step: str) -> None:
    """Kills this process just before it renames a completely written checkpoint."""

    def before(event, args):
        if event == "os.rename" and Path(os.fspath(args[1])).name == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(before)


if __name__ == "__main__":
    place, at, *arguments = sys.argv[1:]
    if place == "step":
        stop_in_step(int(at), Path(arguments.pop(0)))
    elif place == "save":
        die_in_save(at)
    main(arguments)
