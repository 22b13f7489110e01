"""The papers' programs from end to end: tiny networks, generated images in the real layouts."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import papers_files
import pytest

from examples.papers.__main__ import main
from examples.papers.published import SETS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
SHAPES = {
    "resnet50": papers_files.RESNET,
    "clip-resnet50": papers_files.CLIP_RESNET,
    "clip-vit-b16": papers_files.VIT,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with both data sets and the weights of each model."""
    root = tmp_path_factory.mktemp("files")
    papers_files.write_domainnet(root / "domainnet")
    papers_files.write_imagenet(root / "imagenet")
    for model in SHAPES:
        papers_files.write_weights(root / f"{model}.safetensors", model)
    return root


def arguments(files, experiment, model, output, **options):
    """Arguments of the command line. Eight images a step, one for each device of the tests."""
    words = [experiment, "--data", files / experiment, "--weights", files / f"{model}.safetensors"]
    more = {"model": model, "percent": 10} if experiment == "domainnet" else {}
    common = {"output": output, "batch": 8, "precision": "float32", "save_every": 3}
    for name, value in (common | more | options).items():
        words += [f"--{name.replace('_', '-')}", *([] if value is True else [value])]
    return [str(word) for word in words]


def run(files, experiment, model, output, **options):
    return main(arguments(files, experiment, model, output, **options), SHAPES[model])


def saved(folder, name="params"):
    """Arrays of the last checkpoint, by path."""
    step = max(int(x.name) for x in folder.iterdir() if x.name.isdigit())
    with ocp.CheckpointManager(folder) as manager:
        items = {name: ocp.args.StandardRestore()}
        tree = manager.restore(step, args=ocp.args.Composite(**items))[name]
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


def test_domainnet_learns_reports_every_domain_and_is_not_repeated(files, tmp_path, capsys):
    options = {"method": "finetune", "epochs": 8, "learning_rate": 3e-3, "batch": 16}
    options |= {"corruptions": 1}
    found = run(files, "domainnet", "clip-resnet50", tmp_path, **options)
    assert list(found)[:6] == ["real, validation", *SETS["domainnet"]]
    assert "real, jpeg_compression" in found
    # The colours of the classes are far apart, in all domains; a guess has 25 %.
    assert min(found[name] for name in SETS["domainnet"]) > 75, found
    printed = capsys.readouterr().out
    assert re.search(r"finetune, this run +[\d.]+ +[\d.]+", printed)
    folder = tmp_path / "domainnet" / "clip-resnet50" / "finetune"
    assert json.loads((folder / "results.json").read_text())["accuracies"] == found

    before = saved(folder)
    assert run(files, "domainnet", "clip-resnet50", tmp_path, **options) == found
    assert "finetune: resumed after step 40 of 40" in capsys.readouterr().out
    np.testing.assert_equal(saved(folder), before)


def test_a_killed_run_resumes_to_the_same_numbers(files, tmp_path, capsys):
    options = {"method": "tpgm", "epochs": 1, "learning_rate": 3e-3}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = run(files, "domainnet", "resnet50", whole, **options)

    words = arguments(files, "domainnet", "resnet50", killed, **options)
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(jax.device_count()),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, ROOT / "tests" / "papers_process.py", "6"]
    shape = json.dumps(SHAPES["resnet50"])
    died = subprocess.run(
        [*map(str, command), shape, *words], env=environment, capture_output=True, text=True
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    folder = Path("domainnet", "resnet50", "tpgm")
    unfinished = ["1", "3", "6.orbax-checkpoint-tmp"]
    assert sorted(x.name for x in (killed / folder).iterdir()) == unfinished

    capsys.readouterr()
    assert run(files, "domainnet", "resnet50", killed, **options) == expected
    assert "tpgm: resumed after step 3 of 10" in capsys.readouterr().out
    for name in ("params", "stats", "opt_state"):
        received, wanted = saved(killed / folder, name), saved(whole / folder, name)
        assert received
        np.testing.assert_equal(received, wanted)
    results = [json.loads((x / folder / "results.json").read_text()) for x in (killed, whole)]
    assert results[0] == results[1]
    assert len(results[0]["radii"]) > 50


# The others differ in their optimizer, which tests/test_papers_recipes.py checks.
@pytest.mark.parametrize("method", ["ftp", "tpgm"])
def test_imagenet_runs_with_learned_radii(method, files, tmp_path, capsys):
    options = {"method": method, "epochs": 2, "learning_rate": 3e-3}
    found = run(files, "imagenet", "clip-vit-b16", tmp_path, **options)
    assert list(found) == list(SETS["imagenet"])
    assert all(0 <= x <= 100 for x in found.values())
    printed = capsys.readouterr().out
    assert "tpgm, published" in printed
    results = tmp_path / "imagenet" / "clip-vit-b16" / method / "results.json"
    radii = json.loads(results.read_text())["radii"]
    # The head was trained first, so it has an anchor too.
    assert ("head/kernel" in radii) == (method == "ftp")


def test_parameters_that_are_divided_over_the_devices_train_alike(files, tmp_path):
    options = {"method": "ftp", "epochs": 1, "learning_rate": 3e-3, "probe_epochs": 0}
    found = {}
    for layout in ("data", "fsdp"):
        run(files, "imagenet", "clip-vit-b16", tmp_path / layout, layout=layout, **options)
        found[layout] = saved(tmp_path / layout / "imagenet" / "clip-vit-b16" / "ftp")
    # Sums have another order, which Adam's first steps, of the gradient's sign, can magnify to
    # twice the learning rate, 3e-3, for a gradient near 0. Few weights have one.
    for name, expected in found["data"].items():
        near = np.isclose(found["fsdp"][name], expected, rtol=1e-3, atol=1e-4)
        assert near.mean() > 0.95, name


def test_a_zero_shot_head_is_loaded_and_constrained(files, tmp_path, capsys):
    head = np.random.default_rng(0).normal(size=(8, papers_files.CLASSES)).astype(np.float32)
    np.savez(tmp_path / "head.npz", kernel=head)
    # A step of 0 leaves the head where it was.
    options = {"method": "wise", "epochs": 1, "learning_rate": 1e-30, "weight_decay": 0}
    options |= {"head": tmp_path / "head.npz"}
    run(files, "imagenet", "clip-vit-b16", tmp_path, **options)
    assert "the head loaded from" in capsys.readouterr().out
    params = saved(tmp_path / "imagenet" / "clip-vit-b16" / "wise")
    np.testing.assert_allclose(params["['head']['kernel']"], head, rtol=1e-6)
    np.savez(tmp_path / "head.npz", kernel=head + 1)
    with pytest.raises(SystemExit):
        run(files, "imagenet", "clip-vit-b16", tmp_path, **options)
    assert "made with {'head': " in capsys.readouterr().err


def test_unreadable_images_stop_the_run_or_are_counted(files, tmp_path, capsys):
    folder = tmp_path / "imagenet"
    papers_files.write_imagenet(folder)
    broken = folder / "val" / "n00000000" / "0.JPEG"
    broken.write_bytes(b"no image")
    for tree in ("imagenet-v2", "imagenet-sketch"):
        (folder / tree).rename(folder / f"no {tree}")
    options = {"method": "finetune", "epochs": 1, "probe_epochs": 0, "data": folder}
    with pytest.raises(SystemExit):
        run(files, "imagenet", "clip-vit-b16", tmp_path / "out", **options)
    error = " ".join(capsys.readouterr().err.split())
    assert "n00000000/0.JPEG cannot be read" in error
    assert "`--on-error skip`" in error
    found = run(files, "imagenet", "clip-vit-b16", tmp_path / "out", on_error="skip", **options)
    printed = capsys.readouterr().out
    assert re.search(r"^imagenet: [\d.]+ %, 1 images skipped", printed, re.MULTILINE)
    assert "not measured, imagenet-v2: " in printed
    assert list(found) == ["imagenet", "imagenet-a", "imagenet-r"]
    results = tmp_path / "out" / "imagenet" / "clip-vit-b16" / "finetune" / "results.json"
    skipped = json.loads(results.read_text())["skipped"]
    assert list(skipped["imagenet"]) == [str(broken)]
    assert skipped["imagenet-a"] == skipped["train"] == {}
    (ours,) = (x for x in printed.splitlines() if "this run" in x)
    assert ours.split()[-4:].count("-") == 2  # V2, sketch and the mean: one before R


def test_a_dry_run_writes_nothing(files, tmp_path, capsys):
    options = {"method": "ftp", "dry_run": True, "images_per_second": 0.0248, "probe_epochs": 0}
    assert run(files, "imagenet", "clip-vit-b16", tmp_path, **options) == {}
    printed = capsys.readouterr().out
    assert "images to train on: 88" in printed
    assert "steps: 110" in printed
    # 880 images, and 40 test images at a third of their time: 893 / 0.0248 / 3600 = 10.0 hours.
    assert "time: 10.0 hours at 0.0248 images per second" in printed
    assert "activations and temporaries" in printed
    assert list(tmp_path.iterdir()) == []
