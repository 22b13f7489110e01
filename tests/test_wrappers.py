"""The tables of docs/wrappers.md: optax's optimizers inside our methods, and wrappers around."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import mostly_slow
from optax import contrib

import tpgm_jax

PAGE = (Path(__file__).parents[1] / "docs" / "wrappers.md").read_text()
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(64, 6)), jnp.float32)
Y = jnp.tanh(X @ jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32))
ANCHOR = {
    "hidden": {
        "kernel": jnp.asarray(0.4 * RNG.normal(size=(6, 8)), jnp.float32),
        "bias": jnp.zeros(8),
    },
    "out": {"kernel": jnp.asarray(0.3 * RNG.normal(size=(8, 4)), jnp.float32)},
}
RATE = 1e-2
UPHILL = optax.chain(contrib.normalize(), optax.sgd(0.05))
SGD = optax.sgd(0.1)

# At the default `k` a radius may fall; with 0 it only grows, so that 60 steps learn something.
FTP: Any = {"k": 0.0}
OPTIMIZERS: dict[str, Any] = {
    "adabelief": optax.adabelief(RATE),
    "adadelta": optax.adadelta(1.0),
    "adafactor": optax.adafactor(RATE),
    "adagrad": optax.adagrad(0.1),
    "adam": optax.adam(RATE),
    "adamax": optax.adamax(RATE),
    "adamw": optax.adamw(RATE),
    "adan": optax.adan(RATE),
    "amsgrad": optax.amsgrad(RATE),
    "fromage": optax.fromage(RATE),
    "lamb": optax.lamb(RATE),
    "lars": optax.lars(1.0),
    "lion": optax.lion(RATE),
    "nadam": optax.nadam(RATE),
    "noisy_sgd": optax.noisy_sgd(0.1, key=jax.random.key(0)),
    "novograd": optax.novograd(RATE),
    "optimistic_gradient_descent": optax.optimistic_gradient_descent(0.1),
    "radam": optax.radam(RATE),
    "rmsprop": optax.rmsprop(RATE),
    "rprop": optax.rprop(RATE),
    "sgd": SGD,
    "sign_sgd": optax.sign_sgd(RATE),
    "sm3": optax.sm3(0.1),
    "yogi": optax.yogi(RATE),
    "acprop": contrib.acprop(RATE),
    "ademamix": contrib.ademamix(RATE),
    "adopt": contrib.adopt(RATE),
    "cocob": contrib.cocob(),
    **({"madgrad": contrib.madgrad(RATE)} if hasattr(contrib, "madgrad") else {}),  # optax 0.2.8
    "muon": contrib.muon(RATE),
    "polyak_sgd": optax.polyak_sgd(),
    "momo": contrib.momo(),
    "momo_adam": contrib.momo_adam(),
    "dadapt_adamw": contrib.dadapt_adamw(),
    "dog": contrib.dog(1.0),
    "dowg": contrib.dowg(1.0),
    "mechanize": contrib.mechanize(SGD),
    "prodigy": contrib.prodigy(),
    "lbfgs": optax.lbfgs(),
    "inject_hyperparams": optax.inject_hyperparams(optax.adam)(learning_rate=RATE),
    "apply_if_finite": optax.apply_if_finite(optax.adam(RATE), 3),
    "flatten": optax.flatten(optax.adam(RATE)),
    "partition": optax.partition(
        {"matrix": optax.adam(RATE), "vector": SGD},
        lambda tree: jax.tree.map(lambda x: "matrix" if x.ndim > 1 else "vector", tree),
    ),
    "reduce_on_plateau": optax.chain(optax.adam(RATE), contrib.reduce_on_plateau()),
    "MultiSteps": optax.MultiSteps(optax.adam(RATE), 2),
    "sam(..., opaque_mode=True)": contrib.sam(SGD, UPHILL, opaque_mode=True),
}
NEEDS: Any = {
    "polyak_sgd": ["value"],
    "momo": ["value"],
    "momo_adam": ["value"],
    "reduce_on_plateau": ["value"],
    "lbfgs": ["value", "grad", "value_fn"],
    "sam(..., opaque_mode=True)": ["grad_fn"],
}


def loss(params):
    hidden = jnp.tanh(X @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return jnp.mean((hidden @ params["out"]["kernel"] - Y) ** 2)


def trained(tx: Any, needs=(), held_out=False, steps=60):
    """Parameters and state after training from `ANCHOR`."""

    @jax.jit
    def step(params, state):
        value, grad = jax.value_and_grad(loss)(params)
        known: Any = {"value": value, "grad": grad, "value_fn": loss}
        known["grad_fn"] = lambda params, i: jax.grad(loss)(params)
        extra = {name: known[name] for name in needs}
        extra |= {"held_out_loss": loss} if held_out else {}
        updates, state = tx.update(grad, state, params, **extra)
        return optax.apply_updates(params, updates), state

    params, state = ANCHOR, tx.init(ANCHOR)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def matrices(tree):
    return jax.tree.map(lambda x: "matrix" if x.ndim > 1 else "vector", tree)


def is_matrix(tree):
    return jax.tree.map(lambda x: x.ndim > 1, tree)


def is_vector(tree):
    return jax.tree.map(lambda x: x.ndim < 2, tree)


# Around `tpgm` run those that take extra arguments or change the gradient it gets.
CASES = {f"ftp-{name}": (tpgm_jax.ftp, name) for name in OPTIMIZERS} | {
    f"tpgm-{name}": (tpgm_jax.tpgm, name) for name in ("adam", "muon", "MultiSteps", *NEEDS)
}


@pytest.mark.parametrize(("method", "name"), mostly_slow(CASES, "ftp-muon", "tpgm-lbfgs"))
def test_base_optimizers_learn_inside_the_ball(method, name):
    options: Any = FTP if method is tpgm_jax.ftp else {}
    tx = method(OPTIMIZERS[name], **options)
    params, state = trained(tx, NEEDS.get(name, ()), held_out=method is tpgm_jax.tpgm)
    groups = tpgm_jax.report(state, params).groups
    assert not any(group.beyond for group in groups)
    assert all(group.distance > 0 for group in groups)
    # By hand from a run: the least that any of them gains of 1.32 is 0.07.
    assert loss(params) < loss(ANCHOR) - 0.05


@pytest.mark.parametrize("method", [tpgm_jax.ftp, tpgm_jax.tpgm, tpgm_jax.spd])
def test_optimizers_that_evaluate_other_weights_are_refused(method):
    for base in (contrib.schedule_free_adamw(0.1), contrib.schedule_free_sgd(0.1)):
        tx = method(optax.chain(optax.clip_by_global_norm(1.0), base))
        with pytest.raises(ValueError, match=r"cannot wrap `optax\.contrib\.schedule_free`"):
            tx.init(ANCHOR)
    with pytest.raises(ValueError, match=r"cannot wrap `optax.contrib.sam` .* `opaque_mode=True`"):
        method(contrib.sam(SGD, UPHILL)).init(ANCHOR)


def make_ftp():
    return tpgm_jax.ftp(optax.adam(RATE), **FTP)


AROUND = {
    "clip": lambda: optax.chain(optax.clip_by_global_norm(1.0), make_ftp()),
    "freeze": lambda: optax.chain(
        make_ftp(),
        optax.masked(optax.set_to_zero(), lambda p: jax.tree.map(lambda x: not x, is_matrix(p))),
    ),
    "MultiSteps": lambda: optax.MultiSteps(
        make_ftp(), 2, should_skip_update_fn=optax.skip_not_finite
    ),
    "apply_if_finite": lambda: optax.apply_if_finite(make_ftp(), 2),
    "inject_hyperparams": lambda: optax.inject_hyperparams(
        lambda rate: tpgm_jax.ftp(optax.adam(rate), **FTP)
    )(rate=RATE),
    "partition": lambda: optax.partition(
        {"matrix": make_ftp(), "vector": optax.adam(RATE)}, matrices
    ),
    "conditionally_mask": lambda: optax.conditionally_mask(
        make_ftp(), lambda step, **_: jnp.asarray(step) % 2 == 0
    ),
    "sam": lambda: contrib.sam(make_ftp(), UPHILL, opaque_mode=True),
    "split_real_and_imaginary": lambda: contrib.split_real_and_imaginary(make_ftp()),
}


@pytest.mark.parametrize("name", mostly_slow({x: x for x in AROUND}, "partition", "freeze"))
def test_wrappers_around_ftp_keep_weights_in_the_ball(name):
    params, state = trained(AROUND[name](), ["grad_fn"] if name == "sam" else ())
    assert not any(group.beyond for group in tpgm_jax.report(state, params).groups)
    assert loss(params) < loss(ANCHOR) - 0.05


WRONG = {
    "conditionally_transform": lambda: optax.conditionally_transform(
        make_ftp(), lambda step, **_: jnp.asarray(step) % 2 == 0
    ),
    "mechanize": lambda: contrib.mechanize(make_ftp()),
    "schedule_free": lambda: contrib.schedule_free(make_ftp(), RATE, b1=0.9),
    "chain": lambda: optax.chain(make_ftp(), optax.scale(2.0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_wrappers_that_move_projected_weights_are_found_by_the_report(name):
    params, state = trained(WRONG[name]())
    report = tpgm_jax.report(state, params)
    assert any(group.beyond for group in report.groups)
    assert "beyond their radius" in str(report)


@pytest.mark.slow
def test_a_mask_around_ftp_hands_out_raw_gradients():
    # As on the page. Left-out leaves move by +gradient, so the loss does not fall.
    params, _ = trained(optax.masked(make_ftp(), is_matrix))
    assert loss(params) > loss(ANCHOR)


def test_a_held_out_loss_that_fails_in_a_partition_gets_a_note_with_the_reason():
    parts: Any = {"matrix": tpgm_jax.tpgm(SGD), "vector": SGD}
    with pytest.raises(TypeError) as error:
        trained(optax.partition(parts, matrices), held_out=True, steps=1)
    assert "`optax.partition` or `optax.masked`" in "".join(error.value.__notes__)
    assert "`exclude`" in "".join(error.value.__notes__)


def test_a_held_out_loss_that_fails_without_a_partition_gets_no_note():
    def fails(params):
        raise TypeError("a fault of the model")

    tx = tpgm_jax.tpgm(SGD)
    with pytest.raises(TypeError, match="a fault of the model") as error:
        tx.update(ANCHOR, tx.init(ANCHOR), ANCHOR, held_out_loss=fails)
    assert "partition" not in "".join(getattr(error.value, "__notes__", []))


def test_flattened_parameters_have_one_radius():
    state: Any = optax.flatten(make_ftp()).init(ANCHOR)
    assert state.radii.shape == (1,)


def test_the_page_names_every_optimizer_of_the_tests():
    inside, _, outside = PAGE.partition("## Outside")
    words = set(re.findall(r"\w+", inside))
    assert {name.split("(")[0] for name in OPTIMIZERS} <= words
    assert set(WRONG) - {"chain"} <= set(re.findall(r"\w+", outside))
