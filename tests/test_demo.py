"""The demo at its smallest size, and its data."""

import json
import math

import jax
import numpy as np
import pytest

import tpgm_jax
from examples.digits import data, methods, storage, warps
from examples.digits.demo import main
from examples.digits.models import MLP, cross_entropy
from examples.digits.pretraining import pretrained
from examples.digits.printed import printed_set
from examples.digits.settings import Settings
from examples.digits.shifts import CORRUPTION, STYLE

pytestmark = pytest.mark.slow
SHIFTED = [
    *("invert", "photo", "fonts", "outlines", "fonts_photo"),
    *("noise", "impulse", "rotate", "shift", "contrast", "blur", "occlude", "stripes"),
]
TENSORS = {
    f"params/{layer}/{leaf}"
    for layer in ("layer_1", "layer_2", "layer_3", "layer_4", "head")
    for leaf in ("kernel", "bias")
}
TINY = Settings(pretraining_images=40, pretraining_steps=2, pretraining_batch=8)


def test_fast_demo_runs_from_end_to_end(tmp_path, capsys):
    returned = main(["--fast", "--seed", "3", "--output", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text())
    assert results == json.loads(json.dumps(returned))
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.rglob(".*")), "an unfinished file was left behind"

    printed = capsys.readouterr().out
    assert results["settings"]["seed"] == 3
    assert set(results["zero_shot"]) == {"validation", "test", *SHIFTED}
    assert set(results["methods"]) == {"adam", "ftp", "tpgm", "tpgm_post_hoc", "wise_ft"}
    for name, entries in results["methods"].items():
        assert methods.LABELS[name] in printed
        assert [entry["learning_rate"] for entry in entries] == [1e-3, 3e-3, 1e-2]
        assert sum(entry["chosen"] for entry in entries) == 1
        for entry in entries:
            assert set(entry["accuracy"]) == {"validation", "test", *SHIFTED}
            for runs in entry["accuracy"].values():
                assert len(runs) == results["settings"]["repeats"]
                assert all(0 <= accuracy <= 1 for accuracy in runs)
            if name in ("ftp", "tpgm", "tpgm_post_hoc"):
                assert set(entry["radii"]) == TENSORS
                radii = [radius for runs in entry["radii"].values() for radius in runs]
                assert all(math.isfinite(radius) and radius > 0 for radius in radii)
    for entry in results["moved"]:
        assert set(entry["mars"]) == set(entry["l2"]) == TENSORS


def test_splits_of_the_handwritten_digits_are_disjoint_and_complete():
    rows = data.division(0)
    assert {name: len(x) for name, x in rows.items()} == data.SIZES
    assert sorted(np.concatenate(list(rows.values()))) == list(range(1797))


def test_thirteen_shifted_sets_are_images_with_the_test_labels():
    digits = data.load(0)
    assert list(digits.shifted) == SHIFTED == [*STYLE, *CORRUPTION]
    for split in (digits.train, digits.radius, digits.validation, digits.test):
        assert split.images.shape == (len(split.labels), 16, 16)
    for name, split in digits.shifted.items():
        assert split.images.shape == (500, 16, 16), name
        assert split.images.dtype == np.float32, name
        assert 0 <= split.images.min() < split.images.max() <= 1, name
        assert np.abs(split.images - digits.test.images).mean() > 0.01, name
        np.testing.assert_array_equal(split.labels, digits.test.labels)


def test_data_are_a_function_of_the_seed():
    first, again, other = data.load(5), data.load(5), data.load(6)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for name in SHIFTED:
        assert not np.array_equal(first.shifted[name].images, other.shifted[name].images)


def test_printed_digits_are_a_function_of_the_generator():
    images, labels = printed_set(np.random.default_rng(0), 30)
    assert (images.shape, images.dtype, labels.dtype) == ((30, 16, 16), np.uint8, np.int32)
    again, _ = printed_set(np.random.default_rng(0), 30)
    np.testing.assert_array_equal(images, again)


def test_warps_translate_rotate_and_scale():
    image = np.zeros((1, 16, 16))
    image[0, 5, 10] = 1
    moved = warps.warp(image, warps.affine(1, translation=np.array([[2, -3]])))
    assert moved[0, 7, 7] == pytest.approx(1)
    # A quarter turn counter-clockwise moves the pixel at (row, column) = (-2.5, 2.5) from the
    # centre, up and right, to up and left.
    turned = warps.warp(image, warps.affine(1, rotation=90.0))
    assert turned[0, 5, 5] == pytest.approx(1)
    # Doubling the size moves a pixel from 2.5 to 5 from the centre, between pixels.
    larger = warps.warp(image, warps.affine(1, scale=2.0))
    assert np.unravel_index(larger[0].argmax(), (16, 16)) in [(2, 12), (2, 13), (3, 12), (3, 13)]


@pytest.mark.parametrize("damage", ["truncated", "one byte", "empty", "not an archive"])
def test_damaged_cache_is_made_again(tmp_path, capsys, damage):
    def make():
        return {"weights": np.arange(1000.0)}

    def read(settings=None):
        return storage.cached(tmp_path, "weights", settings or {}, (warps,), make)["weights"]

    read()
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "truncated": whole[:middle],
            "one byte": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            "empty": b"",
            "not an archive": b"weights",
        }[damage]
    )
    capsys.readouterr()
    np.testing.assert_array_equal(read(), np.arange(1000.0))
    assert "is made again" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 1
    read()
    assert capsys.readouterr().err == ""


def test_cache_distinguishes_settings(tmp_path):
    for size in (3, 4, 3):
        found = storage.cached(tmp_path, "x", {"size": size}, (), lambda n=size: {"x": np.ones(n)})
        assert found["x"].shape == (size,)
    assert len(list(tmp_path.iterdir())) == 2


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    storage.write_whole(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.write_whole(path, fail)
    assert [x.name for x in tmp_path.iterdir()] == ["results.json"]
    assert path.read_bytes() == b"old"


def test_pretrained_network_is_read_from_the_cache(tmp_path):
    network = MLP(hidden=(8,))
    trained = pretrained(network, TINY, tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    jax.tree.map(np.testing.assert_array_equal, trained, pretrained(network, TINY, tmp_path))
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_stacked_runs_get_the_same_radii_as_separate_runs():
    network, digits = MLP(hidden=(8,)), data.load(0)
    anchor, *runs = (network.init(jax.random.key(i), digits.test.images[:1]) for i in range(3))
    stacked = jax.tree.map(lambda *x: np.stack(x), *runs)
    together = methods.tpgm_post_hoc(network.apply, stacked, anchor, digits.radius, 5)

    def held_out_loss(params, batch):
        return cross_entropy(network.apply, params, *batch)

    for i, run in enumerate(runs):
        alone = tpgm_jax.fit_radii(held_out_loss, run, anchor, [digits.radius] * 5)
        # Radius steps are 1e-2, and Adam's first steps do not depend on the size of the
        # gradient, so only rounding is left: ten ulps of numbers around 4.
        for name, radius in alone.radii.items():
            np.testing.assert_allclose(together.radii[name][i], radius, rtol=0, atol=5e-6)
        jax.tree.map(
            lambda x, y, i=i: np.testing.assert_allclose(x[i], y, rtol=0, atol=5e-6),
            *(together.params, alone.params),
        )
