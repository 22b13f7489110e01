"""The commands in docs/cli.md print the output shown there."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
BLOCK = re.compile(r"^```console\n\$ (.*)\n((?:.*\n)*?)```$", re.MULTILINE)

SHAPES = {
    "encoder/block_0/bias": (32,),
    "encoder/block_0/kernel": (64, 32),
    "encoder/block_1/kernel": (32, 16),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the two checkpoints of the page, at a relative distance of 0.01."""
    rng = np.random.default_rng(0)
    pretrained = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    finetuned = {name: w + 0.01 * rng.normal(size=w.shape) for name, w in pretrained.items()}
    folder = tmp_path_factory.mktemp("page")
    for name, flat in (("pretrained", pretrained), ("finetuned", finetuned)):
        flat = flat | ({"head/kernel": np.ones((16, 10))} if name == "finetuned" else {})
        arrays: Any = {k: w.astype(np.float32) for k, w in flat.items()}
        np.savez(folder / f"{name}.npz", **arrays)
    return folder


def test_there_are_commands():
    assert len(BLOCK.findall(PAGE.read_text())) == 5


@pytest.mark.parametrize(("command", "expected"), BLOCK.findall(PAGE.read_text()))
def test_a_command_prints_the_output_on_the_page(command, expected, folder):
    # Put the program and its interpreter first in PATH, as in an active environment.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    active = os.environ | {"PATH": path}
    printed = subprocess.run(
        ["sh", "-c", command], cwd=folder, env=active, capture_output=True, text=True
    )
    assert printed.stdout == expected, printed.stderr
