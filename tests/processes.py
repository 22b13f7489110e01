"""Helpers to run `examples.pod_finetune` in child processes and to compare its checkpoints."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np
import pytest

from examples.pod import sharding
from examples.pod.checkpoints import Checkpoints
from examples.pod.settings import Settings
from examples.pod.training import State, compiled, optimizer

ROOT = Path(__file__).parents[1]
SETTINGS = Settings(steps=6, pretraining_steps=2, batch=8, length=8, width=16, heads=2)
SAVE_EVERY = 2
PATIENCE = 240.0  # seconds; on an idle machine a run takes ten


def arguments(folder: Path, settings: Settings = SETTINGS, **options: object) -> list[str]:
    """Arguments of the command line."""
    options = {"output": folder, "save_every": SAVE_EVERY, **asdict(settings), **options}
    pairs = [(f"--{name.replace('_', '-')}", str(value)) for name, value in options.items()]
    return [word for pair in pairs for word in pair]


class Process:
    """A child of this process.

    Attributes:
        child: its handle.
        log: file of what it prints.
    """

    def __init__(self, words: Sequence[object], log: Path, devices: int):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "error",
        }
        command = [sys.executable, ROOT / "tests" / "pod_process.py", *words]
        with log.open("wb") as output:
            self.child = subprocess.Popen(
                [str(word) for word in command],
                **{"stdout": output, "stderr": subprocess.STDOUT},
                env=environment,
                cwd=ROOT,
            )
        self.log = log

    def kill(self) -> None:
        """Sends SIGKILL if the process still runs, and waits for it to end."""
        self.child.kill()
        self.child.wait()


@contextmanager
def start_processes(
    words: Sequence[object], logs: Path, count: int, devices: int
) -> Iterator[list[Process]]:
    """Starts `count` processes of one run. When the block ends, kills those that are left.

    Args:
        words: the command line.
        logs: the processes print into `logs.0`, `logs.1`, ...
        count: number of processes.
        devices: number of devices of each process.
    """
    with ExitStack() as stack:
        port, processes = stack.enter_context(reserve_port()), []
        for i in range(count):
            several = ["--coordinator", f"localhost:{port}", "--processes", count, "--process", i]
            log = logs.with_name(f"{logs.name}.{i}")
            all_words = [*words, *(several if count > 1 else [])]
            processes.append(Process(all_words, log, devices))
            stack.callback(processes[-1].kill)
        yield processes


@contextmanager
def reserve_port() -> Iterator[int]:
    """A port that the system gives to no other program while the block runs.

    JAX's coordinator shares the port with this socket, which accepts no connections.
    """
    with socket.socket() as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reservation.bind(("", 0))
        yield reservation.getsockname()[1]


def wait_for(condition: Callable[[], bool], processes: Sequence[Process]) -> None:
    """Waits until `condition()` is true. Fails after `PATIENCE`, or if a process has failed."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        failed = [p.child.poll() not in (None, 0) for p in processes]
        if any(failed) or time.monotonic() > deadline:
            reason = "a process failed" if any(failed) else f"not done after {PATIENCE} s"
            pytest.fail("\n".join([reason, *(p.log.read_text()[-5000:] for p in processes)]))
        time.sleep(0.05)


def finish(processes: Sequence[Process]) -> None:
    """Waits until all processes have exited with status 0."""
    wait_for(lambda: all(p.child.poll() == 0 for p in processes), processes)


def load_checkpoint(folder: Path, step: int, settings: Settings = SETTINGS) -> State:
    """The state that a run saved at `step`, on the devices of this process."""
    tx = optimizer(settings.method, settings.learning_rate, settings.steps, settings.every)
    mesh = sharding.mesh()
    with jax.set_mesh(mesh):
        abstract = compiled(settings, tx, mesh).abstract
        with Checkpoints(str(folder / settings.method), settings.all()) as checkpoints:
            return checkpoints.restore(step, abstract)


def assert_equal(received: State, expected: State) -> None:
    """Compares all leaves of parameters and optimizer state, bit for bit."""
    assert jax.tree.structure(received) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, received, expected)
