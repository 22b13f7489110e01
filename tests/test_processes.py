"""Two processes of four devices each: one is killed in the middle of a step."""

import signal

import numpy as np
import optax
import pytest
from processes import (
    SETTINGS,
    arguments,
    assert_equal,
    finish,
    load_checkpoint,
    start_processes,
    wait_for,
)

import tpgm_jax

pytestmark = pytest.mark.slow


def test_processes_killed_in_a_step_and_restarted_end_in_the_same_state(tmp_path):
    whole, broken, marker = (tmp_path / name for name in ("whole", "broken", "marker"))
    pretrained = {"pretrained": whole / "pretrained"}

    def pair(name, *place, **options):
        words = [*place, *arguments(whole if name == "whole" else broken, **options)]
        return start_processes(words, tmp_path / name, count=2, devices=4)

    with pair("whole", "nowhere", 0) as processes:
        finish(processes)

    def in_step_5():
        return marker.exists() and (broken / "ftp" / "4").exists()

    with pair("killed", "step", 5, marker, **pretrained) as processes:
        wait_for(in_step_5, processes)
        first, second = processes
        assert marker.read_text() == "in the middle of the step"
        second.child.send_signal(signal.SIGKILL)
        assert second.child.wait() == -signal.SIGKILL
        # It cannot continue alone. Leaving the block kills it, as a pod's scheduler would.
        assert first.child.poll() is None
    assert not (broken / "ftp" / "6").exists()

    with pair("again", "nowhere", 0, **pretrained) as processes:
        finish(processes)
    first, second = (process.log.read_text() for process in processes)
    assert "fine-tuning: resumed after step 4 of 6" in first
    assert "fine-tuning" not in second  # only the first process prints
    assert "devices: 8, processes: 2" in first

    expected = load_checkpoint(whole, SETTINGS.steps)
    assert_equal(load_checkpoint(broken, SETTINGS.steps), expected)
    # The comparison is not trivial: the run made all its steps and learned radii.
    state = optax.tree.get(expected, "FTPState")
    assert (state.step, state.skipped) == (6, 0)
    assert min(map(np.min, tpgm_jax.radii(state, expected.params).values())) > 1e-8
    assert all(np.any(x) for x in state.displacement["layers"]["attention"]["out"].values())
