"""The methods against their NumPy float64 loops, on random trees of rank 0 to 5."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from conftest import make_step, mostly_slow, random_tree

import tpgm_jax
from tpgm_jax import Axes

# Name: shape, row axes, layer axes. The first six follow the defaults, the others are declared.
TENSORS = {
    "gain": ((), (), ()),
    "bias": ((4,), (), ()),
    "dense": ((3, 4), (1,), ()),
    "conv1d": ((2, 3, 4), (2,), ()),
    "conv2d": ((2, 2, 3, 4), (3,), ()),
    "conv3d": ((2, 1, 2, 3, 4), (4,), ()),
    "torch_dense": ((4, 3), (0,), ()),
    "heads": ((5, 2, 3), (1, 2), ()),
    "one_row": ((3, 4), (), ()),
    "scanned": ((3, 2, 4), (2,), (0,)),
    "scanned_bias": ((3, 4), (), (0,)),
    "scanned_inside": ((2, 3, 4), (2,), (1,)),
    "scanned_twice": ((2, 3, 2, 4), (3,), (0, 1)),
}
AXES = {
    "torch_dense": Axes(rows=0),
    "heads": Axes(rows=(-2, -1)),
    "one_row": Axes(rows=()),
    "scanned|scanned_bias": Axes(layers=0),
    "scanned_inside": Axes(layers=1),
    "scanned_twice": Axes(layers=(0, 1)),
}
SHAPES = {name: shape for name, (shape, _, _) in TENSORS.items()}
STEPS = 16

# A few hundred float64 roundings, 1e-16 each, of numbers up to 10.
TOLERANCE = 1e-12

each_unit = pytest.mark.parametrize("unit", ["norm", "anchor"])
each_norm = pytest.mark.parametrize("norm", ["mars", "l2"])
pytestmark = pytest.mark.usefixtures("x64")


def units(name, norm):
    shape, rows, layers = TENSORS[name]
    return reference.norm_units(shape, rows, layers, norm)


def scales(anchor, norm, unit):
    """The units of the radii for the loops: by name, one number for each group, or `None`."""
    if unit == "norm":
        return dict.fromkeys(SHAPES)
    layouts = {name: (rows, layers) for name, (_, rows, layers) in TENSORS.items()}
    return reference.sizes_of_anchor(numpy_tree(anchor), layouts, norm)


def numpy_tree(tree):
    return {name: np.asarray(x) for name, x in tree.items()}


def gradients():
    """Gradients that first pull one way, and then back, so that radii grow and shrink."""
    pull = random_tree(SHAPES, seed=1)
    noise = [random_tree(SHAPES, seed=10 + t, scale=0.5) for t in range(STEPS)]
    signs = [1 if t < STEPS // 2 else -1 for t in range(STEPS)]
    return [
        {name: sign * pull[name] + x[name] for name in SHAPES}
        for sign, x in zip(signs, noise, strict=True)
    ]


def assert_close(received, expected):
    for name in expected:
        np.testing.assert_allclose(
            received[name], expected[name], rtol=0, atol=TOLERANCE, err_msg=name
        )


def radii_of(state, params):
    """Name to a list of radii, whether or not the tensor stacks layers."""
    return {name: np.atleast_1d(r) for name, r in tpgm_jax.radii(state, params).items()}


@each_norm
@pytest.mark.parametrize(
    ("k", "unit"),
    mostly_slow(
        {
            f"{k}-{unit}": (k, unit)
            for k, unit in ((1.0, "norm"), (0.3, "norm"), (0.0, "norm"), (1.0, "anchor"))
        },
        "0.3-norm",
        "1.0-anchor",
    ),
)
def test_ftp_equals_its_loops(norm, k, unit):
    anchor = random_tree(SHAPES, seed=0)
    tx = tpgm_jax.ftp(optax.sgd(0.05), k=k, norm=norm, axes=AXES, unit=unit)
    step, params, state = make_step(tx), anchor, tx.init(anchor)
    loops = {
        name: reference.FTP(anchor[name], units(name, norm), norm, k=k, scales=scale)
        for name, scale in scales(anchor, norm, unit).items()
    }
    expected = numpy_tree(anchor)
    for grads in gradients():
        params, state = step(params, state, grads)
        for name, g in numpy_tree(grads).items():
            expected[name] = loops[name].step(expected[name], g, -0.05 * g)
        assert_close(params, expected)
        assert_close(radii_of(state, params), {name: loops[name].radii for name in SHAPES})


@each_norm
@pytest.mark.parametrize(
    ("steps", "every", "unit"),
    mostly_slow(
        {"1-1-norm": (1, 1, "norm"), "3-4-norm": (3, 4, "norm"), "3-4-anchor": (3, 4, "anchor")},
        "3-4-anchor",
    ),
)
def test_tpgm_equals_its_loops(norm, steps, every, unit):
    anchor = random_tree(SHAPES, seed=0)
    targets = [random_tree(SHAPES, seed=100 + i, scale=2.0) for i in range(steps)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *targets)
    batch = targets[0] if steps == 1 else stacked

    def held_out_loss(params, target):
        return sum(0.5 * jnp.sum((params[name] - target[name]) ** 2) for name in SHAPES)

    tx = tpgm_jax.tpgm(optax.sgd(0.05), steps=steps, every=every, norm=norm, axes=AXES, unit=unit)
    step = make_step(tx, held_out_loss=held_out_loss, held_out_batch=batch)
    params, state = anchor, tx.init(anchor)
    loops = {
        name: reference.TPGM(anchor[name], units(name, norm), norm, steps, every, scale)
        for name, scale in scales(anchor, norm, unit).items()
    }
    expected = numpy_tree(anchor)
    for grads in gradients():
        params, state = step(params, state, grads)
        for name, g in numpy_tree(grads).items():

            def held_out_gradient(projected, i, name=name):
                return projected - np.asarray(targets[i][name])

            expected[name] = loops[name].step(expected[name], -0.05 * g, held_out_gradient)
        assert_close(params, expected)
        assert_close(radii_of(state, params), {name: loops[name].radii for name in SHAPES})


@each_unit
@each_norm
def test_fit_radii_equals_its_loops(norm, unit):
    anchor, params = random_tree(SHAPES, seed=0), random_tree(SHAPES, seed=1)
    targets = [random_tree(SHAPES, seed=100 + i) for i in range(STEPS)]

    def held_out_loss(params, target):
        return sum(0.5 * jnp.sum((params[name] - target[name]) ** 2) for name in SHAPES)

    fitted = tpgm_jax.fit_radii(
        held_out_loss, params, anchor, targets, norm=norm, axes=AXES, unit=unit
    )
    for name, scale in scales(anchor, norm, unit).items():
        loop = reference.TPGM(anchor[name], units(name, norm), norm, steps=STEPS, scales=scale)
        expected = loop.step(
            np.asarray(params[name]),
            0.0,
            lambda projected, i, name=name: projected - np.asarray(targets[i][name]),
        )
        np.testing.assert_allclose(fitted.params[name], expected, rtol=0, atol=TOLERANCE)
        radii = np.atleast_1d(fitted.radii[name])
        np.testing.assert_allclose(radii, loop.radii, rtol=0, atol=TOLERANCE)


@each_unit
@each_norm
def test_a_fixed_radius_equals_its_loops(norm, unit):
    anchor, update = random_tree(SHAPES, seed=0), random_tree(SHAPES, seed=1)
    tx = tpgm_jax.project_to_anchor(1.5, norm=norm, axes=AXES, unit=unit)
    params, _ = make_step(tx)(anchor, tx.init(anchor), update)
    for name, scale in scales(anchor, norm, unit).items():
        radii = [1.5 * u for u in scale or [1.0 for _ in units(name, norm)]]
        expected = reference.project(np.asarray(update[name]), units(name, norm), radii, norm)
        moved = np.asarray(params[name]) - np.asarray(anchor[name])
        np.testing.assert_allclose(moved, expected, rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_spd_equals_its_loops(strength):
    anchor = random_tree(SHAPES, seed=0)
    tx = tpgm_jax.spd(optax.sgd(0.05, momentum=0.9), strength=strength, axes=AXES)
    step, params, state = make_step(tx), anchor, tx.init(anchor)
    groups = {name: [row for (row,) in units(name, "l2")] for name in SHAPES}
    loops = {name: reference.SPD(anchor[name], groups[name], strength) for name in SHAPES}
    expected = numpy_tree(anchor)
    momentum: dict[str, Any] = dict.fromkeys(SHAPES, 0.0)
    for grads in gradients():
        params, state = step(params, state, grads)
        for name, g in numpy_tree(grads).items():
            momentum[name] = 0.9 * momentum[name] + g
            expected[name] = loops[name].step(expected[name], g, -0.05 * momentum[name])
        assert_close(params, expected)
    # When the gradients reverse, momentum still moves every group away for some steps, not for all.
    for name, loop in loops.items():
        assert len(groups[name]) <= loop.acted < STEPS * len(groups[name]), name


def test_the_decay_equals_its_loops():
    anchor = random_tree(SHAPES, 0)
    importance = jax.tree.map(jnp.abs, random_tree(SHAPES, 2))
    tx = optax.chain(
        tpgm_jax.add_anchor_decay(0.7, importance=importance), optax.sgd(0.05, momentum=0.9)
    )
    step, params, state = make_step(tx), anchor, tx.init(anchor)
    w0, factors, expected = numpy_tree(anchor), numpy_tree(importance), numpy_tree(anchor)
    momentum: dict[str, Any] = dict.fromkeys(SHAPES, 0.0)
    for grads in gradients():
        params, state = step(params, state, grads)
        for name, g in numpy_tree(grads).items():
            pulled = reference.add_decay(expected[name], w0[name], g, 0.7, factors[name])
            momentum[name] = 0.9 * momentum[name] + pulled
            expected[name] = expected[name] - 0.05 * momentum[name]
        assert_close(params, expected)


def test_interpolation_equals_its_loops():
    anchor, params = random_tree(SHAPES, seed=0), random_tree(SHAPES, seed=1)
    mixed = jax.jit(tpgm_jax.interpolate)(params, anchor, 0.3)
    pairs = {name: (np.asarray(params[name]), np.asarray(anchor[name])) for name in SHAPES}
    assert_close(mixed, {name: reference.interpolate(*x, 0.3) for name, x in pairs.items()})


def test_float32_follows_the_float64_loops():
    anchor = random_tree(SHAPES, seed=0, dtype=jnp.float32)
    tx = tpgm_jax.ftp(optax.sgd(0.05), axes=AXES)
    step, params, state = make_step(tx), anchor, tx.init(anchor)
    loops = {name: reference.FTP(anchor[name], units(name, "mars")) for name in SHAPES}
    expected = numpy_tree(anchor)
    for grads in gradients():
        rounded = {name: g.astype(jnp.float32) for name, g in grads.items()}
        params, state = step(params, state, rounded)
        for name, g in numpy_tree(rounded).items():
            expected[name] = loops[name].step(expected[name], g, -0.05 * g)
    for name in SHAPES:
        assert params[name].dtype == jnp.float32
        # 16 steps each round a parameter below 4 by half a spacing, 1.2e-7 at the most, and
        # the radii that steer it likewise, through sums of up to 24 numbers.
        np.testing.assert_allclose(params[name], expected[name], rtol=0, atol=16 * 3 * 2.4e-7)
