"""What goes wrong in silence elsewhere: restored states, other models, and numbers that are not
finite."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_step
from flax import nnx, serialization

import tpgm_jax
from tpgm_jax import add_anchor_decay, ftp, interpolate, project_to_anchor, spd, tpgm

BASE = optax.adam(1e-2)
PARAMS: Any = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}


def loss(params):
    return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(params))


# --- Infinities

METHODS: Any = {
    "ftp": lambda: ftp(BASE),
    "ftp by anchor": lambda: ftp(BASE, unit="anchor", exclude="bias"),  # whose unit is a mean
    "ftp compact": lambda: ftp(BASE, memory="compact"),
    "ftp l2": lambda: ftp(BASE, norm="l2"),
    "tpgm": lambda: tpgm(BASE),
    "spd": lambda: spd(BASE),
    "project_to_anchor": lambda: optax.chain(BASE, project_to_anchor(0.01)),
    "add_anchor_decay": lambda: optax.chain(add_anchor_decay(0.1), BASE),
}


@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_a_mask_of_infinities_stays_and_does_not_disturb_other_leaves(make):
    mask = jnp.where(jnp.tri(3) > 0, 0.0, -jnp.inf)
    both = {}
    for name, params in {"without": PARAMS, "with": PARAMS | {"mask": mask}}.items():
        tx, start = make(), params
        step = make_step(tx, held_out_loss=lambda p: loss({**p, "mask": 0.0}))
        state = tx.init(params)
        for _ in range(4):
            grads = {x: jnp.zeros_like(y) if x == "mask" else y + 1 for x, y in params.items()}
            params, state = step(params, state, grads)
        both[name] = params
        assert not np.array_equal(params["kernel"], start["kernel"])
    np.testing.assert_array_equal(both["with"].pop("mask"), mask)
    # The same numbers; programs of other shapes may sum them in another order.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), *both.values())


def test_a_report_names_the_leaf_with_infinities():
    params = PARAMS | {"mask": jnp.full((2, 2), -jnp.inf)}
    notes = tpgm_jax.report(ftp(BASE).init(params), params).notes
    assert notes == ("mask: holds numbers that are not finite",)


def test_interpolation_keeps_equal_infinities():
    mask = jnp.array([0.0, -jnp.inf, jnp.inf])
    np.testing.assert_array_equal(interpolate(mask, mask, 0.3), mask)


# --- NaN inside gradient accumulation


@pytest.mark.parametrize("make", [ftp, spd])
def test_multi_steps_recovers_from_nan_only_with_skip_not_finite(make):
    # MultiSteps multiplies its accumulator by 0 when it emits, and NaN times 0 is NaN.
    def train(**options):
        tx: Any = optax.MultiSteps(make(BASE), 2, **options)
        step, params, state = make_step(tx), PARAMS, tx.init(PARAMS)
        for i in range(12):
            grads = jax.tree.map(lambda x, i=i: x + (jnp.nan if i == 2 else 1.0), PARAMS)
            params, state = step(params, state, grads)
        return params, state

    params, state = train()
    assert int(state.inner_opt_state.skipped) == 5  # all but the first of six
    (note,) = (x for x in tpgm_jax.report(state, params).notes if "skipped" in x)
    assert "should_skip_update_fn=optax.skip_not_finite" in note
    params, state = train(should_skip_update_fn=optax.skip_not_finite)
    assert int(state.inner_opt_state.skipped) == 0
    assert int(state.inner_opt_state.step) == 5  # 11 finite gradients, in pairs


# --- States of other options. `test_spec.py` has the other options.


def test_an_anchor_stored_in_another_dtype_is_refused():
    saved = ftp(BASE, anchor_dtype=jnp.bfloat16).init(PARAMS)
    fresh = ftp(BASE).init(PARAMS)
    pairs = zip(jax.tree.leaves(saved), jax.tree.leaves(fresh), strict=True)
    leaves = [jnp.asarray(x, y.dtype) for x, y in pairs]
    restored = jax.tree.unflatten(jax.tree.structure(fresh), leaves)
    with pytest.raises(ValueError, match="`anchor_dtype` was different"):
        tpgm_jax.check_state(restored, PARAMS)


@pytest.mark.parametrize("which", ["base_optimizer", "radius_optimizer"])
def test_the_state_of_another_optimizer_is_refused(which):
    state = ftp(BASE, radius_optimizer=BASE).init(PARAMS)
    optimizers: Any = {"base_optimizer": BASE, "radius_optimizer": BASE}
    optimizers[which] = optax.sgd(0.1, momentum=0.9)
    tx = ftp(optimizers.pop("base_optimizer"), **optimizers)
    with pytest.raises(ValueError, match=f"made with another `{which}`"):
        tx.update(PARAMS, state, PARAMS)


def test_a_state_restored_as_a_plain_dict_is_refused():
    tx = ftp(BASE)
    plain = serialization.to_state_dict(tx.init(PARAMS))
    with pytest.raises(TypeError, match="restore into the structure of `init"):
        tx.update(PARAMS, plain, PARAMS)
    with pytest.raises(ValueError, match="found no state of this library"):
        tpgm_jax.check_state(plain, PARAMS)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [(jnp.nan, ValueError, "with NaN in it"), (1j, TypeError, "complex numbers")],
)
def test_set_anchor_refuses_numbers_that_cannot_be_weights(value, error, message):
    state = ftp(BASE).init(PARAMS)
    with pytest.raises(error, match=message):
        tpgm_jax.set_anchor(state, PARAMS | {"bias": jnp.full(2, value)})


@pytest.mark.parametrize("field", ["anchor", "radii"])
def test_nan_in_a_restored_state_is_found(field):
    state: Any = ftp(BASE).init(PARAMS)
    broken = state._replace(**{field: jax.tree.map(lambda x: x * jnp.nan, getattr(state, field))})
    name = "anchor of 'bias'" if field == "anchor" else "radii"
    with pytest.raises(ValueError, match=f"{name} with NaN in it"):
        tpgm_jax.check_state(broken, PARAMS)
    if field == "radii":
        with pytest.raises(ValueError, match="radii with NaN in it"):
            ftp(BASE).update(PARAMS, broken, PARAMS)


# --- Models that change


def test_a_renamed_layer_is_named():
    tx, renamed = ftp(BASE), {"weight": PARAMS["kernel"], "bias": PARAMS["bias"]}
    with pytest.raises(ValueError, match=r"'bias'|'kernel'.*'weight'"):
        tx.update(renamed, tx.init(PARAMS), renamed)
    with pytest.raises(ValueError, match=r"`params` lacks 'kernel'.*closest"):
        tpgm_jax.report(tx.init(PARAMS), renamed)


def test_an_added_head_is_named():
    tx, larger = ftp(BASE), PARAMS | {"zero_head": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match="'zero_head'"):
        tx.update(larger, tx.init(PARAMS), larger)


def test_tied_parameters_under_two_names_stay_equal():
    # The user ties them by equal gradients, such as the sum of both gradients of a tied model.
    params = {"embed": jnp.ones((3, 4)), "head": jnp.ones((3, 4))}
    axes: Any = {"embed|head": tpgm_jax.Axes(rows=0)}
    tx = ftp(BASE, axes=axes)
    step, state = make_step(tx), tx.init(params)
    for t in range(5):
        grads = jnp.sin(jnp.arange(12.0) + t).reshape(3, 4)
        params, state = step(params, state, {"embed": grads, "head": grads})
    np.testing.assert_array_equal(params["embed"], params["head"])


@pytest.mark.parametrize("memory", ["full", "compact"])
def test_a_frozen_leaf_with_zero_gradients_stays_and_disturbs_nothing(memory):
    def train(params):
        tx = ftp(BASE, memory=memory)
        step, state = make_step(tx), tx.init(params)
        for _ in range(4):
            grads = {x: jnp.zeros_like(y) if x == "frozen" else y + 1 for x, y in params.items()}
            params, state = step(params, state, grads)
        return params

    frozen = {"frozen": jnp.full((2, 2), 3.0)}
    found = train(PARAMS | frozen)
    np.testing.assert_array_equal(found.pop("frozen"), frozen["frozen"])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, train(PARAMS))


def test_batch_statistics_in_a_flax_optimizer_are_left_alone():
    model = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, ftp(BASE), wrt=nnx.Param)
    x = jnp.arange(8.0).reshape(2, 4)
    for _ in range(3):
        grads = nnx.grad(lambda model: jnp.sum(jnp.square(model(x) - 1.0)))(model)
        optimizer.update(model, grads)
    report = tpgm_jax.report(optimizer.opt_state, nnx.state(model, nnx.Param))
    assert {group.name for group in report.groups} == {"scale", "bias"}
    # Three updates with momentum 0.99 of the mean of x, worked by hand.
    np.testing.assert_allclose(model.mean[...], (1 - 0.99**3) * x.mean(0), rtol=1e-5)


def test_an_anchor_dtype_that_cannot_hold_the_weights_is_refused():
    params = {"kernel": jnp.full((2, 2), 1e6)}  # float16 ends at 65504
    with pytest.raises(ValueError, match="`anchor_dtype=float16` cannot hold 'kernel'"):
        tpgm_jax.ftp(optax.sgd(0.1), anchor_dtype=jnp.float16).init(params)
    state: Any = tpgm_jax.ftp(optax.sgd(0.1), anchor_dtype=jnp.bfloat16).init(params)
    assert bool(jnp.isfinite(state.anchor["kernel"]).all())
    # A mask of infinities is as infinite in any dtype.
    mask = {"kernel": jnp.array([[0.0, -jnp.inf]])}
    tpgm_jax.ftp(optax.sgd(0.1), anchor_dtype=jnp.float16).init(mask)


@pytest.mark.parametrize("which", ["params", "anchor"])
def test_fit_radii_refuses_nan(which):
    trees: Any = {"params": {"kernel": jnp.ones((2, 2))}, "anchor": {"kernel": jnp.zeros((2, 2))}}
    trees[which] = {"kernel": jnp.array([[1.0, jnp.nan]] * 2)}
    with pytest.raises(ValueError, match=f"`fit_radii` got `{which}` that has 'kernel' with NaN"):
        tpgm_jax.fit_radii(lambda params, _: jnp.sum(params["kernel"]), **trees, batches=[1])


@pytest.mark.parametrize(("number", "message"), [(jnp.inf, "infinite"), (-1e-9, "negative")])
def test_importances_that_are_infinite_or_negative_are_refused(number, message):
    params = {"kernel": jnp.ones((2, 2))}
    importance = {"kernel": jnp.array([[1.0, number]] * 2)}
    message = f"`importance` has 'kernel' with {message} numbers"
    with pytest.raises(ValueError, match=message):
        tpgm_jax.add_anchor_decay(0.1, importance=importance).init(params)
    state = tpgm_jax.add_anchor_decay(0.1, importance=params).init(params)
    with pytest.raises(ValueError, match=message):
        tpgm_jax.set_anchor(state, params, importance=importance)


def test_gradients_of_excluded_integers_pass_unchanged():
    # JAX gives them the dtype `float0`, which no operation accepts.
    params: Any = {"w": jnp.ones(3), "count": jnp.array(5)}
    grads = jax.grad(lambda params: jnp.sum(params["w"] ** 2), allow_int=True)(params)
    assert grads["count"].dtype == jax.dtypes.float0
    tx = tpgm_jax.ftp(optax.identity(), exclude="count")
    updates: Any
    updates, _ = tx.update(grads, tx.init(params), params)
    assert updates["count"].dtype == jax.dtypes.float0
