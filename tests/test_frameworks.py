"""The pages on frameworks show parts of scripts that ran.

The scripts of small frameworks run here. `make frameworks` runs all; `docs/frameworks/log.md` is
its log.
"""

import ast
import re
import subprocess
import sys
import textwrap
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_docs import ROOT, blocks

import tpgm_jax
from examples.frameworks import __main__ as runner
from examples.frameworks import checks
from tpgm_jax import Axes

PAGES = ROOT / "docs" / "frameworks"
SCRIPTS = {x.stem: x for x in (ROOT / "examples/frameworks").glob("*_*.py") if x.stem[0] != "_"}
PART = re.compile(r"# \[(\w+)\]\n(.*?) *# \[/\1\]", re.DOTALL)


def parts():
    """The script of each part between marks, by the part's text without its indentation."""
    return {
        textwrap.dedent(text).strip("\n"): script
        for script, path in SCRIPTS.items()
        for _, text in PART.findall(path.read_text())
    }


def logged():
    """The cells of each line of the log."""
    lines = runner.LOG.read_text().partition("|---")[2].splitlines()[1:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_every_script_is_in_a_case():
    assert {x for case in runner.CASES.values() for x in case.scripts} == SCRIPTS.keys()


def test_pages_show_code_of_every_script():
    shown = [code.strip("\n") for page in PAGES.glob("*.md") for code in blocks(page, "python3")]
    assert sorted(shown) == sorted(parts())
    assert set(parts().values()) == SCRIPTS.keys()
    for code in shown:
        assert ast.parse(code).body


@pytest.mark.slow
@pytest.mark.parametrize("script", ["flax_newest", "haiku_ftp", "penzai_ftp"])
def test_scripts_of_small_frameworks_run(script):
    command = [sys.executable, "-m", f"examples.frameworks.{script}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_log_has_every_script_and_the_index_names_every_failure():
    expected = [(name, x) for name, case in runner.CASES.items() for x in case.scripts or [""]]
    lines = logged()
    assert [(case, script) for case, script, *_ in lines] == expected
    index = (PAGES / "index.md").read_text()
    for case, _, outcome, seconds, date, _, packages in lines:
        assert outcome == "ok" or f"({case})" in index
        assert float(seconds) >= 0
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", date)
        assert outcome != "ok" or {"jax", "optax"} <= set(re.findall(r"[a-z-]+", packages))


# ---- The runner


def fake_run(command, **options):
    """Stands for `subprocess.run`: installs nothing, and lets the script `keras_loop` fail."""
    text = " ".join(command)
    failed = "keras_loop" in text or "haiku" in text
    output = "Traceback\nValueError: a | b\n\n" if failed else "keras 3, jax 1\n"
    return SimpleNamespace(returncode=int(failed), stdout=output)


def test_the_runner_logs_what_it_ran_and_keeps_other_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "LOG", tmp_path / "log.md")
    monkeypatch.setattr(subprocess, "run", fake_run)
    kept = "| penzai | penzai_ftp | ok | 3 | 2026-01-01 | 3.12 | penzai 1 |"
    (tmp_path / "log.md").write_text(f"old text\n{kept}\n| keras | keras_loop | old |\n")
    monkeypatch.setattr("sys.argv", ["frameworks", "keras", "haiku"])
    assert runner.main() == 1
    lines = [x for x in (tmp_path / "log.md").read_text().splitlines() if x.startswith("| ")]
    assert [line.split(" | ")[1:3] for line in lines[1:]] == [
        ["keras_compile", "ok"],
        ["keras_loop", "failed: ValueError: a \\| b"],
        ["", "not installed: ValueError: a \\| b"],
        ["penzai_ftp", "ok"],
    ]
    assert lines[-1] == kept
    assert lines[1].endswith("| 3.12 | keras 3, jax 1 |")
    monkeypatch.setattr("sys.argv", ["frameworks", "penzai"])
    assert runner.main() == 0
    monkeypatch.setattr("sys.argv", ["frameworks", "kears"])
    with pytest.raises(SystemExit):
        runner.main()
    assert "no case ['kears']" in capsys.readouterr().err


def test_the_cause_of_a_failed_installation_is_logged():
    uv = "error: No solution\n  cause: Because a needs b<1\n         And because c.\n"
    assert runner.last_line(uv) == "cause: Because a needs b<1 And because c."
    assert runner.last_line("Traceback\n  x\nValueError: y\n\n") == "ValueError: y"


# ---- The checks that scripts make: each has to fail when what it checks is wrong.


def fine_tuned():
    anchor = {"w": jnp.ones((3, 2)), "layers": jnp.ones((2, 3))}
    axes = {"w": Axes((1,), ()), "layers": Axes((), (0,))}
    tx = tpgm_jax.ftp(optax.sgd(1e-2), axes={"w": Axes(rows=1), "layers": Axes(layers=0)})
    params, state = anchor, tx.init(anchor)
    for _ in range(6):
        updates, state = tx.update(anchor, state, params)
        params = optax.apply_updates(params, updates)
    return state, params, checks.flat(anchor), axes


@pytest.mark.parametrize(
    ("name", "index"), [(None, ()), ("w", (0, 1)), ("layers", (1, 2)), ("layers", (0, 0))]
)
def test_check_radii_finds_a_row_beyond_its_radius(name, index):
    state, params, anchor, axes = fine_tuned()
    if name is None:
        checks.check_radii(state, params, anchor, axes)
        return
    # The report reads the anchor of the state and would note it: `check_radii` compares by itself.
    anchor[name][index] += 1e-4
    with pytest.raises(AssertionError, match=name):
        checks.check_radii(state, params, anchor, axes)


def test_check_radii_wants_rows_that_moved_and_were_pulled_back():
    state, tuned, anchor, axes = fine_tuned()
    params: Any = tuned
    with pytest.raises(AssertionError, match="w"):
        checks.check_radii(state, params | {"w": jnp.ones((3, 2))}, anchor, axes)
    tx = tpgm_jax.ftp(optax.sgd(1e-2))
    with pytest.raises(AssertionError):
        checks.check_radii(tx.init(params), params, checks.flat(params), axes)


@pytest.mark.parametrize(
    "other",
    [
        {"a": jnp.array([1.0, -0.0])},
        {"a": jnp.array([1, 0])},
        {"b": jnp.array([1.0, 0.0])},
        {},
    ],
)
def test_check_equal_compares_names_dtypes_and_bits(other):
    one = {"a": jnp.array([1.0, 0.0])}
    checks.check_equal(one, {"a": np.array([1, 0], np.float32)})
    with pytest.raises(AssertionError):
        checks.check_equal(one, other)
    with pytest.raises(AssertionError):
        checks.check_equal({}, {})


@pytest.mark.parametrize(
    "losses", [[3, 3, 3, 3, 3, 3], [1, 1, 1, 2, 2, 2], [2, 1], [2, 2, np.nan, 1, 1, 1]]
)
def test_check_loss_wants_a_loss_that_falls(losses):
    checks.check_loss([2.0, 3.0, 2.0, 2.0, 1.0, 1.0])
    with pytest.raises(AssertionError):
        checks.check_loss(losses)


def test_check_rows_compares_with_rows_by_hand():
    axes = {"w": Axes((1,), ())}
    checks.check_rows(axes, {"w": (1,)})
    with pytest.raises(AssertionError):
        checks.check_rows(axes, {"w": (0,)})


def test_data_is_the_same_for_a_step_and_can_be_learned():
    np.testing.assert_array_equal(checks.sequences(3), checks.sequences(3))
    steps = np.diff(checks.sequences(3), axis=1) % checks.VOCABULARY
    assert np.all(steps == steps[:, :1])
    assert set(steps.flat) <= {1, 2, 3}
    x, y = checks.images(3)
    quarters = x.reshape(16, 2, 4, 2, 4).mean(axis=(2, 4)).reshape(16, 4)
    # The noise of a quarter's mean is 0.5 / 4, an eighth of the difference.
    np.testing.assert_array_equal(quarters.argmax(axis=1), y)
