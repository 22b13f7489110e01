"""The README: its program runs as it stands, and its tables show what was computed."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import tpgm_jax
from benchmarks import recording
from benchmarks.sentiment import report
from benchmarks.sentiment.cells import COLUMNS
from tpgm_jax import ftp

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
(PROGRAM,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_program_can_be_pasted_and_prints_a_report(capsys):
    assert ">>>" not in PROGRAM
    assert len(PROGRAM.splitlines()) < 20
    names: dict[str, Any] = {}
    exec(PROGRAM, names)
    printed = capsys.readouterr().out
    assert re.search(r"^kernel +3 ", printed, re.MULTILINE)
    assert "constrains" in printed
    assert names["optimizer"].step[...] == 100


def test_it_is_short():
    assert len(TEXT.splitlines()) <= 150


RESULTS = json.loads((ROOT / "docs/sentiment/results.json").read_text())


def cell(accuracy):
    """Accuracy on movies / mean of the three other domains."""
    others = [accuracy[name] for name in ("amazon", "nyt", "tweets")]
    return f"{accuracy['movie']:.1f} / {sum(others) / 3:.1f}"


@pytest.mark.parametrize("page", ["README.md", "docs/sentiment.md"])
def test_the_table_of_the_real_model_shows_what_the_program_wrote(page):
    text = (ROOT / page).read_text()
    names = {"finetune": "AdamW", "wise": "WiSE-FT 0.8", "l2sp": "L2-SP 0.1", "ftp": "FTP"}
    for method, entries in RESULTS["methods"].items():
        cells = [cell(x["accuracy"]) + r" \*" * x["chosen"] for x in entries]
        assert re.search(
            rf"^\| {names[method]}.* \| {re.escape(' | '.join(cells))} \|$", text, re.M
        )
    assert cell(RESULTS["probe"]["accuracy"]) in text.replace("\n", " ")


def test_the_study_of_the_real_model_shows_the_recorded_rows():
    page = (ROOT / "docs/sentiment.md").read_text()
    _, tables, _ = re.split("<!-- tables -->|<!-- end of tables -->", page)
    rows = recording.read(ROOT / "benchmarks/results/sentiment.csv", COLUMNS)
    assert tables.strip() == report.report(rows)
    summary = dict(re.findall(r"^\| (.*?) \| (.*) \|$", tables.partition("###")[0], re.MULTILINE))
    for label in ("AdamW", "L2-SP weight=0.1", "TPGM", "FTP"):
        assert f"| {summary[label]} |" in TEXT


ROWS: dict[str, Any] = {
    "`ftp`": ftp,
    '`ftp(memory="compact")`, `tpgm`, `spd`': lambda base: ftp(base, memory="compact"),
    '`ftp(memory="compact", anchor_dtype="bfloat16")`': lambda base: ftp(
        base, memory="compact", anchor_dtype="bfloat16"
    ),
    '`ftp(memory="compact", anchor="argument")`': lambda base: ftp(
        base, memory="compact", anchor="argument"
    ),
}


def bytes_of(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("page", ["README.md", "docs/cost.md"])
@pytest.mark.parametrize("row", ROWS)
def test_the_table_of_memory_is_right(row, page):
    """GB for a billion parameters are bytes for one parameter."""
    lines = (ROOT / page).read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"| {row}"))
    shown = [float(x) for x in re.findall(r"\| (\d+) (?=\|)", line)]
    base = optax.adamw(1e-4)
    computed = []
    for dtype in (jnp.float32, jnp.bfloat16):
        params = {"kernel": jax.ShapeDtypeStruct((4096, 4096), dtype)}
        extra = bytes_of(jax.eval_shape(ROWS[row](base).init, params))
        extra -= bytes_of(jax.eval_shape(base.init, params))
        computed.append(extra / 4096**2)
    # Radii are one number, and norms are two of four bytes for each row of 4096: 0.002 GB, times 7.
    one, half = computed
    assert shown == pytest.approx([one, half, 7 * one, 7 * half], abs=0.015)
    for other in (tpgm_jax.tpgm, tpgm_jax.spd) if "tpgm" in row else ():
        params = {"kernel": jax.ShapeDtypeStruct((4096, 4096), jnp.float32)}
        extra = bytes_of(jax.eval_shape(other(base).init, params))
        extra -= bytes_of(jax.eval_shape(base.init, params))
        assert extra / 4096**2 == pytest.approx(one, abs=0.01)
