"""Usage, exit codes, and atomic output."""

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from checkpoint_files import FORMATS, command, save, weights

from tpgm_jax.cli import _msgpack, _npz, _orbax, _output, _project, _safetensors

each_format = pytest.mark.parametrize("suffix", FORMATS.values(), ids=FORMATS)
PROGRAM = (sys.executable, "-m", "tpgm_jax.cli")


@pytest.fixture
def pair(tmp_path):
    """A pre-trained and a fine-tuned checkpoint."""
    paths = [tmp_path / "w0.safetensors", tmp_path / "w.safetensors"]
    for seed, path in enumerate(paths):
        save(path, weights(seed))
    return paths


USAGE = {
    "no command": ((), "required: COMMAND"),
    "no files": (("compare",), "required: PRETRAINED, FINETUNED"),
    "neither radius nor alpha": (("project", "W0", "W", "-o", "OUT"), "one of the arguments"),
    "both": (("project", "W0", "W", "-o", "OUT", "--radius", 1, "--alpha", 1), "not allowed with"),
    "no output": (("project", "W0", "W", "--alpha", 1), "required: -o"),
    "radius of zero": (("project", "W0", "W", "-o", "OUT", "--radius", 0), "must be positive"),
    "radius nan": (("project", "W0", "W", "-o", "OUT", "--radius", "nan"), "must be positive"),
    "alpha beyond 1": (("project", "W0", "W", "-o", "OUT", "--alpha", 2), "between 0 and 1"),
    "interpolation without alpha": (("interpolate", "W0", "W", "-o", "OUT"), "required: --alpha"),
    "limit of zero": (("compare", "W0", "W", "--max-relative", 0), "must be positive"),
    "negative top": (("compare", "W0", "W", "--top", -1), "must be 0 or more"),
    "alpha with a norm": (
        ("project", "W0", "W", "-o", "OUT", "--alpha", 1, "--norm", "l2"),
        "leave them out",
    ),
    "pattern that matches nothing": (
        ("compare", "W0", "W", "--exclude", "haed/.*"),
        "matches no parameter.*closest",
    ),
    "pattern that is none": (("compare", "W0", "W", "--exclude", "("), "not a regular expression"),
    "axes without rows": (("compare", "W0", "W", "--axes", "gain"), r"REGEX=ROWS\[,LAYERS\]"),
    "axes that are no numbers": (("compare", "W0", "W", "--axes", "gain=x"), "invalid literal"),
    "axes out of range": (("compare", "W0", "W", "--axes", "block_10/kernel=7"), "out of range"),
    "axes that match nothing": (("compare", "W0", "W", "--axes", "x=0"), "matches no parameter"),
    "plot of no picture": (("compare", "W0", "W", "--plot", "x.txt"), "must end in one of"),
    "plot over an input": (("compare", "W0", "LINK", "--plot", "LINK"), "is an input"),
    "output of another format": (
        ("project", "W0", "W", "--alpha", 1, "-o", "OUT.npz"),
        "the format of FINETUNED, safetensors",
    ),
    "output over an input": (
        ("project", "W0", "W", "--alpha", 1, "--force", "-o", "W0"),
        "is an input",
    ),
    "output over a link to an input": (
        ("project", "W0", "W", "--alpha", 1, "--force", "-o", "LINK"),
        "is an input",
    ),
    "output that exists": (("project", "W0", "W", "--alpha", 1, "-o", "OLD"), "pass --force"),
    "output in no directory": (
        ("project", "W0", "W", "--alpha", 1, "-o", "OUT/x"),
        "there is no directory",
    ),
    "output that is a directory": (
        ("project", "W0", "W", "--alpha", 1, "--force", "-o", "DIR"),
        "is a directory",
    ),
    "output to a device": (
        ("project", "W0", "W", "--alpha", 1, "--force", "-o", "/dev/null"),
        "is not a file",
    ),
}


@pytest.mark.parametrize(("args", "message"), USAGE.values(), ids=USAGE)
def test_wrong_usage_has_exit_code_2_and_changes_nothing(args, message, pair, tmp_path, capsys):
    names = {"W0": pair[0], "W": pair[1], "LINK": tmp_path / "link.png"}
    names |= {name: tmp_path / name for name in ("OUT", "OLD", "DIR", "OUT.npz", "OUT/x")}
    names["LINK"].symlink_to(pair[1])
    names["OLD"].write_bytes(b"old")
    names["DIR"].mkdir()
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()}
    code, out, err = command(capsys, *(names.get(arg, arg) for arg in args))
    assert (code, out) == (2, "")
    assert re.search(message, err), err
    assert before == {path: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()}


def test_different_shapes_and_disjoint_names_are_errors(tmp_path, capsys):
    flats = [{"a": np.ones(2)}, {"a": np.ones(3)}, {"b": np.ones(2)}]
    a, longer, other = [save(tmp_path / f"{i}.npz", x) for i, x in enumerate(flats)]
    for finetuned, message in (
        (longer, "'a' cannot be moved, because it has shape (2,) in PRETRAINED"),
        (other, "'a' and 'b'"),
    ):
        out = tmp_path / "out.npz"
        code, _, err = command(capsys, "project", a, finetuned, "--alpha", 1, "-o", out)
        assert code == 2
        assert message in err
        assert not out.exists()
    assert command(capsys, "compare", a, other)[0] == 1


def test_help_has_examples_and_exit_codes(capsys):
    for args in (("--help",), ("compare", "--help"), ("project", "--help")):
        code, out, err = command(capsys, *args)
        assert (code, err) == (0, "")
        assert "exit codes:" in out
        assert ("examples:" in out) == (len(args) == 2)


def test_the_error_for_a_missing_library_names_the_extra(pair, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    code, _, err = command(capsys, "compare", *pair)
    assert code == 2
    assert "safetensors is not installed" in err
    assert "pip install 'tpgm-jax[cli]'" in err


def test_force_overwrites_and_keeps_links_and_permissions(pair, tmp_path, capsys):
    real, link = tmp_path / "real.safetensors", tmp_path / "link.safetensors"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to(real)
    args = ("project", *pair, "--alpha", 1, "--force", "-o", link)
    assert command(capsys, *args)[0] == 0
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert real.read_bytes() == pair[1].read_bytes()


def test_two_runs_to_one_new_output_do_not_overwrite_each_other(
    pair, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "out.safetensors"
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


def test_a_signal_that_python_drops_still_ends_the_run(pair, tmp_path, capsys, monkeypatch):
    inner, out = _project.interpolate_tensor, tmp_path / "out.safetensors"

    def interrupted(*args):
        # As in a callback of the garbage collector, where Python drops exceptions.
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        return inner(*args)

    monkeypatch.setattr(_project, "interpolate_tensor", interrupted)
    # A shell disables SIGINT for programs in the background, and the tests may be one.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code, _, err = command(capsys, "project", *pair, "--alpha", 0.5, "-o", out)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, err, out.exists()) == (130, "interrupted\n", False)


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
calls, interpolate_tensor = [], _project.interpolate_tensor
def stalled(*args):
    calls.append(args)
    if len(calls) == 2:
        Path(sys.argv[1]).touch()
        time.sleep(60)
    return interpolate_tensor(*args)
_project.interpolate_tensor = stalled
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
        # The next run removes what a killed one left, and says so.
        run = subprocess.run(
            [*PROGRAM, *map(str, args[:-1]), tmp_path / "new"], capture_output=True
        )
        assert run.returncode == 0
        assert (b"removed" in run.stderr) == bool(left)
        assert not list(tmp_path.glob(".tpgm-jax-*"))
        (tmp_path / "new").unlink()


def test_a_closed_pipe_has_exit_code_141(tmp_path):
    path = save(tmp_path / "w.npz", weights(0))
    process = subprocess.Popen(
        [*PROGRAM, "compare", path, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    message = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), message) == (141, b"")


def test_the_package_does_not_import_the_command_line():
    code = (
        "import sys, tpgm_jax; assert not [m for m in sys.modules if 'tpgm_jax.cli' in m];"
        "from tpgm_jax.cli import main;"
        "assert main(['--version']) == 0;"
        "print([m for m in ('safetensors', 'orbax', 'msgpack', 'rich', 'tqdm', 'matplotlib')"
        " if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"
