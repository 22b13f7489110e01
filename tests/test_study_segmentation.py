"""The study's dense prediction: masks, their measure, and a rehearsal."""

import csv

import numpy as np
import pytest

from benchmarks.study import cells, segmentation
from benchmarks.study.pretraining import FAST
from benchmarks.study.sets import sets
from benchmarks.study.training import Finished
from benchmarks.study.unet import UNet
from examples.digits.data import generator

pytestmark = pytest.mark.slow


def inside(name):
    """Images, classes, and foreground masks of a test set."""
    images, classes = segmentation.tested()[name]
    return images, classes, classes != segmentation.BACKGROUND


@pytest.mark.parametrize("name", ["id", *cells.SHIFTS, *cells.NEW_SHIFTS])
def test_a_mask_holds_the_label_of_its_image_and_is_as_large_as_a_digit(name):
    images, classes, digit = inside(name)
    labels = sets().tested["id"].labels
    assert images.shape == classes.shape == (500, 16, 16)
    np.testing.assert_array_equal(classes, np.where(digit, labels[:, None, None], 10))
    assert np.all(digit.mean(axis=(1, 2)) > 0.02)
    assert 0.15 < digit.mean() < 0.5


def test_masks_move_with_the_ink():
    clean, _, unmoved = inside("id")
    np.testing.assert_array_equal(unmoved, clean > 0.5)
    for name in ("invert", "noise", "occlude", "jpeg", "dots"):
        np.testing.assert_array_equal(inside(name)[2], unmoved)
    for name in ("rotate", "shift", "elastic", "fonts", "outlines"):
        images, _, moved = inside(name)
        np.testing.assert_array_equal(moved, images > 0.5)
        assert np.any(moved != unmoved)
    # Where ink covers more than half of a pixel, the photograph is at least as bright.
    for name in ("photo", "fonts_photo"):
        images, _, covered = inside(name)
        assert images[covered].min() > 0.5
    assert np.any(inside("fonts_photo")[2] != inside("fonts")[2])


def test_masks_of_the_pre_training_set_show_where_its_images_have_ink():
    split = segmentation.rendered(generator(0, "masks"), 400)
    digit = split.labels != segmentation.BACKGROUND
    assert 0.1 < digit.mean() < 0.6
    # On plain paper, nearly all pixels that differ from the corner's grey by a quarter are in the
    # mask or on its blurred edge. Half of the images are on paper.
    difference = np.abs(split.images - split.images[:, :1, :1]) > 0.25
    share = [
        (differs & mask).sum() / max(mask.sum(), 1)
        for differs, mask in zip(difference, digit, strict=True)
    ]
    assert np.median(share) > 0.8


def test_mean_iou_equals_a_hand_computation():
    classes = np.array([[0, 0, 10], [10, 10, 1]])
    predicted = np.array([[0, 10, 10], [10, 1, 1]])
    # 0: 1 of 2; 1: 1 of 2; the background: 2 of 4; other classes do not occur.
    assert segmentation.mean_iou(predicted, classes) == pytest.approx(0.5)
    assert segmentation.mean_iou(classes, classes) == 1


def test_a_rehearsal_has_a_row_for_each_run_and_resumes(tmp_path, monkeypatch):
    # With two widths it compiles in half the time.
    monkeypatch.setattr(segmentation, "NETWORK", UNet(widths=(4, 8)))

    def rehearse(*seeds):
        # Each further method would be compiled. Another test checks that methods differ.
        scope = segmentation.Scope(methods=("ftp",), rates=(1e-3,), seeds=seeds)
        segmentation.run(tmp_path / "rows.csv", scope, FAST, tmp_path / "cache")
        with (tmp_path / "rows.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    first = rehearse(0)
    assert [row["method"] for row in first] == ["ftp"]
    rows = rehearse(0, 1)
    assert rows[:1] == first
    assert [row["seed"] for row in rows] == ["0", "1"]
    assert all(0 < float(row["id"]) < 100 for row in rows)


def test_wise_ft_is_derived_from_a_fine_tuning(tmp_path, monkeypatch):
    anchor, tuned = ({"w": np.full((1, 2), x, np.float32)} for x in (0.0, 1.0))
    monkeypatch.setattr(segmentation, "pretrained", lambda *_: anchor)
    monkeypatch.setattr(segmentation, "trainer", lambda *_: None)
    finished = Finished({"w": tuned["w"][None]}, {"w": 0.5 * tuned["w"][None]}, None)
    monkeypatch.setattr(segmentation, "timed", lambda *_: (finished, 1.5))
    monkeypatch.setattr(segmentation, "accuracy", lambda params: {"id": float(params["w"].mean())})
    run = {"method": "finetune", "learning_rate": 1e-3, "setting": ""}
    made = segmentation.learn(run | {"pretrain_seed": 0, "seed": 0}, FAST, tmp_path)
    assert [(x["method"], x["setting"], x["id"]) for x in made] == [
        ("finetune", "", 1.0),
        ("wise", "alpha=0.5", 0.5),
    ]
    # Nine tenths of the mean of the iterates.
    made = segmentation.learn(
        run | {"method": "ftp_anchor", "pretrain_seed": 0, "seed": 0}, FAST, tmp_path
    )
    assert [x["method"] for x in made] == ["ftp_anchor", "recommended"]
    assert made[1]["id"] == pytest.approx(0.45)


def test_derived_rows_are_computed_again_without_writing_the_run_twice(tmp_path, monkeypatch):
    def learn(run, *_):
        asked.append((run["method"], run["setting"]))
        row = run | dict.fromkeys(segmentation.COLUMNS[5:], 1.0)
        rows = {"finetune": {"method": "wise", "setting": "alpha=0.5"}}
        return [row, *([row | rows[run["method"]]] if run["method"] in rows else [])]

    monkeypatch.setattr(segmentation, "learn", learn)

    def methods_in_file(*methods):
        asked.clear()
        scope = segmentation.Scope(methods=methods, rates=(1e-3,), seeds=(0,))
        segmentation.run(tmp_path / "rows.csv", scope, FAST, tmp_path)
        with (tmp_path / "rows.csv").open(newline="") as file:
            return [row["method"] for row in csv.DictReader(file)]

    asked: list[tuple[str, str]] = []
    assert methods_in_file("finetune", "l2sp") == ["finetune", "l2sp"]
    assert asked == [("finetune", ""), ("l2sp", "weight=0.01")]
    assert methods_in_file("zero_shot", "finetune", "wise") == [
        "finetune",
        "l2sp",
        "wise",
        "zero_shot",
    ]
    assert asked == [("finetune", ""), ("zero_shot", "")]
