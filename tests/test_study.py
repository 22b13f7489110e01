"""The robustness study at its smallest size: its plan, records, training and report."""

import csv
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tpgm_jax
from benchmarks import robustness
from benchmarks.study import cells, plan, records, report, runs, selection, training
from benchmarks.study.cells import COLUMNS, Cell
from benchmarks.study.methods import DERIVED, HEAD, METHODS, NEW_HEAD, Hyper, half, layerwise
from benchmarks.study.models import MODELS, Attention, Conv, network
from benchmarks.study.plan import Job, Scope
from benchmarks.study.pretraining import FAST
from benchmarks.study.queue import Resources, groups, work
from benchmarks.study.records import Records
from benchmarks.study.sets import sets
from examples.digits.models import cross_entropy

pytestmark = pytest.mark.slow
TRAINS = Cell("mlp", "reused", "finetune", 3e-3, "", 0, 0)


def complete_study(scope, done=()):
    """All cells of a complete study, each with a validation accuracy of 50."""
    known = dict(done)
    while new := plan.jobs(known, scope):
        known |= {cell: 50.0 for job in new for cell in job.wanted if cell not in known}
    return known


def test_every_method_is_tried_with_the_same_number_of_trainings():
    for name, method in METHODS.items():
        assert len(selection.candidates(name, Scope())) == 9, name
        assert len(method.rates) * len(method.values) == 9, name


def test_the_plan_covers_methods_models_heads_and_seeds():
    known = complete_study(Scope())
    for model in MODELS:
        for method in (*METHODS, *DERIVED):
            heads = cells.HEADS if method in NEW_HEAD else ("reused",)
            for head in heads:
                choice = selection.chosen(model, head, method, known, Scope())
                assert choice is not None
                for pretrain_seed in cells.PRETRAIN_SEEDS:
                    for seed in cells.SEEDS:
                        key = Cell(model, head, method, *choice, pretrain_seed, seed)
                        assert key in known
        for pretrain_seed in cells.PRETRAIN_SEEDS:
            for rate in cells.CURVE_RATES:
                run = TRAINS._replace(model=model, learning_rate=rate, seed=4)
                assert run._replace(pretrain_seed=pretrain_seed) in known
    assert not set(cells.SEEDS) & set(cells.TUNING_SEEDS)


def test_the_curves_of_the_first_network_come_first():
    first = plan.jobs({}, Scope())[:20]
    assert {job.trained.pretrain_seed for job in first} == {0}
    assert {job.trained.method for job in first} == {"finetune"}
    # The curves of other networks come last.
    made = list(plan.ordered(complete_study(Scope()), Scope()))
    last = [cell.pretrain_seed for cell in made[-100:]]
    assert set(last) == {2}
    assert not any(cell.head == "new" for cell in made[-100:])


def test_validation_chooses_and_ties_go_to_the_candidate_nearest_to_the_anchor():
    pairs = selection.candidates("l2sp", Scope())
    done = {
        Cell("mlp", "reused", "l2sp", *pair, 0, seed): 90.0
        for pair in pairs
        for seed in cells.TUNING_SEEDS
    }
    assert selection.chosen("mlp", "reused", "l2sp", done, Scope()) == (1e-3, "weight=0.1")
    better = Cell("mlp", "reused", "l2sp", *pairs[5], 0, 101)
    assert selection.chosen("mlp", "reused", "l2sp", done | {better: 91.0}, Scope()) == pairs[5]
    # Other seeds and other networks do not count.
    for other in (better._replace(seed=0), better._replace(pretrain_seed=1)):
        assert selection.chosen("mlp", "reused", "l2sp", done | {other: 99.0}, Scope()) == pairs[0]
    del done[better]
    assert selection.chosen("mlp", "reused", "l2sp", done, Scope()) is None


def test_derived_methods_need_no_training():
    wise = TRAINS._replace(method="wise", setting="alpha=0.5")
    (job,) = [job for job in plan.jobs({}, Scope()) if job.trained == TRAINS]
    assert {TRAINS, wise, TRAINS._replace(method="tpgm_posthoc")} < set(job.wanted)
    (job,) = [job for job in plan.jobs({TRAINS: 1.0}, Scope()) if job.trained == TRAINS]
    assert wise in job.wanted
    assert TRAINS not in job.wanted


def test_jobs_are_stacked_by_program():
    ready = [Job(TRAINS._replace(method=m, seed=s), ()) for s in range(3) for m in ("ftp", "tpgm")]
    stacked = groups(ready, 2)
    assert [[(x.trained.method, x.trained.seed) for x in group] for group in stacked] == [
        [("ftp", 0), ("ftp", 1)],
        [("tpgm", 0), ("tpgm", 1)],
        [("ftp", 2)],
        [("tpgm", 2)],
    ]


def test_an_unfinished_last_line_is_dropped(tmp_path):
    path = tmp_path / "rows.csv"
    table = Records(path, ("a", "b"))
    table.append([{"a": 1, "b": 2.0}, {"a": "x", "b": 98.648648}])
    table.close()
    path.write_bytes(path.read_bytes() + b"3,4")
    table = Records(path, ("a", "b"))
    table.append([{"a": 5, "b": 6}])
    table.close()
    assert path.read_text() == "a,b\n1,2\nx,98.6486\n5,6\n"
    assert table.rows == records.read(path, ("a", "b"))


def test_rows_of_other_columns_and_a_second_writer_are_refused(tmp_path):
    path = tmp_path / "rows.csv"
    table = Records(path, ("a", "b"))
    with pytest.raises(SystemExit, match="being written by another run"):
        Records(path, ("a", "b"))
    table.close()
    with pytest.raises(SystemExit, match="Move it away, or name another"):
        Records(path, ("a", "c"))


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_by_patches_equals_flax_s(stride):
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    ours: Any = Conv(4, stride)
    flax: Any = nn.Conv(4, (3, 3), strides=stride)
    params = flax.init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, ours.init(jax.random.key(0), x)
    )
    # Sums of 27 products of order 1, in another order: a few dozen roundings.
    np.testing.assert_allclose(ours.apply(params, x), flax.apply(params, x), atol=1e-5)


def test_attention_by_matrices_equals_flax_s():
    x = np.random.default_rng(0).normal(size=(2, 6, 8)).astype(np.float32)
    ours, flax = Attention(4), nn.MultiHeadDotProductAttention(4)
    numbers = np.random.default_rng(1)
    params: Any = jax.tree.map(
        lambda p: numbers.normal(size=p.shape), flax.init(jax.random.key(0), x)
    )
    shapes = jax.tree.map(jnp.shape, ours.init(jax.random.key(0), x))
    assert shapes == jax.tree.map(jnp.shape, params)
    expected: Any = flax.apply(params, x)
    # Sums of 8 products of numbers up to about 10, three times over: 1e-5 is a few roundings.
    np.testing.assert_allclose(np.asarray(ours.apply(params, x)), expected, rtol=1e-5, atol=1e-4)


def test_new_shifts_are_images_that_differ_from_the_test_set():
    tested = sets().tested
    assert list(tested) == [*("validation", "id"), *cells.SHIFTS, *cells.NEW_SHIFTS]
    for name in cells.NEW_SHIFTS:
        images, labels = tested[name]
        assert images.shape == (500, 16, 16)
        assert images.dtype == np.float32
        assert 0 <= images.min() < images.max() <= 1
        assert np.abs(images - tested["id"].images).mean() > 0.01
        np.testing.assert_array_equal(labels, tested["id"].labels)


def hyper(**kwargs):
    fields = {"rate": 1.0, "value": 0.5, "importance": None, "key": jax.random.key(0)}
    return Hyper(**(fields | {"epoch": 2, "exclude": None} | kwargs))


def test_layerwise_decay_counts_layers_from_the_top():
    names = ("layer_1", "layer_2", "head")
    params = {"params": {name: {"bias": jnp.zeros(1)} for name in names}}
    ones = jax.tree.map(jnp.ones_like, params)
    tx = layerwise(hyper())
    updates: Any = tx.update(ones, tx.init(params), params)[0]
    steps = [-float(updates["params"][name]["bias"][0]) for name in names]
    # Adam's first step is 1. In float32, 1 - 0.999 has an error of 6e-8 / 1e-3, and the step half.
    np.testing.assert_allclose(steps, [0.25, 0.5, 1.0], rtol=3e-5)


@pytest.mark.parametrize("exclude", [None, HEAD])
def test_half_of_the_tensors_are_frozen_for_an_epoch(exclude):
    params = {"params": {f"layer_{i}": {"bias": jnp.zeros(1)} for i in range(5)}}
    params["params"]["head"] = {"bias": jnp.zeros(1)}
    tx, moved = half(hyper(exclude=exclude)), []
    state, ones = tx.init(params), jax.tree.map(jnp.ones_like, params)
    for _ in range(8):
        updates, state = tx.update(ones, state, params)
        moved.append([float(x[0]) != 0 for x in jax.tree.leaves(updates)])
    assert moved[0::2] == moved[1::2], "an epoch is two steps"
    assert len(set(map(tuple, moved))) > 1, "the half changes"
    assert {sum(epoch) for epoch in moved} <= ({3} if exclude is None else {3, 4})
    if exclude:
        assert all(epoch[0] for epoch in moved), "a new head always moves"


def test_post_hoc_fit_is_fit_radii():
    apply = network("mlp").apply
    anchor, tuned = (network("mlp").init(jax.random.key(i), jnp.zeros((1, 16, 16))) for i in (0, 1))
    radius = jax.tree.map(lambda x: x[:20], sets().radius)
    fit = training.fitter("mlp", "reused", 5)
    (params, state) = fit(*(jax.tree.map(lambda x: x[None], x) for x in (tuned, anchor)), radius)
    expected = tpgm_jax.fit_radii(
        lambda p, batch: cross_entropy(apply, p, *batch), tuned, anchor, [radius] * 5
    )
    # Five steps of Adam, whose size 1e-2 hardly depends on the gradient's rounding.
    found = tpgm_jax.radii(jax.tree.map(lambda x: x[0], state), tuned)
    assert found == pytest.approx(expected.radii, abs=1e-4)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(a[0], b, atol=1e-4)


@pytest.fixture
def fast_compilation():
    """Turns off optimisations, because compiling takes all the time and training none."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.usefixtures("fast_compilation")
def test_study_runs_reports_and_is_not_run_twice(tmp_path, monkeypatch):
    scope = replace(plan.FAST, models=("mlp",), heads=("reused",))
    path, here = tmp_path / "study.csv", Resources(workers=0, stack=2, cache=tmp_path / "cache")
    work(path, scope, FAST, here)
    rows = records.read(path, COLUMNS)
    done = {records.cell(row): row for row in rows}
    assert len(done) == len(rows), "a cell was run twice"
    assert set(done) == set(complete_study(scope))
    for row in rows:
        assert all(0 <= float(row[name]) <= 100 for name in COLUMNS[8:])
    radii = records.read(path.with_name("study_radii.csv"), runs.RADII_COLUMNS)
    assert {row["method"] for row in radii} >= {"ftp", "tpgm"}

    # After a kill only the lost row is computed again, with the same result.
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:-1]) + whole[-1][:20])
    work(path, scope, FAST, here)
    again = {records.cell(row): row for row in records.read(path, COLUMNS)}
    assert set(again) == set(done)
    for key, row in again.items():
        assert {**row, "seconds": ""} == {**done[key], "seconds": ""}

    monkeypatch.setattr(runs, "perform", None)
    work(path, scope, FAST, here)
    page, results = (tmp_path / "docs" / name for name in ("page.md", "results.md"))
    page.parent.mkdir()
    for file in (page, results):
        file.write_text(f"above\n\n{report.START}\n{report.END}\n\nbelow\n")
    report.main(["--fast", "--input", str(path), "--page", str(page), "--open"])
    text = page.read_text()
    assert text.startswith("above")
    assert text.endswith("below\n")
    assert "| FTP (1 of 15 runs) |" in text
    assert not any(name.replace("_", " ") in text for name in cells.HIDDEN)
    report.main(["--fast", "--input", str(path), "--page", str(page)])
    assert all(name.replace("_", " ") in page.read_text() for name in cells.HIDDEN)
    assert results.read_text().count("| FTP | ") == 1
    assert (page.parent / "page" / "rates.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_on_the_page_prints_one_cell(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(robustness, "FAST_OUTPUT", tmp_path / "study.csv")
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    robustness.main(
        [
            *("--fast", "--cache", str(tmp_path), "--method", "zero_shot"),
            *("--model", "mlp", "--seed", "0", "1"),
        ]
    )
    printed = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["method"] for row in printed] == ["zero_shot"]
    assert not set(printed[0]) & set(cells.HIDDEN)
    robustness.main(["--fast", "--plan"])
    assert "reused" in capsys.readouterr().out
