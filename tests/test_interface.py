"""Types, promotion, and numbers of the public interface."""

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_step
from transforms import loss, numbers

import tpgm_jax

ROOT = Path(__file__).parents[1]
WRONG = """\
import optax
from tpgm_jax import fit_radii, ftp, project_to_anchor, spd, tpgm

sgd = optax.sgd(0.1)
ftp(sgd, norm="L2")
ftp(sgd, memory="compcat")
ftp(sgd, exclude=3.5)
ftp(sgd, unit="mars")
ftp(sgd, anchor="pretrained")
ftp(sgd, axes=[0])
tpgm(sgd, norm="l1")
tpgm(sgd, exclude=[3.5])
project_to_anchor(0.1, unit="weights")
spd(sgd, anchor="none")
fit_radii(lambda params, batch: 0.0, {}, {}, [0], norm="inf")
ftp(sgd, "mars")
"""


def test_a_type_checker_finds_each_wrong_call(tmp_path):
    file = tmp_path / "wrong.py"
    file.write_text(WRONG)
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson"]
    done = subprocess.run([*command, file], capture_output=True, text=True, cwd=ROOT, check=False)
    errors = json.loads(done.stdout)["generalDiagnostics"]
    lines = {error["range"]["start"]["line"] + 1 for error in errors}
    assert lines == set(range(5, 1 + len(WRONG.splitlines())))


@pytest.mark.parametrize("dtypes", [("bfloat16",), ("bfloat16", "float32", "float64")])
def test_half_and_mixed_precision_work_without_implicit_promotion(dtypes, x64):
    # Around plain descent, because optax's own optimizers may promote.
    leaves, treedef = jax.tree.flatten(numbers())
    leaves = [x.astype(dtype) for x, dtype in zip(leaves, itertools.cycle(dtypes), strict=False)]
    params = treedef.unflatten(leaves)
    sgd = optax.sgd(0.1)
    for tx in (
        tpgm_jax.ftp(sgd),
        tpgm_jax.ftp(sgd, memory="compact", norm="l2", unit="anchor"),
        tpgm_jax.tpgm(sgd),
        tpgm_jax.spd(sgd),
        optax.chain(sgd, tpgm_jax.project_to_anchor(0.1)),
        optax.chain(tpgm_jax.add_anchor_decay(0.1), sgd),
    ):
        with jax.numpy_dtype_promotion("strict"):
            step = make_step(tx, held_out_loss=lambda params: jnp.sum(params["gain"]))
            step(params, tx.init(params), params)
    anchor = jax.tree.map(jnp.zeros_like, params)
    with jax.numpy_dtype_promotion("strict"):
        tpgm_jax.interpolate(params, anchor, 0.5)
        tpgm_jax.fit_radii(
            lambda params, _: jnp.sum(params["gain"]), params, anchor, [None], unit="anchor"
        )


@pytest.mark.parametrize("number", [np.float32(-1), jnp.float32(-1), np.array(-1.0), -1])
def test_numbers_of_numpy_and_jax_are_checked_like_python_numbers(number):
    sgd: Any = optax.sgd(0.1)
    for call, message in (
        (lambda: tpgm_jax.ftp(sgd, initial_radius=number), "`initial_radius` must be positive"),
        (lambda: tpgm_jax.ftp(sgd, k=number), "`k` must be between 0 and 1"),
        (lambda: tpgm_jax.project_to_anchor(number), "`radius` must be positive"),
        (lambda: tpgm_jax.spd(sgd, strength=number), "`strength` must be finite, and 0 or more"),
        (lambda: tpgm_jax.add_anchor_decay(number), "`weight` must be finite, and 0 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_several_numbers_are_refused_where_one_is_expected():
    untyped: Any = tpgm_jax.ftp
    with pytest.raises(ValueError, match=r"`k` must be one number; got an array of shape \(2,\)"):
        untyped(optax.sgd(0.1), k=np.ones(2))


def test_a_copied_folder_can_be_imported(tmp_path):
    shutil.copytree(ROOT / "tpgm_jax", tmp_path / "vendored" / "tpgm_jax")
    program = "import tpgm_jax; print(tpgm_jax.__file__, tpgm_jax.__version__)"
    # Hide the installed metadata, as if the project were not installed.
    hide = "import importlib.metadata as m; m.version = lambda name: 1 / 0; "
    done = subprocess.run(
        [sys.executable, "-c", hide + program],
        capture_output=True,
        text=True,
        cwd=tmp_path / "vendored",
        check=True,
    )
    assert done.stdout.split() == [
        str(tmp_path / "vendored" / "tpgm_jax" / "__init__.py"),
        tpgm_jax.__version__,
    ]


def test_a_skipped_step_leaves_excluded_leaves_unchanged():
    # Adam's momentum alone would move the head.
    for make in (tpgm_jax.ftp, tpgm_jax.tpgm, tpgm_jax.spd):
        tx: Any = make(optax.adam(0.1), exclude="head/.*")
        params = numbers(dtype=jnp.float32)
        extra = {"held_out_loss": loss} if make is tpgm_jax.tpgm else {}
        step = jax.jit(lambda g, s, p, tx=tx, extra=extra: tx.update(g, s, p, **extra))
        updates, state = step(numbers(1, jnp.float32), tx.init(params), params)
        assert np.any(updates["head"]["kernel"])
        bad = numbers(2, jnp.float32)
        bad["layers"]["bias"] *= jnp.inf
        updates, after = step(bad, state, params)
        for update in jax.tree.leaves(updates):
            np.testing.assert_array_equal(update, 0.0)
        # The step count of the base optimizer advances.
        counts = [int(x.base_state[0].count) for x in (state, after)]
        assert counts == [1, 2]
        assert int(after.skipped) == 1
