"""`examples.pod_finetune` at its smallest size, and its modules."""

import dataclasses
import functools
import re
import signal
import sys
from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
from processes import SETTINGS, arguments, assert_equal, load_checkpoint, start_processes

import tpgm_jax
from examples.pod import data, sharding
from examples.pod.model import AXES, init
from examples.pod.settings import Settings
from examples.pod_finetune import main

pytestmark = pytest.mark.slow
DATA = {"fine-tuning data", "pre-training data"}
RADII = {  # by tensor, the number of radii
    **{f"layers/attention/{name}/kernel": 2 for name in ("query", "key", "value", "out")},
    **{f"layers/{name}/kernel": 2 for name in ("up", "down")},
    **{f"layers/{name}/scale": 2 for name in ("norm_1", "norm_2")},
    **{name: 1 for name in ("embed/embedding", "position/embedding", "norm/scale", "head/kernel")},
}


@pytest.fixture(scope="module")
def full_run(tmp_path_factory):
    """A complete run: its folder, and its results."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, main(arguments(folder))


def assert_complete(results):
    assert set(results["losses"]) == {"before fine-tuning", "after"}
    for losses in results["losses"].values():
        assert set(losses) == DATA
        assert all(np.isfinite(loss) and loss > 0 for loss in losses.values())
    assert {name: np.size(r) for name, r in results["radii"].items()} == RADII
    assert all(np.min(r) > 0 for r in results["radii"].values())


def test_a_run_reports_losses_on_old_and_new_data_and_a_radius_for_each_layer(full_run):
    assert_complete(full_run[1])


def test_a_complete_run_is_not_repeated(full_run, capsys):
    folder, results = full_run
    before = load_checkpoint(folder, SETTINGS.steps)
    assert main(arguments(folder)) == results
    assert "resumed after step 6 of 6" in capsys.readouterr().out
    assert_equal(load_checkpoint(folder, SETTINGS.steps), before)


def test_a_checkpoint_of_other_options_is_refused_although_its_shapes_fit(full_run, monkeypatch):
    other = functools.partial(tpgm_jax.ftp, anchor_dtype="bfloat16")
    monkeypatch.setattr(tpgm_jax, "ftp", other)
    with pytest.raises(ValueError, match="`anchor_dtype` was different"):
        load_checkpoint(full_run[0], SETTINGS.steps)


def test_a_kill_while_saving_leaves_the_previous_checkpoint(full_run, tmp_path, capsys):
    whole, results = full_run
    words = arguments(tmp_path, pretrained=whole / "pretrained")
    # As many devices as here, so that sums have the same order.
    with start_processes(["save", 4, *words], tmp_path / "log", 1, jax.device_count()) as (
        process,
    ):
        assert process.child.wait(timeout=240) == -signal.SIGKILL, process.log.read_text()
    assert [path.name for path in (tmp_path / "ftp").glob("4*")] == ["4.orbax-checkpoint-tmp"]

    assert main(words) == results
    assert "fine-tuning: resumed after step 2 of 6" in capsys.readouterr().out
    assert_equal(load_checkpoint(tmp_path, SETTINGS.steps), load_checkpoint(whole, SETTINGS.steps))


def test_tpgm_runs_on_a_text_and_logs_its_radii(full_run, tmp_path):
    (tmp_path / "text").write_text("To be, or not to be, that is the question. " * 10)
    settings = dataclasses.replace(SETTINGS, method="tpgm", every=2, text=str(tmp_path / "text"))
    folders = {"pretrained": full_run[0] / "pretrained", "tensorboard": tmp_path / "board"}
    results = main(arguments(tmp_path / "run", settings, **folders, log_every=3, save_every=4))
    assert_complete(results)
    assert sorted(x.name for x in (tmp_path / "run" / "tpgm").iterdir()) == ["1", "4", "6"]
    old, (before, *_) = "pre-training data", full_run[1]["losses"].values()
    assert results["losses"]["before fine-tuning"][old] == before[old]
    (board,) = (tmp_path / "board").iterdir()
    for name in ("fine-tuning/loss", "radius/layers/up/kernel/1", "radius/norm/scale/0"):
        assert board.read_bytes().count(name.encode()) == 2, name


def test_rows_do_not_depend_on_how_processes_divide_them(tmp_path):
    text = tmp_path / "text"
    text.write_bytes(np.random.default_rng(0).bytes(1000))
    for source in (data.Languages(range(4, 8), seed=3), data.Text(text, 8, seed=3)):
        whole = source.rows("train", 5, range(16), 8)
        parts = [source.rows("train", 5, rows, 8) for rows in (range(3), range(3, 16))]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        mesh = sharding.mesh()
        np.testing.assert_array_equal(data.batch(source, "train", 5, (16, 8), mesh), whole)
        for split, step in (("train", 6), ("held-out", 5), ("test", 5)):
            assert not np.array_equal(source.rows(split, step, range(16), 8), whole)


def test_a_row_is_in_one_language_and_each_byte_has_four_successors():
    tokens = data.Languages(range(4, 8), seed=0).rows("train", 0, range(1000), 64)
    assert {len(set(row // data.ALPHABET)) for row in tokens} == {1}
    assert set(np.unique(tokens // data.ALPHABET)) == {4, 5, 6, 7}
    pairs = set(zip(tokens[:, :-1].ravel(), tokens[:, 1:].ravel(), strict=True))
    followers = np.unique([first for first, _ in pairs], return_counts=True)[1]
    np.testing.assert_array_equal(followers, np.full(128, data.SUCCESSORS))


def test_splits_of_a_text_are_disjoint(tmp_path):
    (tmp_path / "text").write_bytes(b"a" * 800 + b"b" * 100 + b"c" * 100)
    text = data.Text(tmp_path / "text", 8, seed=0)
    for split, letter in (("train", b"a"), ("held-out", b"b"), ("test", b"c")):
        assert set(text.rows(split, 0, range(300), 8).tobytes()) == set(letter)


def test_large_arrays_are_sharded_over_the_devices():
    settings = Settings(width=64, layers=8)
    shapes = jax.eval_shape(lambda: init(settings))
    laid = sharding.of_params(shapes, AbstractMesh((8,), ("fsdp",)))
    tx = tpgm_jax.ftp(optax.adam(1e-3), exclude="head/.*", axes=AXES)
    laid = laid, sharding.of_state(tx, shapes, laid)
    params, state = jax.tree.map(lambda x: x.spec, laid)
    assert params["embed"]["embedding"] == P("fsdp", None)
    assert params["layers"]["up"]["kernel"] == P(None, None, "fsdp")
    # Not along the layers, although there are as many layers as devices.
    assert params["layers"]["norm_1"]["scale"] == P(None, None)
    for mirror in (state.anchor, state.displacement):
        assert jax.tree.leaves(mirror["head"]) == []
        assert {**mirror, "head": ()} == {**params, "head": ()}
    assert optax.tree.get(state.base_state, "mu") == params
    assert state.radii == state.step == P()


REFUSALS = {
    "batch": ({"batch": 12}, "`--batch` is 12, which 8 devices cannot divide: use a multiple"),
    "heads": ({"heads": 3}, "`--width` is 16, which 3 heads cannot divide"),
    "method": ({"method": "fpt"}, "`--method` must be one of ftp, tpgm, none; got 'fpt'"),
    "steps": ({"steps": 0}, "`--steps` must be 1 or more; got 0"),
    "a seed below 0": ({"seed": -1}, "`--seed` must be 0 or more; got -1"),
    "no saving": ({"save_every": 0}, "--save-every: must be 1 or more; got 0"),
    "half a cluster": ({"process": 1}, "give all three, or `--distributed` alone"),
    "no pre-trained model": ({"pretrained": "{tmp}/typo"}, "there is no checkpoint in .*typo"),
    "no text": ({"text": "{tmp}/typo"}, "`--text` cannot be read, because of .*No such file"),
    "a short text": ({"text": "{tmp}/short"}, "`--text` has 5 bytes.* give it 90 or more"),
    "no TensorBoard": ({"tensorboard": "{tmp}/board"}, "pip install tensorboardX"),
    "other steps": (
        {"output": "{full_run}", "steps": 8},
        "made with {'steps': 6}: pass the same",
    ),
    "another model": (
        {"pretrained": "{full_run}/pretrained", "width": 32},
        "made with {'width': 16}",
    ),
}


@pytest.mark.parametrize(("options", "message"), REFUSALS.values(), ids=REFUSALS)
def test_bad_options_are_refused(options, message, full_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)  # as if it were not installed
    (tmp_path / "short").write_text("short")
    folders = {"tmp": tmp_path, "full_run": full_run[0]}
    given: Any = {"output": "{tmp}/out", "pretrained": "{full_run}/pretrained"} | options
    given = {k: v.format(**folders) if isinstance(v, str) else v for k, v in given.items()}
    settings = {name: given.pop(name) for name in options if hasattr(SETTINGS, name)}
    with pytest.raises(SystemExit):
        main(arguments(given.pop("output"), dataclasses.replace(SETTINGS, **settings), **given))
    error = " ".join(capsys.readouterr().err.split())
    assert re.search(message, error), error
    assert not (tmp_path / "typo").exists()
