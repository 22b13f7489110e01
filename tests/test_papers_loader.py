"""Batches of the loader of `examples.papers`, and how it resumes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from papers_images import write_domainnet
from papers_loading import BATCH, COUNT, MEAN, RED, STD, joined, make, same
from PIL import Image

from examples.papers import lists


@pytest.fixture(scope="module")
def listed(tmp_path_factory) -> list[lists.Image]:
    """Images whose label is their place in the list, so that a batch shows which it has."""
    root = tmp_path_factory.mktemp("domainnet")
    write_domainnet(root, "real", "real_train_split.txt", list(range(COUNT)))
    return lists.domainnet(root, "real", "train")


# Batches


def test_pixels_are_normalized(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (9, 9), RED).save(tmp_path / "a/0.png")
    (batch,) = make(lists.image_folder(tmp_path), training=False, batch=1)
    assert batch["image"].shape == (1, 16, 16, 3)
    assert [batch[x].dtype for x in ("image", "label", "mask")] == [np.float32, np.int32, bool]
    expected = (np.array(RED) / 255 - MEAN) / STD
    # Two operations in float32 on numbers up to 255, divided by 0.3 * 255: 255 * 2^-24 / 77.
    np.testing.assert_allclose(batch["image"][0, 5, 5], expected, atol=4e-7)


def test_an_epoch_has_every_image_at_most_once_and_leaves_out_less_than_a_batch(listed):
    loader = make(listed, epochs=3)
    assert loader.steps_per_epoch == COUNT // BATCH
    labels = np.array([x["label"] for x in loader]).reshape(3, -1)
    assert labels.shape[1] == 20
    for epoch in labels:
        assert len(set(epoch)) == 20
    missing = [tuple(set(range(COUNT)) - set(epoch)) for epoch in labels]
    assert len(set(missing)) > 1
    assert not (labels[0] == labels[1]).all()


def test_batches_are_a_function_of_the_seed(listed):
    first = list(make(listed, epochs=2, seed=5))
    same(list(make(listed, epochs=2, seed=5)), first)
    other = list(make(listed, epochs=2, seed=6))
    assert any((a["label"] != b["label"]).any() for a, b in zip(first, other, strict=True))
    # Seed 6's first epoch is not seed 5's second.
    assert any((a["label"] != b["label"]).any() for a, b in zip(first[5:], other, strict=False))


def test_an_image_has_another_crop_in_each_epoch(listed):
    pixels = [{}, {}]
    for i, batch in enumerate(make(listed, epochs=2)):
        for label, image in zip(batch["label"], batch["image"], strict=True):
            pixels[i // 5][int(label)] = image
    shared = pixels[0].keys() & pixels[1].keys()
    assert len(shared) >= 18
    assert all((pixels[0][x] != pixels[1][x]).any() for x in shared)


def test_training_has_no_end_by_default(listed):
    batches = iter(make(listed))
    assert len([next(batches) for _ in range(12)]) == 12
    batches.close()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batches_of_one(listed, training, processes):
    options = {"training": training, "epochs": 2 if training else None}
    whole = list(make(listed, **options))
    parts = [
        list(make(listed, process=i, processes=processes, **options)) for i in range(processes)
    ]
    assert all(len(x["image"]) == BATCH // processes for x in parts[0])
    same(joined(parts), whole)


def test_evaluation_counts_every_image_once_in_order(listed):
    loader = make(listed, training=False, batch=8)
    for _ in range(2):  # again from the start
        batches = list(loader)
        assert len(batches) == loader.steps_per_epoch == 3
        mask = np.concatenate([x["mask"] for x in batches])
        labels = np.concatenate([x["label"] for x in batches])
        assert labels[mask].tolist() == list(range(COUNT))
        assert mask.tolist() == [True] * COUNT + [False] * 2
        assert not batches[-1]["image"][~batches[-1]["mask"]].any()
    even = make(listed[:16], training=False, batch=8)
    assert [x["mask"].all() for x in even] == [True, True]


def test_the_last_process_may_have_nothing_but_rows_to_ignore(listed):
    parts = [make(listed[:5], training=False, batch=8, process=i, processes=2) for i in range(2)]
    (first,), (second,) = parts
    assert first["mask"].sum() == 4
    assert second["mask"].tolist() == [True, False, False, False]
    (last,) = make(listed[:3], training=False, batch=8, process=1, processes=2)
    assert not last["mask"].any()


# Resuming


@pytest.mark.parametrize("stop", [0, 3, 5, 7])
@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (4, 2)])
def test_a_resumed_run_is_equal_to_an_uninterrupted_one(listed, stop, before, after):
    whole = list(make(listed, epochs=2))
    first = [make(listed, epochs=2, process=i, processes=before) for i in range(before)]
    iterators = [iter(x) for x in first]
    received = joined([[next(x) for _ in range(stop)] for x in iterators])
    for iterator in iterators:
        iterator.close()
    state = json.loads(json.dumps(first[-1].state()))
    assert all(x.state() == state for x in first)  # any process may save it
    second = [make(listed, epochs=2, process=i, processes=after) for i in range(after)]
    for loader in second:
        loader.restore(state)
    same(received + joined([list(x) for x in second]), whole)


def test_a_loop_that_was_left_resumes_after_its_last_batch(listed):
    loader, received = make(listed, epochs=2), []
    while len(received) < 10:
        for batch in loader:
            received.append(batch)
            if len(received) % 3 == 0:
                break
    same(received, list(make(listed, epochs=2)))
    assert list(loader) == []


def test_another_list_seed_or_batch_is_refused(listed):
    state = make(listed).state()
    for name, loader in {
        "images": make(listed[:-1]),
        "seed": make(listed, seed=1),
        "batch": make(listed, batch=2),
    }.items():
        with pytest.raises(
            ValueError, match=f"`{name}` is .* Use the same `{name}`, or start anew"
        ):
            loader.restore(state)
    relabelled = [*listed[:-1], lists.Image(listed[-1].path, 0)]
    with pytest.raises(ValueError, match="`images`"):
        make(relabelled).restore(state)


def test_images_may_be_in_another_folder_after_a_restart(listed, tmp_path):
    shutil.copytree(Path(listed[0].path).parents[2], tmp_path / "moved")
    moved = make(lists.domainnet(tmp_path / "moved", "real", "train"), epochs=1)
    moved.restore(make(listed).state())
    same(list(moved), list(make(listed, epochs=1)))
