"""The shell blocks of the pages are run, each one whole, as far as a test can run their programs.

A block runs under bash, with stubs in place of the programs that record their arguments. Then
`tpgm-jax` is run, `make` makes a dry run, and Python modules are started and stopped after they
have parsed their arguments. Other tests cover what the modules do after that.
"""

import argparse
import os
import re
import runpy
import subprocess
import sys
import warnings

import numpy as np
import pytest
from checkpoint_files import save
from test_docs import PAGES, PROJECT, ROOT, blocks

from tpgm_jax.cli import main

BLOCKS = [
    pytest.param(code, id=f"{page.relative_to(ROOT)}-{i}")
    for page in PAGES
    for i, code in enumerate(blocks(page, "sh"))
]
NOTE = '#!/bin/sh\nprintf "%s\\0" "${0##*/}" "$@" > "$CALLS/$$"\n'


class ArgumentsParsed(Exception):
    """Raised when a program has parsed its arguments."""


def record_calls(code, tmp_path):
    """Runs a block; returns each program with its arguments, in the order of their start."""
    programs, calls = tmp_path / "bin", tmp_path / "calls"
    for folder in (programs, calls):
        folder.mkdir()
    for name in ("make", "pip", "python", *PROJECT["project"]["scripts"]):
        (programs / name).write_text(NOTE)
        (programs / name).chmod(0o755)
    subprocess.run(
        ["bash", "-euc", code],
        cwd=tmp_path,
        env={"PATH": f"{programs}{os.pathsep}/usr/bin{os.pathsep}/bin", "CALLS": str(calls)},
        check=True,
        capture_output=True,
    )
    records = sorted(calls.iterdir(), key=lambda file: int(file.name))
    return [file.read_bytes().decode().split("\0")[:-1] for file in records]


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """Changes to a folder with the files that blocks name."""
    shapes = {
        "layers/kernel": (3, 4, 2),
        "up_convT/weight": (4, 2, 3, 3),
        "attention/qkv/kernel": (6, 3, 2, 4),
        "head/kernel": (4, 2),
    }
    pairs = [("pretrained.safetensors", "finetuned.safetensors"), ("a.msgpack", "b.msgpack")]
    for pair in [*pairs, ("a.safetensors", "b.safetensors"), ("a", "b")]:
        for seed, name in enumerate(pair):
            rng = np.random.default_rng(seed)
            save(
                tmp_path / name,
                {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()},
            )
    monkeypatch.chdir(tmp_path)


def start(module, options, monkeypatch):
    """Starts a module as `python -m` does, and stops it when it has parsed its arguments."""
    parse = argparse.ArgumentParser.parse_args

    def stop(*args, **kwargs):
        parse(*args, **kwargs)
        raise ArgumentsParsed

    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # it may have been imported before
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", [module, *options])
        with pytest.raises(ArgumentsParsed):
            runpy.run_module(module, run_name="__main__", alter_sys=True)


@pytest.mark.parametrize("code", BLOCKS)
def test_a_shell_block_runs(code, tmp_path, monkeypatch, capsys, checkpoints):
    found = record_calls(code, tmp_path)
    assert found
    for program, *arguments in found:
        match program, arguments:
            case "make", _:
                dry_run = subprocess.run(
                    ["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True
                )
                assert dry_run.returncode == 0, dry_run.stderr
            case "pip", ["install", *what]:
                extras = re.findall(r"[\w-]+(?=[\w,-]*\])", " ".join(what))
                assert set(extras) <= set(PROJECT["project"]["optional-dependencies"])
                assert [x for x in what if not re.match(r"-e$|\.|tpgm-jax\b", x)] == []
            case "python", ["-m", module, *options]:
                start(module, options, monkeypatch)
            case "tpgm-jax", _:
                assert main(arguments) == 0, capsys.readouterr().err
            case _:
                raise AssertionError(f"no test covers {program} {arguments}")


def test_a_loop_is_run_with_each_of_its_values(tmp_path):
    (both,) = (x for x in blocks(ROOT / "docs" / "pods.md", "sh") if "--process " in x)
    ends = [arguments[-2:] for arguments in record_calls(both, tmp_path)]
    assert sorted(ends) == [["--process", "0"], ["--process", "1"]]
