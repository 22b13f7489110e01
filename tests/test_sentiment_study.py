"""The study of `benchmarks/sentiment` on a small random BERT and generated sentences."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny_bert import random_sentences, write_model

import tpgm_jax
from benchmarks.sentiment import __main__ as program
from benchmarks.sentiment import cells, cost, lora, methods, report, runs
from benchmarks.sentiment.cells import COLUMNS, Cell, Job
from examples.sentiment import data, training
from examples.sentiment.texts import DOMAINS

pytestmark = pytest.mark.slow
NAMES = ("finetune", "mean", "wise", "l2sp", "ewc", "spd", "mars_sp", "ftp", "ftp_anchor",
         "ftp_relative", "tpgm", "fit_radii", "recommended", "default")  # fmt: skip
ADAPTERS = ("lora", "lora_ftp", "lora_spd")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    sentences = data.Data(
        train=random_sentences(40, 0),
        held_out=random_sentences(20, 1),
        validation=random_sentences(30, 2),
        tests={name: random_sentences(20, 10 + i) for i, name in enumerate(DOMAINS)},
    )
    folder = write_model(tmp_path_factory.mktemp("x") / "model")
    return runs.Bench(folder, sentences, lambda make: make(), steps=3)


def test_the_study_covers_every_method_rate_seed_source_and_head_once():
    rows = [cell for job in cells.jobs() for cell in job.rows]
    assert len(set(rows)) == len(rows)
    # Rates and seeds of each start.
    starts = {("movie", "probed"): (4, 5), ("movie", "fresh"): (3, 2), ("amazon", "probed"): (3, 2)}
    for start, (rates, seeds) in starts.items():
        for name in (*NAMES, *ADAPTERS) if start == ("movie", "probed") else NAMES:
            found = {
                (x.learning_rate, x.seed)
                for x in rows
                if (x.source, x.head, x.method) == (*start, name)
            }
            assert len(found) == rates * seeds, name
    assert {x.method for x in rows} == {"probe", *NAMES, *ADAPTERS}
    assert all(job.trained == job.rows[0] for job in cells.jobs())


def test_averaged_keeps_the_mean_of_all_iterates():
    tx = methods.averaged(optax.sgd(0.5))
    params: Any = {"w": jnp.array([1.0, -2.0])}
    state: Any = tx.init(params)
    iterates = []
    for i in range(4):
        grads = {"w": jnp.array([i + 1.0, -i])}
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        iterates.append(params["w"])
    np.testing.assert_allclose(state.mean["w"], np.mean(iterates, axis=0), rtol=1e-6)


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_trains_and_leaves_a_row_for_each_that_rests_on_it(bench, name):
    jobs = [job for job in cells.jobs() if job.trained.method == name]
    job = next(x for x in jobs if x.trained.learning_rate == 1e-3)
    made = list(bench.perform(job))
    assert [Cell(*(row[key] for key in cells.KEYS)) for row in made] == list(job.rows)
    for row in made:
        assert set(row) == set(COLUMNS)
        assert all(0 <= row[column] <= 100 for column in COLUMNS[7:])
        assert row["seconds"] > 0


def test_adapters_start_at_the_model_and_are_added_to_its_kernels(bench):
    model = nnx.merge(*bench.start("probed", 0))
    adapted = lora.with_adapters(model, seed=1)
    tokens, mask, _ = bench.sentences.validation
    before = model(tokens, mask)
    np.testing.assert_array_equal(adapted(tokens, mask), before)
    for block in adapted.encoder.blocks:
        for name in lora.LAYERS:
            adapter = getattr(block, name)
            assert adapter.lora_a.shape[1] == adapter.lora_b.shape[0] == 8
            adapter.lora_b[...] = jnp.full_like(adapter.lora_b[...], 0.05)
    after = adapted(tokens, mask)
    assert float(jnp.abs(after - before).max()) > 1e-3
    plain = lora.without_adapters(adapted)
    # Sums of a hundred products in another order, in float32.
    np.testing.assert_allclose(plain(tokens, mask), after, rtol=1e-4, atol=1e-5)
    assert nnx.graphdef(plain) == nnx.graphdef(model)
    np.testing.assert_array_equal(model(tokens, mask), before)  # not changed on the way


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_and_the_head_are_all_that_is_trained(bench, name):
    graph, start = bench.start("probed", 0, adapters=True)
    trainer = bench.trainer(name, "", "probed")
    batches = bench.sentences.train, bench.sentences.held_out
    trained = trainer(start, 1e-2, *batches, np.random.default_rng(0)).params
    moved = {
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
        for path, x in jax.tree_util.tree_leaves_with_path(
            jax.tree.map(lambda a, b: bool(jnp.any(a != b)), start, trained)
        )
        if x
    }
    blocks = len(nnx.merge(graph, start).encoder.blocks)
    factors = {
        f"encoder/blocks/{i}/{layer}/lora_{factor}"
        for i in range(blocks)
        for layer in lora.LAYERS
        for factor in "ab"
    }
    assert moved == factors | {"head/kernel", "head/bias"}


def test_derived_methods_match_their_names(bench):
    anchor = bench.anchor("probed", 0)
    tuned = jax.tree.map(lambda x: x + 1.0, anchor)
    mean = jax.tree.map(lambda x: x + 0.5, anchor)
    trained = training.Trained(tuned, methods.MeanState(None, mean, jnp.ones([])))
    cell = Cell("movie", "probed", "finetune", 1e-3, "", 0)

    def moved(method, setting=""):
        params = bench._derive(cell._replace(method=method, setting=setting), trained, anchor)
        by_name = {
            jax.tree_util.keystr(path, simple=True, separator="/"): round(float(jnp.mean(a - b)), 3)
            for (path, a), b in zip(
                jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(anchor), strict=True
            )
        }
        head = {v for name, v in by_name.items() if name.startswith("head")}
        return sorted(set(by_name.values()) - head), head

    assert moved("finetune") == ([], {1.0})
    assert moved("wise", "alpha=0.8")[0] == [0.8]
    assert moved("mean") == ([], {0.5})
    assert moved("recommended")[0] == [0.45]


def test_fit_radii_moves_back_towards_the_anchor_and_leaves_the_head(bench):
    anchor = bench.anchor("probed", 0)
    tuned = jax.tree.map(lambda x: x + 1.0, anchor)
    cell = Cell("movie", "probed", "fit_radii", 1e-3, "", 0)
    fitted = bench._derive(cell, training.Trained(tuned, None), anchor)
    near = jax.tree.map(lambda x, a: float(jnp.abs(x - a).max()), fitted, anchor)
    for path, distance in jax.tree_util.tree_leaves_with_path(near):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.startswith("head"):
            assert distance == pytest.approx(1.0, rel=1e-5)
        else:
            assert 0 < distance < 0.9, name


def test_importances_are_squared_gradients_with_a_mean_of_one(bench):
    anchor, sentences = bench.anchor("probed", 0), bench.sentences.held_out
    importance = bench._importance("probed")
    grads = [
        jax.grad(bench.loss)(anchor, sentences.take(slice(i, i + 1)))
        for i in range(len(sentences.labels))
    ]
    squares = [np.square(np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)])) for g in grads]
    flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(importance)])
    total = np.sum(squares, axis=0)
    np.testing.assert_allclose(flat, total / total.mean(), rtol=1e-3, atol=1e-5)


def test_a_fresh_head_depends_on_the_seed_and_nothing_else_does(bench):
    probed, first, second = (bench.anchor(*x) for x in (("probed", 0), ("fresh", 1), ("fresh", 2)))
    assert float(jnp.abs(first["head"]["kernel"][...] - second["head"]["kernel"][...]).max()) > 0
    jax.tree.map(np.testing.assert_array_equal, probed["encoder"], second["encoder"])


def test_the_program_resumes_and_counts_what_is_missing(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program, "bench", lambda source, cache: bench)
    monkeypatch.setattr(program.jax.config, "update", lambda *_: None)
    run = ["--output", str(tmp_path / "rows.csv"), "--method", "finetune", "--runs"]
    rows = []
    for count in ("1", "1"):
        program.main([*run, count])
        rows.append((tmp_path / "rows.csv").read_text().splitlines())
    job = next(job for job in cells.jobs() if job.trained.method == "finetune")
    assert [len(x) for x in rows] == [1 + len(job.rows), 1 + 2 * len(job.rows)]
    assert rows[1][: len(rows[0])] == rows[0]
    program.main(["--plan", "--output", str(tmp_path / "rows.csv")])
    total = sum(1 for _ in cells.jobs())
    assert f"8 rows done, {total - 2} trainings missing" in capsys.readouterr().out


def row(method, rate, setting="", seed=0, **values):
    made = dict.fromkeys(COLUMNS, "50") | {"source": "movie", "head": "probed", "seed": str(seed)}
    made |= {"method": method, "learning_rate": str(rate), "setting": setting}
    return made | {name: str(value) for name, value in values.items()}


def test_the_report_averages_and_selects_by_validation():
    rows = [
        row("probe", 0, movie=70, amazon=60, nyt=63, tweets=66),
        row("ftp", 1e-4, validation=80, movie=81),
        row("ftp", 1e-3, validation=82, movie=84, amazon=70, nyt=73, tweets=76),
        row("ftp", 1e-3, seed=1, validation=82, movie=86, amazon=70, nyt=73, tweets=76),
        row("ftp", 1e-3, seed=2, validation=82, movie=85, amazon=70, nyt=73, tweets=76),
    ]
    text = report.report(rows)
    assert "Before fine-tuning: 70.0 / 63.0 (1)." in text
    # Student's t for two degrees of freedom is 4.303, and the standard error 1 / sqrt(3).
    assert "| FTP |  | 81.0 / 50.0 (1) |  | 85.0 ± 2.5 / 73.0 ± 0.0 (3) |" in text
    assert "| FTP | 85.0 / 73.0 (81.0 / 50.0) |" in text
    assert "| FTP | 0.001 of 2 | 82.0 ± 0.0 | 85.0 ± 2.5 | 73.0 ± 0.0 | 50.0 ± 0.0 | 3 |" in text


def test_two_seeds_have_no_interval():
    assert report.interval([81.0, 83.0]) == "82.0"


def test_settings_are_compared_by_the_seeds_that_all_of_them_have():
    # Seed 0 is an easy one: by all seeds the weight of 1 would win, and by seed 0 it loses.
    rows = [
        *(row("l2sp", 1e-3, "weight=0.1", seed, validation=90 - 6 * seed) for seed in (0, 1)),
        row("l2sp", 1e-3, "weight=1", 0, validation=89),
    ]
    assert "| L2-SP | 0.001 weight=0.1 of 2 | 87.0 |" in report.report(rows)


def test_missing_work_is_whole_jobs_or_single_rows():
    job = next(job for job in cells.jobs() if job.trained.method == "finetune")
    written = [
        {key: program.text(value) for key, value in cell._asdict().items()}
        for cell in job.rows[:-1]
    ]
    assert Job(job.trained, job.rows[-1:]) in program.missing(written)


def test_default_is_ftp_in_the_anchors_unit_with_a_step_of_three_thousandths():
    params = {"layer": {"kernel": jnp.ones((3, 2))}, "head": {"kernel": jnp.ones((2, 1))}}

    def trained(tx):
        state, now = tx.init(params), params
        for _ in range(3):
            grads = jax.tree.map(lambda x: 0.1 * x, now)
            updates, state = tx.update(grads, state, now)
            now = optax.apply_updates(now, updates)
        return now

    given = tpgm_jax.ftp(
        optax.adamw(1e-2, weight_decay=0.01),
        unit="anchor",
        radius_optimizer=optax.adam(3e-3),
        exclude="head/.*",
    )
    ours = methods.METHODS["default"].make(lambda step: 1e-2, None, None)
    jax.tree.map(np.testing.assert_array_equal, trained(given), trained(ours))


def test_the_cost_of_each_method_is_measured(bench, monkeypatch):
    monkeypatch.setattr(cost, "batch", lambda length, seed: random_sentences(16, seed))
    rows = {row["method"]: row for row in cost.measure(bench, length=8, rounds=2)}
    assert set(rows) == set(cost.METHODS)
    assert rows["adamw"]["ratio"] == 1
    # AdamW has two moments; FTP also an anchor and a displacement, of all but the head.
    copies = {name: row["state_copies"] for name, row in rows.items()}
    for name, count in {"adamw": 2, "ftp": 4, "ftp, compact": 3, "tpgm": 3, "spd": 3}.items():
        assert copies[name] == pytest.approx(count, abs=0.3)
