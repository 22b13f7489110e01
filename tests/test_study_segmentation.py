"""The study's dense prediction: masks, their measure, and a small run."""

import numpy as np
import pytest

from benchmarks.study import cells, segmentation
from benchmarks.study.models import UNet
from benchmarks.study.pretraining import Setup
from benchmarks.study.sets import sets
from benchmarks.study.training import Trained
from examples.digits.data import generator
from examples.digits.settings import Settings

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


def test_methods_are_derived_from_a_training(tmp_path, monkeypatch):
    anchor, tuned, mean = ({"w": np.full((2,), x, np.float32)} for x in (0.0, 1.0, 0.5))
    monkeypatch.setattr(segmentation, "pretrained", lambda *_: anchor)
    monkeypatch.setattr(segmentation, "finetune", lambda *_: Trained(tuned, mean, None, 1.5))
    monkeypatch.setattr(segmentation, "accuracy", lambda params: {"id": float(params["w"].mean())})
    run = {"method": "finetune", "pretrain_seed": 0, "setting": ""}
    wanted = [
        run,
        run | {"method": "wise", "setting": "alpha=0.5"},
        run | {"method": "recommended"},
    ]
    made = segmentation.learn(run, wanted, Setup(tmp_path))
    assert [x["id"] for x in made] == [1.0, 0.5, pytest.approx(0.45)]
    assert {x["seconds"] for x in made} == {1.5}


def test_a_small_network_is_pre_trained_and_fine_tuned(tmp_path, monkeypatch):
    # With two widths it compiles in half the time.
    monkeypatch.setattr(segmentation, "NETWORK", UNet(widths=(4, 8)))
    sizes = Settings(
        steps=10, batch=32, pretraining_images=400, pretraining_steps=10, pretraining_batch=32
    )
    run = {"method": "ftp", "learning_rate": 1e-3, "setting": "", "pretrain_seed": 0, "seed": 0}
    setup = Setup(tmp_path, sizes)
    (row,) = segmentation.learn(run, [run], setup)
    (untrained,) = segmentation.learn(run | {"method": "zero_shot"}, [run], setup)
    assert 0 < row["id"] < 100
    assert row["id"] != untrained["id"]
