"""Usage, exit codes, and imports."""

import re
import subprocess
import sys

import numpy as np
import pytest
from checkpoint_files import command, save, save_pair, weights

USAGE = {
    "no command": ((), "required: COMMAND"),
    "no files": (("compare",), "required: PRETRAINED, FINETUNED"),
    "neither radius nor alpha": (("project", "W0", "W", "-o", "OUT"), "one of the arguments"),
    "both": (("project", "W0", "W", "-o", "OUT", "--radius", 1, "--alpha", 1), "not allowed with"),
    "no output": (("project", "W0", "W", "--alpha", 1), "required: -o"),
    "radius of zero": (("project", "W0", "W", "-o", "OUT", "--radius", 0), "must be positive"),
    "radius nan": (("project", "W0", "W", "-o", "OUT", "--radius", "nan"), "must be positive"),
    "alpha beyond 1": (("project", "W0", "W", "-o", "OUT", "--alpha", 2), "between 0 and 1"),
    "interpolation without alpha": (("interpolate", "W0", "W", "-o", "OUT"), "--alpha is required"),
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
def test_wrong_usage_has_exit_code_2_and_changes_nothing(args, message, tmp_path, capsys):
    pair = save_pair(tmp_path)
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


def test_the_error_for_a_missing_library_names_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    code, _, err = command(capsys, "compare", *save_pair(tmp_path))
    assert code == 2
    assert "safetensors is not installed" in err
    assert "pip install safetensors" in err


def test_a_closed_pipe_has_exit_code_141(tmp_path):
    path = save(tmp_path / "w.npz", weights(0))
    process = subprocess.Popen(
        [sys.executable, "-m", "tpgm_jax.cli", "compare", path, path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
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
        "print([m for m in ('safetensors', 'orbax', 'msgpack', 'tqdm', 'matplotlib')"
        " if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"
