"""`tpgm-jax project`: equal to the library, with the rest of the file unchanged."""

import json

import jax
import ml_dtypes
import numpy as np
import optax
import pytest
from checkpoint_files import FORMATS, command, compared, load, save, weights
from safetensors import safe_open

import tpgm_jax
from tpgm_jax import Axes
from tpgm_jax.cli import _numbers

each_format = pytest.mark.parametrize("suffix", FORMATS.values(), ids=FORMATS)
STACKED = {"layers/.*": Axes(layers=0)}


def by_library(w0, w, radius, **options):
    """`project_to_anchor` on the whole tree."""
    tx = tpgm_jax.project_to_anchor(radius, axes=STACKED, **options)
    updates, _ = tx.update(optax.tree.zeros_like(w), tx.init(w0), w)
    return jax.tree.map(np.asarray, optax.apply_updates(w, updates))


def assert_same_bits(received, expected):
    assert sorted(received) == sorted(expected)
    for name, x in expected.items():
        assert (received[name].shape, received[name].dtype) == (np.shape(x), x.dtype), name
        assert received[name].tobytes() == np.asarray(x).tobytes(), name


def assert_close(received, expected):
    """Equal up to the rounding of a norm: sums of up to 60 numbers, and five more operations."""
    assert sorted(received) == sorted(expected)
    for name, x in expected.items():
        assert (received[name].shape, received[name].dtype) == (np.shape(x), x.dtype), name
        # The largest entry, because a difference near zero is rounded like its terms.
        bound = 65 * float(ml_dtypes.finfo(x.dtype).eps) * np.max(np.abs(x.astype(np.float64)))
        error = received[name].astype(np.float64) - x.astype(np.float64)
        assert np.all(np.abs(error) <= bound), name


def run(tmp_path, capsys, suffix, w0, w, *args):
    """Runs `project`; the tensors that it wrote, and its report."""
    paths = [tmp_path / f"{name}{suffix}" for name in ("w0", "w", "out")]
    for path, flat in zip(paths, (w0, w), strict=False):
        save(path, flat)
    code, out, err = command(capsys, "project", *paths[:2], "-o", paths[2], *args, "--json")
    assert (code, err) == (0, "")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in paths)
    return load(paths[2]), json.loads(out)


@each_format
def test_interpolation_equals_the_librarys_bit_for_bit(suffix, tmp_path, capsys):
    w0, w = weights(0), weights(1)
    w0["half"], w["half"] = (x["layers/kernel"].astype(ml_dtypes.bfloat16) for x in (w0, w))
    w0["steps"], w["steps"] = np.arange(3, dtype=np.int32), np.arange(3, 6, dtype=np.int32)
    # Equal numbers, and numbers whose difference overflows.
    w0["edges"] = np.array([-0.0, np.inf, -3e38, 3e38, 1.0], np.float32)
    w["edges"] = np.array([-0.0, np.inf, 3e38, -1e38, np.inf], np.float32)
    received, report = run(tmp_path, capsys, suffix, w0, w, "--alpha", 0.3)
    assert np.all(np.isfinite(received["edges"][2:4]))
    assert_same_bits(received, tpgm_jax.interpolate(w, w0, 0.3))
    assert report["copied"] == {"steps": "nothing to move (int32)"}


@pytest.mark.parametrize(
    ("norm", "radius", "dtype"),
    [("mars", 1.5, np.float32), ("mars", 1.5, ml_dtypes.bfloat16), ("l2", 2.0, np.float32)],
)
def test_projection_equals_the_librarys(norm, radius, dtype, tmp_path, capsys):
    w0, w = weights(0, dtype), weights(1, dtype)
    w["gain"] = np.asarray(w0["gain"] + dtype(0.25))  # inside its ball
    args = ("--radius", radius, "--norm", norm, "--axes", "layers/.*=auto,0")
    received, report = run(tmp_path, capsys, ".safetensors", w0, w, *args)
    assert_close(received, by_library(w0, w, radius, norm=norm))
    assert sorted(report["moved"]) == sorted(w)
    beyond = [name for name in w if received[name].tobytes() != w[name].tobytes()]
    assert sorted(report["changed"]) == sorted(beyond)
    assert "gain" not in beyond
    assert "layers/kernel" in beyond


@pytest.mark.parametrize("suffix", [".msgpack", ""])
def test_projection_in_units_of_the_anchor(suffix, tmp_path, capsys):
    w0, w = weights(0), weights(1)
    args = ("--radius", 0.3, "--unit", "anchor", "--axes", "layers/.*=auto,0")
    received, _ = run(tmp_path, capsys, suffix, w0, w, *args)
    assert_close(received, by_library(w0, w, 0.3, unit="anchor"))


@pytest.mark.parametrize("unit", ["norm", "anchor"])
def test_a_projection_of_no_tensor_is_a_copy(unit, tmp_path, capsys):
    w = {"steps": np.arange(3), "head": np.ones(2, np.float32)}
    args = ("--radius", 1, "--unit", unit, "--exclude", "head")
    received, report = run(tmp_path, capsys, ".npz", w, w, *args)
    assert_same_bits(received, w)
    assert report["moved"] == []


def test_float64_is_projected_in_float64(tmp_path, capsys, x64):
    w0, w = weights(0, np.float64), weights(1, np.float64)
    args = ("--radius", 0.7, "--axes", "layers/.*=auto,0")
    received, _ = run(tmp_path, capsys, ".npz", w0, w, *args)
    assert_close(received, by_library(w0, w, 0.7))


def test_a_projection_worked_by_hand(tmp_path, capsys):
    w0 = {"kernel": np.array([[1.0, 1], [1, 1]], np.float32)}
    w = {"kernel": np.array([[4.0, 1.5], [2, 1.5]], np.float32)}
    received, _ = run(tmp_path, capsys, ".npz", w0, w, "--radius", 2)
    # The first column moved 4 and is projected to 2; the second moved 1. The tolerance is one ulp,
    # because 1e-8 is added to the norm.
    np.testing.assert_allclose(received["kernel"], [[2.5, 1.5], [1.5, 1.5]], rtol=1.2e-7)
    np.testing.assert_array_equal(received["kernel"][:, 1], w["kernel"][:, 1])
    found = compared(capsys, tmp_path / "w0.npz", tmp_path / "out.npz")
    np.testing.assert_allclose(found["tensors"][0]["mars"]["largest"], 2, rtol=2.4e-7)


def test_blocks_and_float8(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_numbers, "BLOCK", 16)  # 6 x 5 numbers are two blocks
    w0, w = weights(0), weights(1)
    narrow = {"narrow": np.ones(2, ml_dtypes.float8_e4m3fn)}
    wide = {"narrow": np.array([3, 1], ml_dtypes.float8_e4m3fn)}
    received, _ = run(tmp_path, capsys, ".msgpack", w0 | narrow, w | wide, "--alpha", 0.5)
    np.testing.assert_array_equal(received.pop("narrow").astype(np.float32), [2, 1])
    assert_same_bits(received, tpgm_jax.interpolate(w, w0, 0.5))


@each_format
def test_new_and_excluded_tensors_are_copied_and_reported(suffix, tmp_path, capsys):
    w0, w = weights(0), weights(1)
    del w0["gain"]
    w["block_10/kernel"] = np.ascontiguousarray(w["block_10/kernel"][:, :4])
    w0["old"] = np.ones(2, np.float32)
    args = ("--alpha", 0, "--exclude", "block_10/.*")
    received, report = run(tmp_path, capsys, suffix, w0, w, *args)
    assert report["copied"] == {"gain": "only in FINETUNED", "block_10/kernel": "excluded"}
    assert report["left_out"] == ["old"]
    alone = {name: w[name] for name in ("gain", "block_10/kernel")}
    assert_same_bits(received, {name: w0[name] for name in w if name not in alone} | alone)


def test_the_rest_of_the_file_is_unchanged(tmp_path, capsys):
    paths = [tmp_path / f"{name}.safetensors" for name in ("w0", "w", "out")]
    save(paths[0], weights(0))
    save(paths[1], weights(1), format="np", note="kept")
    assert command(capsys, "project", *paths[:2], "-o", paths[2], "--alpha", 1)[0] == 0
    assert paths[2].read_bytes() == paths[1].read_bytes()
    assert command(capsys, "project", *paths[:2], "-o", paths[2], "--alpha", 0, "--force")[0] == 0
    with safe_open(paths[2], "np") as new, safe_open(paths[1], "np") as old:
        assert new.metadata() == {"format": "np", "note": "kept"}
        assert new.offset_keys() == old.offset_keys()


def test_msgpack_leaves_without_an_array_are_copied(tmp_path, capsys):
    from flax import serialization

    def tree(seed, **more):
        return {"params": weights(seed), "note": "x", "lr": 0.5, "none": None, **more}

    paths = [tmp_path / f"{name}.msgpack" for name in ("w0", "w", "out")]
    paths[0].write_bytes(serialization.to_bytes(tree(0)))
    paths[1].write_bytes(serialization.to_bytes(tree(1, scalar=np.float32(2))))
    assert command(capsys, "project", *paths[:2], "-o", paths[2], "--alpha", 0)[0] == 0
    received = serialization.msgpack_restore(paths[2].read_bytes())
    assert (received["note"], received["lr"], received["none"]) == ("x", 0.5, None)
    assert received["scalar"] == np.float32(2)
    assert_same_bits(received["params"], weights(0))


def test_arrays_that_flax_saves_in_chunks(tmp_path, capsys, monkeypatch):
    from flax import serialization

    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 48)
    w0, w = weights(0), weights(1)
    received, _ = run(tmp_path, capsys, ".msgpack", w0, w, "--alpha", 0.5)
    assert_same_bits(received, tpgm_jax.interpolate(w, w0, 0.5))


def test_nan_is_copied_and_reported(tmp_path, capsys):
    w0, w = weights(0), weights(1)
    w["gain"] = np.asarray(np.nan, np.float32)
    received, report = run(tmp_path, capsys, ".npz", w0, w, "--radius", 1)
    assert report["not_finite"] == ["gain"]
    assert np.isnan(received["gain"])
    assert np.all(np.isfinite(received["block_10/kernel"]))


@pytest.mark.parametrize(
    "args", [("--alpha", 0.3), ("--radius", 0.1), ("--radius", 0.1, "--norm", "l2")]
)
def test_equal_infinities_stay_as_they_are(args, tmp_path, capsys):
    w0, w = weights(0), weights(1)
    mask = np.where(np.tri(3) > 0, 0.0, -np.inf).astype(np.float32)
    w0["mask"] = w["mask"] = mask
    received, _ = run(tmp_path, capsys, ".safetensors", w0, w, *args)
    np.testing.assert_array_equal(received["mask"], mask)


@pytest.mark.parametrize("alpha", [0, 1])
def test_the_ends_of_an_interpolation_are_exact(alpha, tmp_path, capsys):
    # `0 * inf` and `0 * nan` are NaN, and `-0.0 + 0.0` is `0.0`.
    ends = [1, -0.0, 2, np.inf], [np.inf, 3, np.nan, -0.0]
    w0, w = ({"w": np.array(x, np.float32)} for x in ends)
    received, report = run(tmp_path, capsys, ".npz", w0, w, "--alpha", alpha)
    assert_same_bits(received, w if alpha else w0)
    assert report["changed"] == ([] if alpha else ["w"])
