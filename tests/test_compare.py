"""examples/compare.py on a regression: what each method does, and what validation chooses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tpgm_jax
from examples.compare import compare, main, show

RNG = np.random.default_rng(0)
TRUE = RNG.normal(size=(4, 3))
PRETRAINED = {
    "body": {"kernel": jnp.asarray(TRUE + 0.3 * RNG.normal(size=(4, 3)), jnp.float32)},
    "head": {"kernel": jnp.zeros((3, 2))},
}
TO = RNG.normal(size=(3, 2))


def batch(seed, shift=0.0):
    x = np.random.default_rng(seed).normal(size=(32, 4)) + shift
    return jnp.asarray(x, jnp.float32), jnp.asarray(x @ TRUE @ TO, jnp.float32)


def loss(params, data):
    x, y = data
    return jnp.mean((x @ params["body"]["kernel"] @ params["head"]["kernel"] - y) ** 2)


class Rows(list):
    """Rows, and the parameters that each call of `score` got."""

    seen: list[Any]


def score(params, data):
    return -float(loss(params, data))


def rows_of(rates):
    seen: list[Any] = []

    def recorded(params, data):
        seen.append(params)
        return score(params, data)

    train, held_out = ([batch(seed) for seed in range(i, i + 20)] for i in (0, 100))
    tests = {"same": batch(200), "shifted": batch(201, shift=1.0)}
    rows = Rows(
        compare(
            loss, recorded, PRETRAINED, train, held_out, batch(300), tests, rates, head="head/.*"
        )
    )
    rows.seen = seen
    return rows


@pytest.fixture(scope="module")
def rows():
    return rows_of((1e-2, 3e-1))


def params_of(rows, method):
    """Parameters of the method's first row: each row is scored on two tests, then validated."""
    return rows.seen[3 * next(i for i, row in enumerate(rows) if row["method"] == method)]


def test_every_method_has_a_row_for_every_rate(rows):
    methods = {row["method"] for row in rows}
    expected = ["fine-tuning", "WiSE-FT 0.8", "LP-FT", "L2-SP", "SPD", "FTP", "TPGM", "pre-trained"]
    assert methods == set(expected)
    assert len(rows) == 1 + 2 * 7
    assert all(np.isfinite(row["shifted"]) for row in rows)


def test_validation_chooses_one_rate_of_each_method(rows):
    for method in {row["method"] for row in rows}:
        mine = [row for row in rows if row["method"] == method]
        (chosen,) = (row for row in mine if row["chosen"])
        assert chosen["validation"] == max(row["validation"] for row in mine)


def test_scores_are_of_the_named_batches(rows):
    params = params_of(rows, "FTP")
    (row,) = (x for x in rows if (x["method"], x["rate"]) == ("FTP", 1e-2))
    assert row["shifted"] == -float(loss(params, batch(201, shift=1.0)))
    assert row["validation"] == -float(loss(params, batch(300)))


def test_wise_ft_is_a_mix_that_leaves_the_head(rows):
    tuned, mixed = params_of(rows, "fine-tuning"), params_of(rows, "WiSE-FT 0.8")
    by_hand = 0.2 * PRETRAINED["body"]["kernel"] + 0.8 * tuned["body"]["kernel"]
    # Weights of size 1 in float32, three roundings of 6e-8.
    np.testing.assert_allclose(mixed["body"]["kernel"], by_hand, atol=3e-7)
    np.testing.assert_array_equal(mixed["head"]["kernel"], tuned["head"]["kernel"])


def test_lp_ft_trains_the_head_first():
    rows = rows_of((1e-2,))
    moved = jax.tree.map(
        lambda x, y: float(jnp.max(jnp.abs(x - y))), params_of(rows, "LP-FT"), PRETRAINED
    )
    tuned = jax.tree.map(
        lambda x, y: float(jnp.max(jnp.abs(x - y))), params_of(rows, "fine-tuning"), PRETRAINED
    )
    # Adam moves a weight by about the rate in each of 20 steps of a cosine: 0.1 in one phase. The
    # head moves in two phases, the body in the second.
    assert moved["head"]["kernel"] > 1.5 * tuned["head"]["kernel"]
    assert moved["body"]["kernel"] < 1.2 * tuned["body"]["kernel"]


def test_the_methods_start_alike_and_constrain_no_head(rows):
    ftp, tuned = params_of(rows, "FTP"), params_of(rows, "fine-tuning")

    def distance(params):
        return float(jnp.abs(params["body"]["kernel"] - PRETRAINED["body"]["kernel"]).max())

    assert 0 < distance(ftp) < distance(tuned)
    assert float(jnp.abs(ftp["head"]["kernel"]).max()) > 0.05
    assert tpgm_jax.layout(PRETRAINED, exclude="head/.*").leaves[1].constrained is False


def test_the_table_and_the_picture(rows, tmp_path, capsys):
    show(rows, tmp_path / "new" / "picture.png")
    assert (tmp_path / "new" / "picture.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert printed.count("*\n") == 8
    assert printed.splitlines()[0].split() == ["method", "rate", "validation", "same", "shifted"]


@pytest.mark.slow
def test_the_program_runs_on_digits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = main(["--fast"])
    best = {row["method"]: row for row in rows if row["chosen"]}
    assert best["fine-tuning"]["handwritten"] > best["pre-trained"]["handwritten"] + 10
