"""The loader of `examples.papers`: images that cannot be read, and workers."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from papers_images import write_domainnet
from papers_loading import COUNT, make, same
from PIL import Image

from examples.papers import images, lists

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONWARNINGS": "error"}


@pytest.fixture(scope="module")
def listed(tmp_path_factory) -> list[lists.Image]:
    """Images whose label is their place in the list, so that a batch shows which it has."""
    root = tmp_path_factory.mktemp("domainnet")
    write_domainnet(root, "real", "real_train_split.txt", list(range(COUNT)))
    return lists.domainnet(root, "real", "train")


# Images that cannot be read


@pytest.fixture(scope="module")
def broken(listed, tmp_path_factory):
    """A copy of the list, some of whose images are broken, and by path why."""
    root = tmp_path_factory.mktemp("broken") / "domainnet"
    shutil.copytree(Path(listed[0].path).parents[2], root)
    copied = lists.domainnet(root, "real", "train")
    files = [Path(path) for path, _ in copied]
    data = files[1].read_bytes()
    files[1].write_bytes(data[:-100])
    files[4].write_text("no image")
    files[6].write_bytes(b"")
    files[9].unlink()
    Image.new("1", (20000, 20000)).save(files[12], "PNG")  # 50 kB, and 400 million pixels
    Image.new("I;16", (5, 5)).save(files[15], "PNG")
    reasons = {
        1: "truncated",
        4: "cannot identify",
        6: "cannot identify",
        9: "No such file",
        12: "exceeds limit of 178956970 pixels",
        15: "16 bits per channel",
    }
    return copied, {str(files[i]): reason for i, reason in reasons.items()}


@pytest.mark.parametrize("training", [True, False])
def test_images_that_cannot_be_read_are_skipped_and_named(broken, training):
    images, reasons = broken
    loader = make(images, training=training, batch=11, on_error="skip", epochs=1)
    batches = list(loader)
    assert loader.skipped.keys() == reasons.keys()
    for path, reason in reasons.items():
        assert reason in loader.skipped[path]
    good = sorted(label for x in batches for label in x["label"][x["mask"]])
    assert good == [i for i, (path, _) in enumerate(images) if path not in reasons]
    for batch in batches:
        assert batch["image"][batch["mask"]].any((1, 2, 3)).all()
        assert not batch["image"][~batch["mask"]].any()
        assert not batch["label"][~batch["mask"]].any()


def test_other_images_are_the_same_whether_or_not_some_are_skipped(listed, broken):
    images, _ = broken
    whole = list(make(listed, epochs=1))
    for a, b in zip(make(images, on_error="skip", epochs=1), whole, strict=True):
        np.testing.assert_array_equal(a["image"][a["mask"]], b["image"][a["mask"]])


def test_an_image_that_cannot_be_read_is_fatal_by_default(broken):
    images, _ = broken
    loader = make(images, training=False, batch=11)
    message = r"000001.jpg cannot be read, because .*truncated.*\(3 more .*`on_error=.skip"
    with pytest.raises(ValueError, match=message):
        list(loader)
    assert loader.state()["step"] == 0


def test_an_image_that_would_become_huge_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    assert images.evaluation_crop(Image.new("RGB", (4, 20)), 28).shape == (28, 28, 3)
    with pytest.raises(ValueError, match="too long: 4 x 400 pixels"):
        images.evaluation_crop(Image.new("RGB", (4, 400)), 28)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"batch": 5, "processes": 2},
            "`batch` is 5, and 2 processes share it: use a multiple of 2",
        ),
        ({"batch": 0}, "`batch` is 0"),
        ({"batch": 23}, "there are 22 images for batches of 23"),
        ({"process": 2, "processes": 2}, "`process` is 2: use 0 to 1"),
        ({"on_error": "ignore"}, '`on_error` is \'ignore\': use "fatal" or "skip"'),
        ({"corruption": ("fog", 3)}, "`corruption` is for evaluation"),
        ({"corruption": ("smog", 3), "training": False}, "no corruption is called 'smog'"),
        ({"interpolation": "nearest"}, "`interpolation` is 'nearest': use bilinear or bicubic"),
    ],
)
def test_wrong_options_are_errors(listed, options, message):
    with pytest.raises(ValueError, match=message):
        make(listed, **options)


def test_no_images_are_an_error():
    with pytest.raises(ValueError, match="there are 0 images"):
        make([], training=False)


# Workers


@pytest.mark.slow
def test_workers_change_nothing(broken):
    images, reasons = broken
    whole = list(make(images, epochs=2, on_error="skip"))
    loader = make(images, epochs=2, on_error="skip", workers=2)
    batches = iter(loader)
    received = [next(batches) for _ in range(4)]
    batches.close()
    assert multiprocessing.active_children() == []
    second = make(images, epochs=2, on_error="skip", workers=1)
    second.restore(loader.state())
    same(received + list(second), whole)
    assert loader.skipped.keys() | second.skipped.keys() == reasons.keys()
    with pytest.raises(ValueError, match=r"000001\.jpg cannot be read"):
        list(make(images, training=False, workers=1))
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_training_with_workers_has_no_end_by_default(listed):
    batches = iter(make(listed, workers=1))
    assert len([next(batches) for _ in range(12)]) == 12
    batches.close()


PROGRAM = """
import hashlib, json, multiprocessing, sys
from pathlib import Path
from examples.papers import lists
from examples.papers.loader import Loader
if __name__ == "__main__":
    root, state, workers = sys.argv[1:]
    images = lists.domainnet(Path(root), "real", "train")
    loader = Loader(images, 4, size=16, mean=(0.5,) * 3, std=(0.3,) * 3, training=True, epochs=20,
                    workers=int(workers))
    if state:
        loader.restore(json.loads(state))
    for batch in loader:
        digest = hashlib.sha256(batch["image"].tobytes() + batch["label"].tobytes()).hexdigest()
        children = [child.pid for child in multiprocessing.active_children()]
        print(json.dumps([digest, loader.state(), children]), flush=True)
"""


def runs(process):
    """Whether a process runs. One that has ended and was not waited for has no command."""
    command = Path(f"/proc/{process}/cmdline")
    return command.exists() and command.read_bytes() != b""


@pytest.mark.slow
def test_a_killed_program_resumes_as_if_it_had_not_been_killed(listed, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    root = Path(listed[0].path).parents[2]

    def start(state, workers):
        command = [sys.executable, str(program), str(root), state, workers]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)

    with start("", "0") as uninterrupted:
        assert uninterrupted.stdout is not None
        expected = [json.loads(line)[0] for line in uninterrupted.stdout]
    with start("", "2") as killed:
        assert killed.stdout is not None
        lines = [json.loads(killed.stdout.readline()) for _ in range(13)]
        killed.kill()
    *_, (_, state, children) = lines
    assert len(children) == 2
    with start(json.dumps(state), "0") as resumed:
        assert resumed.stdout is not None
        rest = [json.loads(line)[0] for line in resumed.stdout]
    assert len(expected) == 20 * 5
    assert [digest for digest, *_ in lines] + rest == expected
    deadline = time.monotonic() + 60
    while any(map(runs, children)):
        assert time.monotonic() < deadline, "workers of the killed program still run"
        time.sleep(0.1)
