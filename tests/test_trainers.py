"""Every example of `examples.trainers` at its smallest size, and the claims that each makes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tpgm_jax
from examples.trainers import (
    accumulation,
    data,
    equinox_ftp,
    linen_tpgm,
    lora,
    mixed_precision,
    nnx_tpgm,
)

pytestmark = pytest.mark.slow
NORMED = {
    *("hidden_1/kernel", "hidden_2/kernel", "head/kernel", "head/bias"),
    *("norm_1/scale", "norm_1/bias", "norm_2/scale", "norm_2/bias"),
}
MLP = {
    f"params/{layer}/{x}" for layer in ("layer_1", "layer_2", "head") for x in ("kernel", "bias")
}


@functools.cache
def task():
    return data.load(["--fast"], None)


def flat(tree):
    """Name to array, in float64."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    arrays = [np.asarray(x, np.float64) for _, x in paths]
    return dict(zip([name.removesuffix("/value") for name in names], arrays, strict=True))


def variables(model):
    """Parameters and statistics of an NNX model, by name."""
    return flat(nnx.to_pure_dict(nnx.state(model, (nnx.Param, nnx.BatchStat))))


def check_learning(results, method):
    accuracies = results["accuracies"]
    # Fine-tuning has to beat picking the digit whose mean image is the nearest, and pre-training
    # has to beat guessing by five standard deviations of the number of lucky guesses.
    train, test = task().train, task().test
    means = np.stack([train.images[train.labels == digit].mean(axis=0) for digit in range(10)])
    nearest = np.square(test.images[:, None] - means).sum(axis=(2, 3)).argmin(axis=1)
    luck = 100 * (0.1 + 5 * np.sqrt(0.1 * 0.9 / len(test.labels)))
    assert accuracies["pre-trained"][0] > luck
    assert accuracies[method][0] > 100 * np.mean(nearest == test.labels)
    assert accuracies[method][0] > accuracies["pre-trained"][0]
    # Accuracies are in per cent, and some shifted digits are illegible, so none reaches 100.
    assert all(luck < shifted < 100 for _, shifted in accuracies.values())


def check_radii(params, anchor, radii, names, eps=2**-23, inputs=0):
    """Checks that all rows are within their radii, and that some row is at its radius.

    Args:
        params: parameters by name.
        anchor: anchors by name.
        radii: radii by name.
        names: the names that `radii` must have.
        eps: machine epsilon of the parameters' dtype.
        inputs: the axis of a kernel along which a row extends.
    """
    assert set(radii) == names
    at_the_edge = []
    for name, radius in radii.items():
        axis = inputs if params[name].ndim == 2 else None
        farthest = np.abs(params[name] - anchor[name]).sum(axis=axis).max()
        # Adding the update rounds each weight by at most half of `eps`, and the update's own sum of
        # three terms by as much. `1e-8` is added to all norms.
        size = np.abs(params[name]).sum(axis=axis).max() + np.abs(anchor[name]).sum(axis=axis).max()
        slack = eps * (size + radius) + 1e-8
        assert 0 < farthest <= radius + slack, name
        at_the_edge.append(farthest >= radius - slack)
    assert any(at_the_edge)


def test_a_report_shows_accuracies_and_radii(capsys):
    data.report({"a model": (98.76, 54.32)}, {"kernel": 0.125})
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["a", "model", "98.8", "54.3"]
    assert lines[2] == "radii: kernel 0.125"


def test_nnx_with_tpgm_learns_within_its_radii():
    results = nnx_tpgm.main(["--fast"])
    check_learning(results, "TPGM")
    tuned, pretrained = (variables(results["models"][name]) for name in ("TPGM", "pre-trained"))
    check_radii(tuned, pretrained, results["radii"], NORMED)
    anchor = flat(optax.tree.get(nnx.as_pure(results["optimizer"].opt_state), "anchor"))
    for name in NORMED:
        np.testing.assert_array_equal(anchor[name], pretrained[name])


def test_linen_with_tpgm_learns_within_its_radii():
    results = linen_tpgm.main(["--fast"])
    check_learning(results, "TPGM")
    tuned, pretrained = (results["states"][name] for name in ("TPGM", "pre-trained"))
    check_radii(flat(tuned.params), flat(pretrained.params), results["radii"], NORMED)
    anchor: Any = optax.tree.get(tuned.opt_state, "anchor")
    jax.tree.map(np.testing.assert_array_equal, anchor, pretrained.params)
    assert tuned.step == task().steps


# ---- The held-out loss of both, without TPGM, which takes long to compile.


def observer():
    """Returns zero updates, and stores the held-out loss in its state."""

    def init(params):
        return {"value": jnp.zeros(())}

    def update(updates, state, params=None, *, held_out_loss: Any = None):
        value, _ = jax.value_and_grad(held_out_loss)(params)
        return jax.tree.map(jnp.zeros_like, updates), {"value": value}

    return optax.GradientTransformationExtraArgs(init, update)


def nnx_step(batch, held_out):
    model = nnx_tpgm.Network(nnx.Rngs(0))
    before, optimizer = variables(model), nnx.Optimizer(model, observer(), wrt=nnx.Param)
    nnx_tpgm.train_step(model, optimizer, batch, held_out)
    return before, variables(model), optimizer.opt_state["value"][...]


def linen_step(batch, held_out):
    network = linen_tpgm.Network()
    start = network.init(jax.random.key(0), batch.images, training=False)
    state = linen_tpgm.TrainState.create(apply_fn=network.apply, tx=observer(), **start)
    after = linen_tpgm.train_step(state, batch, held_out)
    before, after_step = (flat(x.params) | flat(x.batch_stats) for x in (state, after))
    return before, after_step, after.opt_state["value"]


@pytest.mark.parametrize("step", [nnx_step, linen_step])
def test_held_out_loss_is_in_evaluation_mode_and_changes_no_statistics(step):
    batch = data.Split(*(x[:64] for x in task().train))
    before, after, received = step(batch, task().held_out)
    assert {name for name in after if not np.array_equal(after[name], before[name])} == {
        *("norm_1/mean", "norm_1/var", "norm_2/mean", "norm_2/var")
    }

    # The first layer comes before any dropout, so its statistics follow from the training batch.
    x = batch.images.reshape(len(batch.images), -1) @ before["hidden_1/kernel"]
    for name, statistic in (("norm_1/mean", x.mean(axis=0)), ("norm_1/var", x.var(axis=0))):
        # Sums of 64 numbers in float32, and the variance as a difference of two sums.
        expected = 0.95 * before[name] + 0.05 * statistic
        np.testing.assert_allclose(after[name], expected, rtol=0, atol=1e-6)

    x = task().held_out.images.reshape(len(task().held_out.images), -1)
    for i in ("1", "2"):
        x = x @ after[f"hidden_{i}/kernel"] - after[f"norm_{i}/mean"]
        x = x / np.sqrt(after[f"norm_{i}/var"] + 1e-5) * after[f"norm_{i}/scale"]
        x = np.maximum(x + after[f"norm_{i}/bias"], 0)
    logits = x @ after["head/kernel"] + after["head/bias"]
    right = logits[np.arange(len(x)), task().held_out.labels]
    expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - right)
    # A loss near 2 after three sums of 256 products each, in float32.
    np.testing.assert_allclose(received, expected, rtol=1e-5)


# ---- The others


def test_equinox_with_ftp_learns_within_its_radii():
    results = equinox_ftp.main(["--fast"])
    check_learning(results, "FTP")
    names = {f"layers/{i}/{x}" for i in range(3) for x in ("weight", "bias")}
    tuned, pretrained = (
        flat(equinox_ftp.parameters(results["models"][name])) for name in ("FTP", "pre-trained")
    )
    check_radii(tuned, pretrained, results["radii"], names, inputs=1)


def test_lora_with_ftp_bounds_the_adapters_and_copies_nothing():
    results = lora.main(["--fast"])
    check_learning(results, "FTP")
    pretrained, tuned = (results["models"][name] for name in ("pre-trained", "FTP"))
    zero, weights = {}, {}
    for i, (layer, base) in enumerate(zip(tuned.layers, pretrained.layers, strict=True)):
        for name in ("kernel", "bias"):
            frozen, original = (getattr(x, name)[...] for x in (layer.base_module, base))
            np.testing.assert_array_equal(frozen, original)
        name = f"layers/{i}/lora_b"
        a, b = (np.asarray(x[...], np.float64) for x in (layer.lora_a, layer.lora_b))
        weights[name], zero[name] = b, np.zeros_like(b)
        # The bound of the docstring; both sides are computed in float64.
        bound = results["radii"][name] * np.abs(a).sum(axis=0).max()
        assert np.abs(a @ b).sum(axis=0).max() <= bound * (1 + 2**-20)
    check_radii(weights, zero, results["radii"], set(zero))
    # Adam's two moments and the displacement of `lora_b`: no copy of anything frozen, no anchor.
    kept = sum(x.size for x in jax.tree.leaves(results["optimizer"].opt_state) if x.ndim == 2)
    sizes = [(x.lora_a[...].size, x.lora_b[...].size) for x in tuned.layers]
    assert kept == sum(2 * a + 3 * b for a, b in sizes)


def test_adapters_start_at_the_pretrained_model():
    model, images = lora.Network(nnx.Rngs(0)), task().test.images[:4]
    before = lora.predict(model, images)
    np.testing.assert_array_equal(lora.predict(lora.with_adapters(model), images), before)


def test_accumulation_makes_one_step_for_several_batches():
    results = accumulation.main(["--fast"])
    check_learning(results, "FTP")
    models, state = results["models"], results["states"]["FTP"]
    check_radii(flat(models["FTP"]), flat(models["pre-trained"]), results["radii"], MLP)
    inner: Any = optax.tree.get(state, "FTPState")
    assert inner.step == state.gradient_step == task().steps
    assert inner.skipped == state.mini_step == 0
    assert isinstance(inner, tpgm_jax.FTPState)


def test_mixed_precision_keeps_float32_weights_within_small_radii():
    results = mixed_precision.main(["--fast"])
    models, images = results["models"], task().test.images[:4]
    for method, dtype in (("FTP, float32", jnp.float32), ("FTP, bfloat16", jnp.bfloat16)):
        check_learning(results, method)
        assert {x.dtype for x in jax.tree.leaves(models[method])} == {jnp.dtype(dtype)}
        assert mixed_precision.predict(models[method], images).dtype == jnp.bfloat16
    check_radii(flat(models["FTP, float32"]), flat(models["pre-trained"]), results["radii"], MLP)
    # A row of 256 weights of at most 0.25 or so, each rounded by up to 2^-24 of it: 4e-6. In
    # bfloat16 a single weight of 0.1 moves by half of the radius or not at all.
    assert results["within"]["float32"] == pytest.approx(0.001, abs=4e-6)
    assert results["within"]["bfloat16"] != pytest.approx(0.001, rel=0.1)
