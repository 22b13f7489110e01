"""`tpgm-jax compare`: distances worked by hand, and differences in structure."""

import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from checkpoint_files import FORMATS, SHAPES, command, compared, save, weights

from tpgm_jax._core.axes import Axes, make_layout
from tpgm_jax._core.ball import norms
from tpgm_jax.cli import _numbers, _plot

each_format = pytest.mark.parametrize("suffix", FORMATS.values(), ids=FORMATS)
# The input axes of each row, worked by hand: attention's outputs are its heads.
INPUTS = {
    "block_0/query/kernel": 0,
    "block_0/query/bias": (0, 1),
    "block_2/norm/scale": 0,
    "block_10/kernel": 0,
    "layers/kernel": 1,
    "gain": (),
}
STACKED = ("--axes", "layers/.*=auto,0")


@each_format
def test_distances_worked_by_hand(suffix, tmp_path, capsys):
    w0, w = weights(0), weights(1)
    paths = [save(tmp_path / f"{i}{suffix}", x) for i, x in enumerate((w0, w))]
    found = compared(capsys, *paths, *STACKED)
    assert found["same_structure"]
    # Natural order: 10 after 2.
    assert [x["name"] for x in found["tensors"]] == [
        *("block_0/query/bias", "block_0/query/kernel", "block_2/norm/scale", "block_10/kernel"),
        *("gain", "layers/kernel"),
    ]
    total = 0.0
    for x in found["tensors"]:
        name = x["name"]
        d = w[name].astype(np.float64) - w0[name].astype(np.float64)
        rows = np.abs(d).sum(axis=INPUTS[name])
        lengths = np.sqrt((d**2).sum(axis=(1, 2) if name == "layers/kernel" else None))
        expected = [rows.max(), rows.mean(), lengths.max(), lengths.mean()]
        received = [*x["mars"].values(), *x["l2"].values()]
        np.testing.assert_allclose(received, expected, rtol=1e-13)  # a few ulps of float64
        relative = np.linalg.norm(d) / np.linalg.norm(w0[name].astype(np.float64))
        np.testing.assert_allclose(x["relative"], relative, rtol=1e-13)
        assert (x["shape"], x["dtype"]) == (list(SHAPES[name]), "float32")
        total += np.sum(d**2)
    np.testing.assert_allclose(found["totals"]["l2"], total**0.5, rtol=1e-13)
    assert found["totals"]["parameters"] == sum(x.size for x in w.values())


@pytest.mark.parametrize(
    ("shape", "rows", "layers"),
    [((3, 4, 5), 0, ()), ((3, 4, 5), 1, 0), ((1, 60), -1, ()), ((60, 1), 0, ()), ((7,), (), ())],
)
def test_distances_by_blocks_equal_the_librarys_norms(shape, rows, layers, monkeypatch):
    monkeypatch.setattr(_numbers, "BLOCK", 7)
    rng = np.random.default_rng(0)
    w0, w = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    (tensor,) = make_layout({"w": w}, axes={"w": Axes(rows, layers)}).tensors
    found = _numbers.distance(w, w0, tensor)
    for norm in ("mars", "l2"):
        expected = norms(jnp.asarray(w - w0), tensor, norm)
        # Sums of up to 60 numbers in float32, each rounded by half an ulp.
        np.testing.assert_allclose(found[norm]["largest"], jnp.max(expected), rtol=60 * 6e-8)
        np.testing.assert_allclose(found[norm]["mean"], jnp.mean(expected), rtol=60 * 6e-8)


def test_rows_are_first_in_pytorch_and_last_in_flax_by_default(tmp_path, capsys):
    shapes = {"layer.weight": (3, 2), "layer.bias": (3,), "dense.kernel": (3, 2)}
    w0 = {name: np.zeros(s, np.float32) for name, s in shapes.items()}
    w = {name: np.arange(np.prod(s), dtype=np.float32).reshape(s) for name, s in shapes.items()}
    paths = [save(tmp_path / f"{i}.safetensors", x) for i, x in enumerate((w0, w))]

    def largest(*args):
        found = compared(capsys, *paths, *args)["tensors"]
        return {x["name"]: x["mars"]["largest"] for x in found}

    # [[0 1] [2 3] [4 5]]: the last row and the last column both sum to 9, but their means differ.
    assert largest() == {"layer.weight": 9, "layer.bias": 3, "dense.kernel": 9}
    means = {
        rows: [x["mars"]["mean"] for x in compared(capsys, *paths, *args)["tensors"]]
        for rows, args in {
            "auto": (),
            "first": ("--axes", ".*=0"),
            "last": ("--axes", ".*=-1"),
            "axes": ("--axes", r"dense\..*=0", "--axes", ".*weight=none"),
        }.items()
    }
    # In the order dense.kernel, layer.bias, layer.weight.
    assert means == {
        "auto": [7.5, 3, 5],
        "first": [5, 3, 5],
        "last": [7.5, 3, 7.5],
        "axes": [5, 3, 15],
    }


@each_format
def test_differences_in_structure_are_listed_with_exit_code_1(suffix, tmp_path, capsys):
    w0, w = weights(0), weights(1)
    del w0["gain"]
    w["head/kernel"] = np.ones((5, 2), np.float32)
    w0["old/bias"] = np.ones(2, np.float32)
    w["block_10/kernel"] = w["block_10/kernel"][:, :4]
    w["block_2/norm/scale"] = w["block_2/norm/scale"].astype(ml_dtypes.bfloat16)
    w0["count"], w["count"] = np.array([1, 2], np.int32), np.array([1, 3], np.int32)
    paths = [save(tmp_path / f"{i}{suffix}", x) for i, x in enumerate((w0, w))]
    found = compared(capsys, *paths)
    assert not found["same_structure"]
    assert sorted(found["only_finetuned"]) == ["gain", "head/kernel"]
    assert found["only_pretrained"] == ["old/bias"]
    assert found["shapes_differ"] == {"block_10/kernel": [[6, 5], [6, 4]]}
    assert found["dtypes_differ"] == {"block_2/norm/scale": ["float32", "bfloat16"]}
    assert "block_2/norm/scale" in [x["name"] for x in found["tensors"]]
    assert found["not_measured"] == [
        {"name": "count", "shape": [2], "dtype": "int32", "same": False}
    ]
    code, out, err = command(capsys, "compare", *paths)
    assert (code, err) == (1, "")
    for line in (
        "only in PRETRAINED: old/bias",
        "only in FINETUNED: head/kernel",
        "shapes differ: block_10/kernel: (6, 5) and (6, 4)",
        "dtypes differ: block_2/norm/scale: float32 and bfloat16",
        "not measured (int32), different: count",
    ):
        assert line in out.splitlines()
    # Excluded tensors do not count as differences.
    skip = "gain|head/.*|old/.*|block_(2|10)/.*"
    assert compared(capsys, *paths, "--exclude", skip)["same_structure"]


def test_different_formats_compare(tmp_path, capsys):
    flat = weights(0)
    paths = {name: save(tmp_path / f"x{suffix}", flat) for name, suffix in FORMATS.items()}
    for path in paths.values():
        found = compared(capsys, paths["npz"], path)
        assert found["same_structure"]
        assert found["totals"]["l2"] == 0


@pytest.mark.parametrize("suffix", [".safetensors", ".msgpack", ".npz", ""])
def test_half_precision_and_non_finite_numbers(suffix, tmp_path, capsys):
    w0 = {"a": np.zeros(4, ml_dtypes.bfloat16), "b": np.zeros(3, np.float16)}
    w = {"a": np.array([1, 2, 4, 8], ml_dtypes.bfloat16), "b": w0["b"] + np.float16(np.nan)}
    if suffix != ".npz":  # npz has no name for float8
        w0["c"] = np.zeros(2, ml_dtypes.float8_e4m3fn)
        w["c"] = np.array([1, 2], ml_dtypes.float8_e4m3fn)
    paths = [save(tmp_path / f"{i}{suffix}", x) for i, x in enumerate((w0, w))]
    a, b, *c = compared(capsys, *paths)["tensors"]
    assert (a["dtype"], a["mars"]["largest"], a["l2"]["largest"]) == ("bfloat16", 15, 85**0.5)
    assert a["relative"] is None  # the anchor is zero
    assert (b["mars"]["largest"], b["not_finite"]) == (None, 3)
    assert [x["mars"]["largest"] for x in c] == ([] if suffix == ".npz" else [3])
    assert "not finite: 3 numbers of b" in command(capsys, "compare", *paths)[1]


@pytest.mark.parametrize("suffix", [".msgpack", ""])
def test_boxes_of_nnx_and_partitioned_variables_do_not_change_the_result(suffix, tmp_path, capsys):
    def measured(boxed):
        paths = []
        for seed in range(2):
            flat = {f"{k}/value" if boxed else k: x for k, x in weights(seed).items()}
            paths.append(save(tmp_path / f"{boxed}{seed}{suffix}", flat))
        return compared(capsys, *paths, "--axes", "layers/.*=auto,0")["tensors"]

    for plain, boxed in zip(measured(False), measured(True), strict=True):
        assert boxed == plain | {"name": f"{plain['name']}/value"}


def test_names_cannot_control_the_terminal(tmp_path, capsys):
    name = "a\x1b[2J\nb\u202e\x9b$\\frac$[red]é"
    path = save(tmp_path / "x.safetensors", {name: np.ones(2, np.float32)})
    code, out, _ = command(capsys, "compare", path, path, "--plot", tmp_path / "x.png")
    assert code == 0
    assert r"a\x1b[2J\nb\u202e\x9b$\frac$[red]é  " in out
    assert out.isprintable() is False  # because of its line ends
    assert all(line.isprintable() for line in out.splitlines())
    assert compared(capsys, path, path)["tensors"][0]["name"] == name
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def moved(tmp_path):
    """Four tensors at relative distances of 0.3, 0.01 and 0.1, and from an anchor of zeros."""
    w0 = {name: np.full(4, 2, np.float32) for name in ("a", "b", "c")} | {"zero": np.zeros(2)}
    w = {name: x + {"a": 0.6, "b": 0.02, "c": 0.2, "zero": 9}[name] for name, x in w0.items()}
    return [save(tmp_path / f"{i}.npz", x) for i, x in enumerate((w0, w))]


def test_tensors_are_sorted_and_cut(tmp_path, capsys):
    paths = moved(tmp_path)

    def names(*args):
        return [x["name"] for x in compared(capsys, *paths, *args)["tensors"]]

    assert names() == ["a", "b", "c", "zero"]
    assert names("--sort", "relative") == ["a", "c", "b", "zero"]
    assert names("--sort", "mars") == names("--sort", "l2") == ["zero", "a", "c", "b"]
    assert names("--sort", "relative", "--top", 2) == ["a", "c"]
    out = command(capsys, "compare", *paths, "--top", 1)[1]
    assert [line for line in out.splitlines() if line.startswith(("b ", "c "))] == []
    assert "4 tensors of 14 parameters" in out  # the totals are of all
    assert out.splitlines()[-1] == "farthest: a, relative 0.3"


@pytest.mark.parametrize(
    ("limit", "code", "verdict"),
    [
        (0.31, 0, "within 0.31; farthest: a, 0.3"),
        (0.05, 3, "too far: 2 tensors moved more than 0.05; farthest: a, 0.3"),
    ],
)
def test_a_verdict_has_an_exit_code_of_its_own(limit, code, verdict, tmp_path, capsys):
    paths = moved(tmp_path)
    received, out, _ = command(capsys, "compare", *paths, "--max-relative", limit)
    assert (received, out.splitlines()[-1]) == (code, verdict)
    _, out, _ = command(capsys, "compare", *paths, "--max-relative", limit, "--json")
    assert json.loads(out)["verdict"] == {
        "farthest": "a",
        "relative": pytest.approx(0.3, rel=1e-6),  # 0.6 is rounded to float32
        "max_relative": limit,
        "too_far": ["a", "c"] if code else [],
        "not_judged": [],
    }


def test_other_dtypes_alone_do_not_count_as_a_difference_and_nan_does(tmp_path, capsys):
    w = {"w": np.ones(3, np.float32)}
    half, bad = {"w": w["w"].astype(np.float16)}, {"w": np.full(3, np.nan, np.float32)}
    paths = [save(tmp_path / f"{i}.npz", x) for i, x in enumerate((w, half, bad))]
    assert command(capsys, "compare", *paths[:2])[0] == 0
    assert command(capsys, "compare", paths[0], paths[2])[0] == 1
    assert command(capsys, "compare", paths[2], paths[2])[0] == 1
    assert command(capsys, "compare", paths[0], paths[2], "--max-relative", 1)[0] == 3


def test_equal_infinities_have_not_moved(tmp_path, capsys):
    w0 = {"bias": np.array([1, -np.inf, 2], np.float32)}
    w = {"bias": np.array([4, -np.inf, -2], np.float32)}
    paths = [save(tmp_path / f"{i}.npz", x) for i, x in enumerate((w0, w))]
    (found,) = compared(capsys, *paths)["tensors"]
    assert (found["l2"]["largest"], found["not_finite"]) == (5, 0)


def test_a_plot_shows_every_distance(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_plot, "MOST_LABELS", 10)  # of 25 tensors
    flat = {f"block_{i}/kernel": np.full((2, 2), 0.1 * i, np.float32) for i in range(25)}
    zeros = {name: np.zeros_like(x) for name, x in flat.items()}
    paths = [save(tmp_path / f"{i}.npz", x) for i, x in enumerate((zeros, flat))]
    code, _, _ = command(capsys, "compare", *paths, "--plot", tmp_path / "x.svg")
    assert code == 0
    svg = (tmp_path / "x.svg").read_text()
    # One marker per moved tensor in two panels. The third is empty, because the anchor is zero.
    assert svg.count("<use ") > 2 * 24
    # Every third tensor has a label, because there are more than ten.
    assert all(f"block_{i}/kernel" in svg for i in (0, 3, 24))
    assert "block_1/kernel" not in svg


def test_a_plot_of_many_tensors_has_a_row_for_each_block(tmp_path, capsys):
    flat = {
        f"layer.{i}.{name}.weight": np.full((2, 2), 0.1 * (i + 1), np.float32)
        for i in range(8)
        for name in "abcdefghi"
    }
    zeros = {name: np.zeros_like(x) for name, x in flat.items()}
    paths = [save(tmp_path / f"{i}.npz", x) for i, x in enumerate((zeros, flat))]
    assert command(capsys, "compare", *paths, "--plot", tmp_path / "x.svg")[0] == 0
    svg = (tmp_path / "x.svg").read_text()
    assert all(f"<!-- layer.{i} -->" in svg for i in range(8))
    assert "layer.0.a" not in svg


@pytest.mark.parametrize("distances", [(1e308, 1e308), (1e306, 1e-6, 1e-6), (0.0, np.nan), ()])
def test_a_plot_of_distances_without_a_scale_is_drawn(distances, tmp_path, capsys):
    flat = {f"w{i}": np.full(1, x) for i, x in enumerate(distances)} | {"count": np.arange(2)}
    zeros = {name: np.zeros_like(x) for name, x in flat.items()}
    paths = [save(tmp_path / f"{i}.npz", x) for i, x in enumerate((zeros, flat))]
    code, _, err = command(capsys, "compare", *paths, "--plot", tmp_path / "x.png")
    assert (code in (0, 1), err) == (True, "")
    assert (tmp_path / "x.png").exists()


def test_json_is_the_only_output(tmp_path, capsys):
    path = save(tmp_path / "x.npz", weights(0))
    _, out, err = command(capsys, "compare", path, path, "--json")
    assert err == ""
    assert json.loads(out)["totals"]["tensors"] == len(SHAPES)
