"""The output appears whole or not at all."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from checkpoint_files import FORMATS, command, save, save_pair, weights

from tpgm_jax.cli import _msgpack, _npz, _orbax, _output, _project, _safetensors

PROGRAM = (sys.executable, "-m", "tpgm_jax.cli")
each_format = pytest.mark.parametrize("suffix", FORMATS.values(), ids=FORMATS)


def test_force_overwrites_and_keeps_links_and_permissions(tmp_path, capsys):
    pair = save_pair(tmp_path)
    real, link = tmp_path / "real.safetensors", tmp_path / "link.safetensors"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to(real)
    args = ("project", *pair, "--alpha", 1, "--force", "-o", link)
    assert command(capsys, *args)[0] == 0
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert real.read_bytes() == pair[1].read_bytes()


def test_two_runs_to_one_new_output_do_not_overwrite_each_other(tmp_path, capsys, monkeypatch):
    pair, out = save_pair(tmp_path), tmp_path / "out.safetensors"
    inner = _output._sync

    def second(path):
        # Another run ends while this one is about to.
        if not out.exists():
            out.write_bytes(b"other")
        inner(path)

    monkeypatch.setattr(_output, "_sync", second)
    args = ("project", *pair, "--alpha", 1, "-o", out)
    code, _, err = command(capsys, *args)
    assert (code, "it exists: pass --force" in err, out.read_bytes()) == (2, True, b"other")
    assert command(capsys, *args, "--force")[0] == 0
    assert out.read_bytes() == pair[1].read_bytes()


def test_a_signal_that_python_drops_still_ends_the_run(tmp_path, capsys, monkeypatch):
    inner, out = _project.move_tensor, tmp_path / "out.safetensors"
    pair = save_pair(tmp_path)

    def interrupted(*args):
        # As in a callback of the garbage collector, where Python drops exceptions.
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        return inner(*args)

    monkeypatch.setattr(_project, "move_tensor", interrupted)
    # A shell disables SIGINT for programs in the background, and the tests may be one.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code, _, err = command(capsys, "project", *pair, "--alpha", 0.5, "-o", out)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, err, out.exists()) == (130, "interrupted\n", False)


# The program, interrupted while JAX is imported, in a callback of the garbage collector, where
# Python drops exceptions.
STARTING = """
import gc, os, signal, sys
from tpgm_jax_main import main
signal.signal(signal.SIGINT, signal.default_int_handler)
def interrupt(*args):
    if "jax" in sys.modules and "optax" not in sys.modules:
        gc.callbacks.clear()
        os.kill(os.getpid(), signal.SIGINT)
gc.callbacks.append(interrupt)
main(["--version"])
"""


def test_an_interrupt_while_jax_is_imported_ends_the_run():
    run = subprocess.run([sys.executable, "-c", STARTING], capture_output=True)
    assert (run.returncode, run.stdout, run.stderr) == (130, b"", b"interrupted\n")


@each_format
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_only_the_old_file(error, suffix, tmp_path, capsys, monkeypatch):
    paths = [save(tmp_path / f"{i}{suffix}", weights(i)) for i in range(2)]
    out = tmp_path / f"out{suffix}"
    if suffix:
        out.write_bytes(b"old")
    before = sorted(os.listdir(tmp_path))

    def fail(path):
        raise error

    # Fail when everything is written and about to be synced, and in the middle.
    for target, name in (("tpgm_jax.cli._output._sync", fail), (None, None)):
        with monkeypatch.context() as patch:
            if target is not None:
                patch.setattr(target, name)
            else:
                patch.setattr(_reader(suffix), "read", failing(_reader(suffix).read, error))
            code, _, err = command(capsys, "project", *paths, "--alpha", 0.5, "--force", "-o", out)
        assert code == (2 if isinstance(error, OSError) else 130)
        assert ("No space left" in err) == (code == 2)
        assert sorted(os.listdir(tmp_path)) == before
        assert not suffix or out.read_bytes() == b"old"


def failing(read, error, reads=5):
    """A method that raises after a few calls."""
    done = []

    def fail(self, name):
        done.append(name)
        if len(done) > reads:
            raise error
        return read(self, name)

    return fail


def _reader(suffix):
    classes = {".npz": _npz.Npz, "": _orbax.Orbax, ".msgpack": _msgpack.Msgpack}
    return classes.get(suffix, _safetensors.Safetensors)


def test_a_full_disk_leaves_the_old_file(tmp_path, capsys):
    flats = [{"w": np.full(10**5, i, np.float32)} for i in range(2)]
    paths = [save(tmp_path / f"{i}.safetensors", x) for i, x in enumerate(flats)]
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, before[1]))
    try:
        code, _, err = command(capsys, "project", *paths, "--alpha", 0.5, "--force", "-o", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2
    assert "File too large" in err
    assert out.read_bytes() == b"old"
    assert len(os.listdir(tmp_path)) == 3


# The program, stopped at the second tensor until it is killed. It sets the handler of SIGINT,
# because a shell disables it for programs in the background.
STALLED = """
import signal, sys, time
from pathlib import Path
from tpgm_jax.cli import _project, main
signal.signal(signal.SIGINT, signal.default_int_handler)
calls, move_tensor = [], _project.move_tensor
def stalled(*args):
    calls.append(args)
    if len(calls) == 2:
        Path(sys.argv[1]).touch()
        time.sleep(60)
    return move_tensor(*args)
_project.move_tensor = stalled
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path):
    flat = {f"{i}/kernel": np.ones(2**10, np.float32) for i in range(3)}
    path = save(tmp_path / "w.safetensors", flat)
    out, marker = tmp_path / "out.safetensors", tmp_path / "marker"
    out.write_bytes(b"old")
    args = ("project", path, path, "--alpha", "0.5", "--force", "-o", out)
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)):
        words = [sys.executable, "-c", STALLED, *map(str, (marker, *args))]
        process = subprocess.Popen(words, stderr=subprocess.PIPE)
        while not marker.exists():
            assert process.poll() is None
            time.sleep(0.01)
        temporary = list(tmp_path.glob(".tpgm-jax-*.tmp"))
        assert len(temporary) == 1
        process.send_signal(number)
        process.communicate()
        assert process.returncode == code
        assert out.read_bytes() == b"old"
        left = list(tmp_path.glob(".tpgm-jax-*.tmp"))
        assert left == (temporary if number == signal.SIGKILL else [])
        marker.unlink()
        # The next run removes the files of a killed one, and prints this.
        run = subprocess.run(
            [*PROGRAM, *map(str, args[:-1]), tmp_path / "new"],
            capture_output=True,
        )
        assert run.returncode == 0
        assert (b"removed" in run.stderr) == bool(left)
        assert not list(tmp_path.glob(".tpgm-jax-*"))
        (tmp_path / "new").unlink()
