"""Tensors other than plain weights: quantized ones, training state, statistics."""

import json

import ml_dtypes
import numpy as np
import pytest
from checkpoint_files import command, compared, load, save
from safetensors.numpy import save_file

F8 = ml_dtypes.float8_e4m3fn


def pair(tmp_path, old, new, suffix=".safetensors"):
    return [save(tmp_path / f"{i}{suffix}", x) for i, x in enumerate((old, new))]


def ones(dtype, *shape):
    return np.ones(shape, dtype)


# By name: the tensors of a quantized layer. The tests then change one of them.
QUANTIZED = {
    "int8": {"w": ones(np.int8, 2, 2), "w_scale": ones(np.float32, 2)},
    "a vector of int8": {"q": ones(np.int8, 4), "scale": ones(np.float32)},
    "zero point": {"l.weight": ones(np.uint8, 4), "l.weight_zero_point": ones(np.float32)},
    "float8": {"l.weight": ones(F8, 2, 2), "l.weight_scale_inv": ones(np.float32, 1, 1)},
    "GPTQ": {
        "l.qweight": ones(np.int32, 2, 2),
        "l.qzeros": ones(np.int32, 1, 1),
        "l.scales": ones(np.float16, 1, 2),
    },
    "bitsandbytes": {
        "l.weight": ones(np.uint8, 2, 1),
        "l.weight.absmax": ones(np.float32, 1),
        "l.weight.quant_map": ones(np.float32, 16),
        "l.weight.quant_state.bitsandbytes__nf4": ones(np.uint8, 8),
    },
    "MXFP4": {"l.up_blocks": ones(np.uint8, 2, 3), "l.up_scales": ones(np.uint8, 2, 1)},
    "AQT": {"d/kernel/qvalue": ones(np.int8, 2, 2), "d/kernel/scale": ones(np.float32, 1, 2)},
    "exponents": {"l.s": ones(ml_dtypes.float8_e8m0fnu, 3)},
    "an integer matrix": {"l.w": ones(np.int8, 2, 2)},
}


@pytest.mark.parametrize("layer", QUANTIZED.values(), ids=QUANTIZED)
def test_quantized_weights_are_refused_unless_they_are_equal(layer, tmp_path, capsys):
    plain = {"bias": np.zeros(2, np.float32)}
    moved = {"bias": np.array([1.0, 3], np.float32)}
    for name in layer:  # whichever of them differs: the numbers or the scale
        other = {k: np.asarray(4 * x, x.dtype) if k == name else x for k, x in layer.items()}
        paths = pair(tmp_path, layer | plain, other | moved)
        for how in ("--alpha", "--radius"):
            out = tmp_path / "out.safetensors"
            code, _, err = command(capsys, "project", *paths, how, 0.5, "-o", out)
            assert (code, err.count("\n"), out.exists()) == (2, 1, False)
            assert "dequantize" in err
        found = compared(capsys, *paths)
        assert [x["name"] for x in found["tensors"]] == ["bias"]
        assert {x["name"]: x["same"] for x in found["not_measured"]} == {
            x: x != name for x in layer
        }
        # No verdict without the weights.
        code, text, _ = command(capsys, "compare", *paths, "--max-relative", 99)
        assert code == 3
        assert "cannot be judged: 1 tensor;" in text.splitlines()[-1]
        assert "not measured: " in text.splitlines()[-1]
    paths = pair(tmp_path, layer | plain, layer | moved)
    out = tmp_path / "out.safetensors"
    assert command(capsys, "project", *paths, "--alpha", 0.5, "-o", out)[0] == 0
    np.testing.assert_array_equal(load(out)["bias"], [0.5, 1.5])
    assert all(load(out)[name].tobytes() == x.tobytes() for name, x in layer.items())


def test_quantized_weights_are_refused_if_only_one_checkpoint_has_the_scale(tmp_path, capsys):
    paths = pair(
        tmp_path,
        {"l.weight": ones(F8, 2, 2)},
        {"l.weight": ones(F8, 2, 2), "l.weight_scale_inv": ones(np.float32)},
    )
    code, _, err = command(capsys, "project", *paths, "--alpha", 0.5, "-o", tmp_path / "out")
    assert (code, "l.weight_scale_inv" in err) == (2, True)


def test_numbers_stay_quantized_if_their_scale_alone_is_excluded(tmp_path, capsys):
    layer = {"w": ones(F8, 4), "w_scale": ones(np.float32)}
    paths = pair(tmp_path, layer, {**layer, "w": np.full(4, 2, F8)})
    args = ("--alpha", 0.5, "--exclude", "w_scale", "-o", tmp_path / "out")
    code, _, err = command(capsys, "project", *paths, *args)
    assert (code, "'w' (float8_e4m3fn)" in err) == (2, True)


def test_packed_4_bit_numbers_are_refused_unless_they_are_equal(tmp_path, capsys):
    import safetensors

    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for i, path in enumerate(paths):
        text = json.dumps({"w": {"dtype": "F4", "shape": [2, 4], "data_offsets": [0, 4]}}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes([i] * 4))
        with safetensors.safe_open(path, "numpy") as file:
            assert list(file.keys()) == ["w"]
    code, _, err = command(capsys, "project", *paths, "--alpha", 0.5, "-o", tmp_path / "out")
    assert (code, "'w' (F4)" in err) == (2, True)
    args = ("project", paths[0], paths[0], "--alpha", 0.5, "-o", tmp_path / "out")
    assert command(capsys, *args)[0] == 0


def test_float8_without_a_scale_is_a_weight(tmp_path, capsys):
    # Norms are called `scale` in Flax; here the whole model is float8.
    old = {"norm/scale": ones(F8, 2), "norm/bias": ones(F8, 2), "d/kernel": ones(F8, 2, 2)}
    new = {name: (3 * x).astype(F8) for name, x in old.items()}
    paths = pair(tmp_path, old, new)
    out = tmp_path / "out.safetensors"
    assert command(capsys, "project", *paths, "--alpha", 0.5, "-o", out)[0] == 0
    for x in load(out).values():
        np.testing.assert_array_equal(x.astype(np.float32), 2)


@pytest.mark.parametrize("suffix", [".msgpack", ""])
def test_training_state_is_left_out_unless_requested(suffix, tmp_path, capsys):
    def state(x):
        moments = {"mu": {"w": np.full(2, x)}, "nu": {"w": np.full(2, x)}, "count": np.asarray(9)}
        return {
            "params/w": np.full(2, x, np.float32),
            "opt_state/0/mu/w": np.full(2, x, np.float32),
            "opt_state/0/count": np.asarray(7),
            **{f"ema/{k}/{n}": v for k in ("mu", "nu") for n, v in moments[k].items()},
        }

    paths = pair(tmp_path, state(0.0), state(2.0), suffix)
    out, everything = tmp_path / f"out{suffix}", tmp_path / f"all{suffix}"
    code, text, _ = command(capsys, "project", *paths, "--alpha", 0.5, "-o", out)
    assert code == 0
    assert "copied, training state: opt_state/0/mu/w" in text
    received = load(out)
    assert {name: float(np.max(x)) for name, x in received.items()} == {
        "params/w": 1,
        "opt_state/0/mu/w": 2,
        "opt_state/0/count": 7,
        "ema/mu/w": 2,
        "ema/nu/w": 2,
    }
    found = compared(capsys, *paths)
    assert [x["name"] for x in found["tensors"]] == ["params/w"]
    assert len(found["training_state"]) == 4
    assert "training state (--all measures it): 4" in command(capsys, "compare", *paths)[1]
    code, _, _ = command(capsys, "project", *paths, "--alpha", 0.5, "--all", "-o", everything)
    assert code == 0
    np.testing.assert_array_equal(load(everything)["opt_state/0/mu/w"], 1)


def test_a_models_own_mu_is_not_training_state(tmp_path, capsys):
    flat = {"encoder/mu/kernel": ones(np.float32, 2, 2), "encoder/logvar/kernel": np.eye(2)}
    paths = pair(tmp_path, flat, flat, ".npz")
    assert len(compared(capsys, *paths)["tensors"]) == 2


def test_statistics_and_buffers_are_listed(tmp_path, capsys):
    names = {"bn.running_mean", "bn.running_var", "conv.weight_u", "attn.mask", "rope.inv_freq"}
    flat = {name: ones(np.float32, 2) for name in {*names, "bn.weight", "conv.weight"}}
    flat["bn.num_batches_tracked"] = np.asarray(3)
    paths = pair(tmp_path, flat, flat)
    found = compared(capsys, *paths)
    assert set(found["statistics"]) == names
    for args in (("compare",), ("project", "--alpha", 0.5, "-o", tmp_path / "out")):
        _, text, _ = command(capsys, args[0], *paths, *args[1:])
        assert all(f"statistic or buffer, {x}" in text for x in ("measured", "moved") if x in text)
        assert text.count("statistic or buffer") == len(names)
    assert (
        "not measured (int64), the same: bn.num_batches_tracked"
        in command(capsys, "compare", *paths)[1]
    )


KINDS = {
    "integers": np.array([1, 2], np.int32),
    "complex": np.array([1, 2], np.complex64),
    "strings": np.array(["a", "b"]),
    "dates": np.array(["2020-01-01", "2020-01-02"], "datetime64[D]"),
    "bool": np.array([True, False]),
}


@pytest.mark.parametrize("anchor", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("how", ["--alpha", "--radius"])
def test_an_anchor_of_another_kind_is_refused_with_both_dtypes(how, anchor, tmp_path, capsys):
    w, other = np.array([1.0, 2], np.float32), np.zeros(2, np.float32)
    paths = pair(tmp_path, {"w": anchor, "x": other}, {"w": w, "x": other}, ".npz")
    for old, new in (paths, paths[::-1]):
        code, _, err = command(capsys, "project", old, new, how, 0.5, "-o", tmp_path / "out.npz")
        assert (code, err.count("\n")) == (2, 1)
        assert "float32" in err
        assert anchor.dtype.name in err
        assert command(capsys, "compare", old, new)[0] == 1
    assert not (tmp_path / "out.npz").exists()


def test_a_float64_scale_beside_an_integer_counter_is_a_weight(tmp_path, capsys):
    # `count` is one number: a counter, not quantized.
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for i, path in enumerate(paths):
        save_file({"n.scale": np.full(2, 2.0 * i), "n.seen": np.asarray(i, np.int32)}, path)
    out = tmp_path / "out.safetensors"
    assert command(capsys, "project", *paths, "--alpha", 0.5, "-o", out)[0] == 0
    np.testing.assert_array_equal(load(out)["n.scale"], [1, 1])
