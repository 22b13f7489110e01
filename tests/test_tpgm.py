"""TPGM beyond parity: when it learns radii, from which data, and what it does not change."""

import functools
from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_step, random_tree

import tpgm_jax

PARAMS = {"w": jnp.zeros((3, 2)), "head": jnp.ones((2, 2))}
GRADS = {"w": jnp.full((3, 2), -1.0), "head": jnp.full((2, 2), -1.0)}


def squared_distance(params, target=0.05):
    return jnp.sum((params["w"] - target) ** 2)


def test_the_radius_starts_at_half_the_smallest_norm():
    # With a constant held-out loss the radius stays at its start. Rows move by 0.3 and 0.6.
    tx = tpgm_jax.tpgm(optax.sgd(0.1), exclude="head")
    grads = {"w": jnp.array([[-1.0, -2.0]] * 3), "head": GRADS["head"]}
    _, state = make_step(tx, held_out_loss=lambda params: jnp.zeros(()))(
        PARAMS, tx.init(PARAMS), grads
    )
    np.testing.assert_allclose(tpgm_jax.radii(state, PARAMS)["w"], 0.15, rtol=1e-6)


def test_the_radius_of_a_tensor_that_has_not_moved_is_zero():
    # Not 1e-8, because a radius is at most the largest norm.
    params = {"kernel": jnp.ones((3, 2))}
    tx = tpgm_jax.tpgm(optax.sgd(0.1))
    step = make_step(tx, held_out_loss=lambda params: jnp.sum(params["kernel"]))
    state: Any
    _, state = step(params, tx.init(params), {"kernel": jnp.zeros((3, 2))})
    np.testing.assert_array_equal(state.radii, 0.0)


def test_by_default_each_update_takes_one_radius_step():
    params = {"kernel": jnp.ones((3, 2))}
    tx = tpgm_jax.tpgm(optax.sgd(0.1))
    step = make_step(tx, held_out_loss=lambda params: jnp.sum(params["kernel"]))
    state: Any = tx.init(params)
    for count in (1, 2, 3):
        params, state = step(params, state, {"kernel": jnp.ones((3, 2))})
        assert state.radius_state[0].count == count


def test_radii_are_learned_at_every_nth_step():
    tx = tpgm_jax.tpgm(optax.sgd(0.1), every=3, exclude="head")
    step = make_step(tx, held_out_loss=lambda params: squared_distance(params, 1.0))
    params, state, history = PARAMS, tx.init(PARAMS), []
    for _ in range(7):
        params, state = step(params, state, GRADS)
        history.append(tpgm_jax.radii(state, params)["w"])
    changed = [t for t in range(1, 7) if history[t] != history[t - 1]]
    assert changed == [3, 6]


@pytest.mark.parametrize(
    "held_out_loss",
    [
        lambda params: squared_distance(params, 0.2),
        lambda params, target=0.2: squared_distance(params, target),
        functools.partial(squared_distance, target=0.2),
        jax.jit(lambda params: squared_distance(params, 0.2)),
    ],
    ids=["params", "default_argument", "partial", "jitted"],
)
def test_the_held_out_loss_is_any_function_of_the_parameters(held_out_loss):
    tx = tpgm_jax.tpgm(optax.sgd(0.1), exclude="head")
    _, state = make_step(tx, held_out_loss=held_out_loss)(PARAMS, tx.init(PARAMS), GRADS)
    # Rows move by 0.3 and the radius starts at 0.15. The held-out loss is lowest at 0.6, so the
    # radius increases, by 1e-2.
    np.testing.assert_allclose(tpgm_jax.radii(state, PARAMS)["w"], 0.16, rtol=1e-5)


def test_each_radius_step_gets_its_own_batch():
    # Signs that differ by step, in a tree of batches: opposite ones cancel.
    def held_out_loss(params, batch):
        return jnp.sum(params["w"]) * batch["sign"]

    signs = jnp.array([1.0, 1.0, -1.0, -1.0])

    def radius(steps):
        tx = tpgm_jax.tpgm(
            optax.sgd(0.1), steps=steps, exclude="head", radius_optimizer=optax.sgd(1e-3)
        )
        batch = {"sign": signs[0] if steps == 1 else signs[:steps]}
        step = make_step(tx, held_out_loss=held_out_loss, held_out_batch=batch)
        _, state = step(PARAMS, tx.init(PARAMS), GRADS)
        return tpgm_jax.radii(state, PARAMS)["w"]

    # The slope of the sum of all weights with respect to the radius is 1 for each row.
    np.testing.assert_allclose([radius(1), radius(2)], [0.15 - 2e-3, 0.15 - 4e-3], rtol=1e-5)
    np.testing.assert_allclose(radius(4), 0.15, rtol=1e-5)


def test_excluded_leaves_enter_the_held_out_loss_unprojected():
    seen = []

    def held_out_loss(params):
        jax.debug.callback(lambda head: seen.append(np.asarray(head)), params["head"])
        return squared_distance(params)

    tx = tpgm_jax.tpgm(optax.sgd(0.1), exclude="head")
    params, _ = make_step(tx, held_out_loss=held_out_loss)(PARAMS, tx.init(PARAMS), GRADS)
    jax.effects_barrier()
    np.testing.assert_allclose(seen[0], 1.1, rtol=1e-6)
    np.testing.assert_array_equal(params["head"], seen[0])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("norm", ["mars", "l2"])
def test_the_radius_gradient_equals_central_differences(norm):
    shapes = {"w": (3, 4), "b": (4,)}
    anchor, grads, target = (random_tree(shapes, seed) for seed in range(3))

    def held_out_loss(params):
        return sum(jnp.sum(jnp.sin(params[name] - target[name])) for name in shapes)

    def first_radius_step(rate):
        # Gradient descent on the radii, so that its move divided by its rate is the gradient.
        tx = tpgm_jax.tpgm(optax.sgd(1.0), norm=norm, radius_optimizer=optax.sgd(rate))
        _, state = make_step(tx, held_out_loss=held_out_loss)(anchor, tx.init(anchor), grads)
        return np.array(list(tpgm_jax.radii(state, anchor).values()))

    start, rate = first_radius_step(1e-12), 1e-3
    gradient = (start - first_radius_step(rate)) / rate

    def value_at(radii):
        moved = {}
        for name, radius in zip(["b", "w"], radii, strict=True):  # dicts are sorted by name
            d = -np.asarray(grads[name])
            axis = 0 if norm == "mars" and d.ndim == 2 else None
            size = np.abs(d).sum(axis) if norm == "mars" else np.sqrt((d**2).sum())
            moved[name] = np.asarray(anchor[name]) + np.minimum(1, radius / (size + 1e-8)) * d
        return float(held_out_loss(moved))

    step = 1e-5
    for i, unit in enumerate(np.eye(2)):
        difference = (value_at(start + step * unit) - value_at(start - step * unit)) / (2 * step)
        # Second order in the step, 1e-10; the rest is rounding, 1e-15 / 1e-5 and 1e-15 / 1e-3.
        np.testing.assert_allclose(gradient[i], difference, rtol=0, atol=1e-8)


def test_a_line_search_gets_its_own_training_loss():
    # `optax.lbfgs` needs `value`, `grad` and `value_fn`, the training loss, which pulls to 2; the
    # held-out loss pulls to 0.1.
    def training_loss(params):
        return jnp.sum((params["w"] - 2.0) ** 2)

    tx = tpgm_jax.tpgm(optax.lbfgs())

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(training_loss)(params)
        updates, state = tx.update(
            grads,
            state,
            params,
            value=value,
            grad=grads,
            value_fn=training_loss,
            held_out_loss=squared_distance,
            held_out_batch=0.1,
        )
        return optax.apply_updates(params, updates), state

    params = {"w": jnp.zeros((3, 2))}
    state = tx.init(params)
    for _ in range(200):
        params, state = step(params, state)
    # The radius ends near 3 * 0.1, within a step or two of 1e-2.
    np.testing.assert_allclose(params["w"], 0.1, atol=0.02 / 3)


def test_fit_radii_compiles_once_for_a_function():
    traces = 0

    def held_out_loss(params, target):
        nonlocal traces
        traces += 1
        return squared_distance(params, target)

    anchor, tuned = {"w": jnp.zeros((2, 2))}, {"w": jnp.ones((2, 2))}
    for target in (0.5, 0.25):
        fitted = tpgm_jax.fit_radii(held_out_loss, tuned, anchor, [target] * 300)
        np.testing.assert_allclose(fitted.params["w"], target, atol=1e-2)
    assert traces == 1


def test_fit_radii_accepts_a_loss_that_cannot_be_hashed():
    class Loss:
        def __hash__(self):
            raise TypeError("unhashable, like a module with arrays")

        def __call__(self, params, target):
            return squared_distance(params, target)

    anchor, tuned = {"w": jnp.zeros((2, 2))}, {"w": jnp.ones((2, 2))}
    fitted = tpgm_jax.fit_radii(Loss(), tuned, anchor, [0.5] * 2)
    assert fitted.losses.shape == (2,)


def test_fit_radii_takes_any_iterable_and_returns_one_loss_a_batch():
    anchor, tuned = {"w": jnp.zeros((2, 2))}, {"w": jnp.ones((2, 2))}
    fitted = tpgm_jax.fit_radii(
        lambda params, target: squared_distance(params, target),
        tuned,
        anchor,
        (jnp.float32(x) for x in (0.5, 0.5, 0.5)),
    )
    # The radius starts at half of |d| = 2, where the weights are at 0.5, and stays.
    np.testing.assert_allclose(fitted.losses, 0.0, atol=1e-12)
    np.testing.assert_allclose(fitted.params["w"], 0.5, rtol=1e-6)
    assert fitted.radii == {"w": pytest.approx(1.0)}


def test_a_held_out_loss_in_half_precision_is_averaged_in_float32():
    tuned, anchor = {"w": jnp.ones((2, 2))}, {"w": jnp.zeros((2, 2))}
    fitted = tpgm_jax.fit_radii(
        lambda p, _: jnp.sum(p["w"]).astype(jnp.bfloat16), tuned, anchor, [None]
    )
    assert fitted.losses.dtype == jnp.float32


def test_a_held_out_loss_without_a_gradient_is_refused():
    tuned, anchor = {"w": jnp.ones((2, 2))}, {"w": jnp.zeros((2, 2))}
    with pytest.raises(TypeError, match="return a differentiable loss"):
        tpgm_jax.fit_radii(lambda p, _: jnp.sum(p["w"] > 0.5), tuned, anchor, [None])


def test_fit_radii_pairs_tensors_with_anchors_by_name():
    tuned = {"a": jnp.ones((2, 2)), "b": jnp.full((2, 2), 10.0)}
    anchor = OrderedDict(b=jnp.full((2, 2), 10.0), a=jnp.zeros((2, 2)))  # leaves: b, then a
    fitted = tpgm_jax.fit_radii(lambda p, _: jnp.sum(p["a"]), tuned, anchor, range(2))
    np.testing.assert_array_equal(fitted.params["b"], 10.0)
    assert np.all(fitted.params["a"] < 0.6)  # from half of the way, back towards 0


@pytest.mark.parametrize("head", [{}, {"head": jnp.zeros((2, 7))}])
def test_fit_radii_takes_an_anchor_with_another_head_or_none(head):
    anchor, tuned = {"w": jnp.zeros((2, 2))}, {"w": jnp.ones((2, 2)), "head": jnp.ones(2)}
    fits = [
        tpgm_jax.fit_radii(
            lambda params, _: jnp.sum(params["w"] ** 2), tuned, x, range(5), exclude="head"
        )
        for x in (anchor | head, anchor | {"head": jnp.zeros(2)})
    ]
    jax.tree.map(np.testing.assert_array_equal, fits[0].params, fits[1].params)


def test_fit_radii_does_not_change_excluded_leaves_or_its_arguments():
    anchor = {"w": jnp.zeros((2, 2)), "head": jnp.zeros(2)}
    tuned = {"w": jnp.ones((2, 2)), "head": jnp.ones(2)}
    fitted = tpgm_jax.fit_radii(
        lambda params, _: jnp.sum(params["w"] ** 2) + jnp.sum(params["head"] ** 2),
        tuned,
        anchor,
        range(5),
        exclude="head",
    )
    np.testing.assert_array_equal(fitted.params["head"], tuned["head"])
    assert list(fitted.radii) == ["w"]
    assert fitted.radii["w"] < 1.0
    np.testing.assert_array_equal(tuned["w"], 1.0)
