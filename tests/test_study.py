"""The study at its smallest size: networks, methods, and running recorded rows again."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import recording, robustness
from benchmarks.study import cells, runs
from benchmarks.study.methods import HEAD, SOURCES, Hyper, following, half, layerwise, relative
from benchmarks.study.pretraining import Setup
from benchmarks.study.sets import few, sets
from examples.digits.settings import Settings

pytestmark = pytest.mark.slow
SIZES = Settings(
    steps=10,
    batch=32,
    radius_steps=3,
    pretraining_images=400,
    pretraining_steps=10,
    pretraining_batch=32,
)


def test_an_unfinished_last_line_is_removed(tmp_path):
    path, columns = tmp_path / "rows.csv", ("a", "b")
    assert recording.read(path, columns) == []
    recording.append([{"a": 1, "b": 2.0}, {"a": "x", "b": 98.648648}], columns, path)
    path.write_bytes(path.read_bytes() + b"3,4")
    rows = recording.read(path, columns)
    recording.append([{"a": 5, "b": 6}], columns, path)
    assert path.read_text() == "a,b\n1,2\nx,98.6486\n5,6\n"
    assert recording.read(path, columns)[:2] == rows
    with pytest.raises(SystemExit, match="Move it away, or name another"):
        recording.read(path, ("a", "c"))


def test_new_shifts_are_images_that_differ_from_the_test_set():
    tested = sets().tested
    assert list(tested) == list(cells.COLUMNS[8:])
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


def test_a_relative_step_multiplies_the_radius():
    tx, r = relative(0.1), jnp.array([2.0, 0.5])
    updates: Any = tx.update(jnp.array([3.0, -1e-3]), tx.init(r), r)[0]
    # Adam's first step is the sign of the gradient, up to eps / |h| = 1e-5.
    np.testing.assert_allclose(r + updates, r * np.exp([-0.1, 0.1]), rtol=2e-6)


def test_a_following_step_is_a_share_of_the_learning_rate():
    state: Any
    params = {"params": {"layer_0": {"kernel": jnp.full((4, 3), 0.05)}}}
    tx = following(0.5)(hyper(rate=lambda step: 1e-3))
    updates, state = tx.update(params, tx.init(params), params)
    for _ in range(2):
        updates, state = tx.update(params, state, optax.apply_updates(params, updates))
    # Adam moves a row of 4 weights by 4e-3; the radii's Adam steps by half of that. Its
    # gradients are 0 in the first update, and then equal: m / sqrt(v), corrected for the start.
    steps = [(1 - 0.9**n) / (1 - 0.9 ** (n + 1)) for n in (1, 2)]
    steps /= np.sqrt([(1 - 0.999**n) / (1 - 0.999 ** (n + 1)) for n in (1, 2)])
    # Float32 rounds 1 - 0.999 to 6e-8 / 1e-3.
    assert state.radii[0] == pytest.approx(2e-3 * sum(steps), rel=1e-4)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Runs recorded rows again, with small sizes."""
    monkeypatch.setattr(runs, "accuracy", lambda model, params: measure(params))
    made = Setup(tmp_path / "cache", SIZES)

    def measure(params):
        # A number that every small change of a weight changes in its first digits.
        number = float(sum(jnp.sin(1e4 * x).sum() for x in jax.tree.leaves(params)))
        return dict.fromkeys(cells.COLUMNS[8:], number)

    def rerun(table, rows):
        robustness.rerun(table, rows, tmp_path / "again.csv", made, workers=1)
        return recording.read(tmp_path / "again.csv")

    return rerun


def recorded(table, *choices):
    name = "robustness.csv" if table == "study" else f"robustness_{table}.csv"
    return robustness.select(recording.read(robustness.RESULTS / name), choices)


def test_every_method_of_the_recorded_rows_runs_again_and_resumes(small, tmp_path, monkeypatch):
    rows = recorded("study", "model=mlp", "head=reused", "pretrain_seed=0")
    rows = list({row["method"]: row for row in reversed(rows)}.values())
    trainings = []
    monkeypatch.setitem(
        robustness.TABLES, "study", lambda *args: trainings.append(args[0]) or runs.learn(*args)
    )
    again = small("study", rows)
    keys = [tuple(robustness.key(x).values()) for x in rows]
    assert sorted(tuple(robustness.key(x).values()) for x in again) == sorted(keys)
    # Methods that train nothing share the training that they rest on.
    assert len({tuple(robustness.training(x).items()) for x in rows}) == len(trainings)
    assert not {x["method"] for x in trainings} & set(SOURCES)
    # All methods end at other weights.
    assert len({row["id"] for row in again}) == len(rows)

    # After a kill only the lost row is computed again, with the same result.
    path = tmp_path / "again.csv"
    path.write_bytes(path.read_bytes()[:-20])
    trainings.clear()
    resumed = small("study", rows)
    assert len(trainings) == 1
    for before, after in zip(again, resumed, strict=True):
        assert before | {"seconds": ""} == after | {"seconds": ""}


@pytest.mark.parametrize("table", ["few_labels", "exploration", "radii"])
def test_rows_of_other_tables_run_again(table, small):
    rows = recorded(table, "model=mlp")
    (first, *others) = (x for x in rows if x.get("method", x.get("candidate")) == "ftp")
    rows = [first, *(x for x in others if robustness.training(x) == robustness.training(first))]
    again = small(table, rows)
    assert list(map(robustness.key, again)) == list(map(robustness.key, rows))
    if table == "exploration":
        # The eight mixtures differ. No set that is held back is recorded.
        assert len({row["id"] for row in again}) == 8
        assert not set(again[0]) & {*cells.HELD_BACK, *cells.NEW_SHIFTS}
    if table == "radii":
        assert all(float(row["radius"]) > 0 for row in again)


def test_few_labels_are_equally_many_of_each_class():
    images, labels = few(100, seed=1)
    assert images.shape == (100, 16, 16)
    np.testing.assert_array_equal(np.bincount(labels), [10] * 10)
    assert not np.array_equal(images, few(100, seed=2).images)


def test_a_continual_run_keeps_its_anchor_near_the_last_task(small):
    rows = recorded("continual", "model=mlp", "learning_rate=0.001", "seed=0")
    rows = [x for x in rows if x["method"] in ("finetune", "ftp")]
    again = {row["method"]: row for row in small("continual", rows)}
    assert again.keys() == {"finetune", "ftp"}
    assert again["finetune"]["accuracy"] != again["ftp"]["accuracy"]


def test_the_command_on_the_page_prints_a_row_above_the_recorded_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(robustness, "Setup", lambda cache: Setup(tmp_path, SIZES))
    options = ["--output", str(tmp_path / "again.csv"), "--workers", "1"]
    chosen = ["model=mlp", "method=zero_shot", "pretrain_seed=0"]
    robustness.main([*options, *chosen])
    header, again, old = capsys.readouterr().out.splitlines()
    assert header == ",".join(cells.COLUMNS)
    assert again.startswith("mlp,reused,zero_shot,0,,0,0,0,")
    assert old.startswith("mlp,reused,zero_shot,0,,0,0,0,65.5405,")
    assert old.endswith(" (recorded)")
    with pytest.raises(SystemExit, match="Write COLUMN=VALUE as in the CSV"):
        robustness.main([*options, "method=zero-shot"])
