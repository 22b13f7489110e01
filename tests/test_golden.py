"""Parity with traces of the published programs, in float64 and in float32."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import mostly_slow

import tpgm_jax

GOLDEN = Path(__file__).parent / "golden"  # its README describes the files

# A trace is some 80 steps. Each rounds a number of order 1 a few times, 2e-16 apiece, and
# Adam's division by the root of a small second moment can magnify that tenfold or so:
# 80 * 3 * 2e-16 * 10 = 5e-13.
FLOAT64 = 1e-12
# The same count in float32, whose roundings are 6e-8 apiece: 80 * 3 * 6e-8 * 10 = 1.4e-4.
FLOAT32 = 1.5e-4
# Measured with `memory="full"`, with XLA's optimisations and without: 9e-16 and 7e-6 at most.

FTP_TRACES = [
    "ftp_adam_k0",
    "ftp_adam_k1",
    "ftp_adam_small_steps",
    "ftp_adamw_decay",
    "ftp_sgd_k05",
]
TPGM_TRACES = ["tpgm_mars_every1", "tpgm_l2_every5_iters3"]
each_dtype = pytest.mark.parametrize(
    ("dtype", "tolerance"),
    mostly_slow({"float64": ("float64", FLOAT64), "float32": ("float32", FLOAT32)}, "float64"),
)


class Trace:
    """One file of traces: arrays by kind and name, and the settings."""

    def __init__(self, name, dtype):
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
            self.arrays = {key: file[key] for key in file.files}
        self.meta = ast.literal_eval(str(self.arrays.pop("meta")))
        self.dtype = dtype
        self.exclude = self.meta["excluded"] or None

    def tree(self, kind):
        prefix = f"{kind}/"
        return {
            key.removeprefix(prefix): jnp.asarray(value, self.dtype)
            for key, value in self.arrays.items()
            if key.startswith(prefix)
        }


def base_optimizer(meta):
    if meta.get("optimizer", meta.get("inner")) == "adam":
        return optax.adamw(meta["learning_rate"], weight_decay=meta["weight_decay"])
    nesterov = bool(meta.get("nesterov"))
    return optax.sgd(meta["learning_rate"], momentum=meta["momentum"], nesterov=nesterov)


def held_out_loss(params, x, y):
    """The network of the TPGM traces: two hidden layers, softmax cross-entropy."""
    hidden = jax.nn.relu(x @ params["dense1/kernel"] + params["dense1/bias"])
    hidden = jax.nn.relu(hidden @ params["dense2/kernel"] + params["dense2/bias"])
    logits = hidden @ params["head/kernel"] + params["head/bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def worst(received, expected):
    """Largest absolute difference over all leaves."""
    return max(
        np.max(np.abs(np.asarray(received[name], np.float64) - np.asarray(value, np.float64)))
        for name, value in expected.items()
    )


@pytest.mark.parametrize(
    ("memory", "dtype", "tolerance"),
    mostly_slow(
        {
            "full-float64": ("full", "float64", FLOAT64),
            "full-float32": ("full", "float32", FLOAT32),
            # Weights of 0.1 in rows of up to 10: the floor is 256 * 2e-16 * 1, and a weight's share
            # of it is smaller. At the radius 1e-8 a weight's move of 1e-9 has a rounding error of
            # 2e-17.
            "compact-float64": ("compact", "float64", 1e-7),
            # The share of a weight in the floor is 256 * 1.2e-7 of its size, here up to 1.
            "compact-float32": ("compact", "float32", 1e-4),
        },
        "full-float64",
        "compact-float64",
    ),
)
@pytest.mark.parametrize("name", FTP_TRACES)
def test_ftp_reproduces_the_trace(name, memory, dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        trace = Trace(name, dtype)
        tx = tpgm_jax.ftp(
            base_optimizer(trace.meta),
            k=trace.meta["k"],
            exclude=trace.exclude,
            memory=memory,
        )

        def step(carry, grads):
            params, state = carry
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), (params, optax.tree.get(state, "radii"))

        anchor = trace.tree("anchor")
        (params, state), (all_params, all_radii) = jax.jit(
            lambda anchor, grads: jax.lax.scan(step, (anchor, tx.init(anchor)), grads)
        )(anchor, trace.tree("grads"))

        names = list(tpgm_jax.radii(state, params))
        radii = {name: all_radii[:, i] for i, name in enumerate(names)}
        assert sorted(names) == sorted(trace.tree("radius"))
        assert worst(all_params, trace.tree("params")) < tolerance
        assert worst(radii, trace.tree("radius")) < tolerance


@each_dtype
@pytest.mark.parametrize("name", TPGM_TRACES)
def test_tpgm_reproduces_the_trace(name, dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        trace = Trace(name, dtype)
        meta, batches = trace.meta, trace.tree("val")
        y = trace.arrays["val/y"]
        tx = tpgm_jax.tpgm(
            base_optimizer(meta),
            norm=meta["norm"],
            steps=meta["iterations"],
            every=meta["projection_every"],
            exclude=trace.exclude,
        )

        @jax.jit
        def step(params, state, grads, x, y):
            updates, state = tx.update(
                grads,
                state,
                params,
                held_out_loss=lambda params, batch: held_out_loss(params, *batch),
                held_out_batch=(x, y) if meta["iterations"] > 1 else (x[0], y[0]),
            )
            return optax.apply_updates(params, updates), state

        grads, expected = trace.tree("grads"), trace.tree("params")
        expected_radii, used = trace.tree("radius"), 0
        params = trace.tree("anchor")
        state = tx.init(params)
        for t in range(meta["steps"]):
            # Steps that learn no radii receive batches too, and must not use them.
            now = slice(used, used + meta["iterations"])
            if used == len(y):
                now = slice(0, meta["iterations"])
            at_t = {name: g[t] for name, g in grads.items()}
            params, state = step(params, state, at_t, batches["x"][now], y[now])
            used += int(trace.arrays["val/count_per_step"][t])
            radii = tpgm_jax.radii(state, params)
            assert worst(params, {name: p[t] for name, p in expected.items()}) < tolerance
            assert worst(radii, {name: r[t] for name, r in expected_radii.items()}) < tolerance
        assert used == len(y)


@each_dtype
def test_fit_radii_reproduces_the_trace(dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        trace = Trace("tpgm_posthoc_l2", dtype)
        batches = list(zip(trace.tree("val")["x"], trace.arrays["val/y"], strict=True))
        fitted = tpgm_jax.fit_radii(
            lambda params, batch: held_out_loss(params, *batch),
            trace.tree("tuned"),
            trace.tree("anchor"),
            batches,
            norm=trace.meta["norm"],
            exclude=trace.exclude,
        )
        assert worst(fitted.params, trace.tree("projected")) < tolerance
        assert worst(fitted.radii, trace.tree("radius")) < tolerance
        assert fitted.losses.shape == (200,)
