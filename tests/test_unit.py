"""Radii in units of the anchor: the size of a unit, and independence of the scale of weights."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_step, mostly_slow, random_tree

import tpgm_jax
from tpgm_jax import Axes, fit_radii, ftp, project_to_anchor, tpgm
from tpgm_jax._core import radii as _radii
from tpgm_jax._core.axes import make_layout
from tpgm_jax._core.spec import Spec
from tpgm_jax._core.unit import unit_sizes

SHAPES = {"dense/kernel": (30, 4), "dense/bias": (4,), "conv/kernel": (3, 3, 2, 5), "scale": (8,)}
each_norm = pytest.mark.parametrize("norm", ["mars", "l2"])


def units_of(params, norm, axes=None):
    layout = make_layout(params, axes=axes)
    spec = Spec(norm, "anchor", "full", "init", layout)
    units: Any = unit_sizes(layout.constrained(params), spec, jnp.dtype("float32"))
    ends = np.cumsum([tensor.groups for tensor in layout.tensors])
    splits = np.split(np.asarray(units), ends[:-1])
    return {tensor.name: x for tensor, x in zip(layout.tensors, splits, strict=True)}


def test_a_unit_is_the_mean_row_norm_of_a_kernel_and_the_norm_of_typical_weights_for_a_bias():
    kernel = jnp.array([[1.0, -2.0], [3.0, 0.0], [0.0, 4.0]])
    found = units_of({"kernel": kernel, "bias": jnp.zeros(2), "scale": jnp.ones(5)}, "mars")
    # Rows of 4 and 6; six weights of 10 in all.
    np.testing.assert_allclose(found["kernel"], 5.0, rtol=1e-6)
    np.testing.assert_allclose(found["bias"], 2 * 10 / 6, rtol=1e-6)
    np.testing.assert_allclose(found["scale"], 5 * 10 / 6, rtol=1e-6)


def test_an_l2_unit_is_the_norm_of_the_tensor():
    kernel = jnp.array([[1.0, -2.0], [2.0, 4.0]])
    found = units_of({"kernel": kernel, "bias": jnp.zeros(2)}, "l2")
    np.testing.assert_allclose(found["kernel"], 5.0, rtol=1e-6)
    np.testing.assert_allclose(found["bias"], np.sqrt(2 * 25 / 4), rtol=1e-6)


@pytest.mark.parametrize(("norm", "power"), [("mars", 1), ("l2", 2)])
def test_a_typical_weight_is_the_mean_over_all_numbers_of_all_kernels(norm, power):
    def norm_of_typical(n, mean):
        return (n * mean) ** (1 / power)

    kernels = {"a/kernel": jnp.ones((2, 2)), "b/kernel": jnp.full((4, 3), 4.0)}
    found = units_of({**kernels, "bias": jnp.full(2, 9.0)}, norm)
    mean = (4 * 1 + 12 * 4**power) / 16
    np.testing.assert_allclose(found["bias"], norm_of_typical(2, mean), rtol=1e-6)
    # Without kernels all numbers count.
    found = units_of({"bias": jnp.ones(2), "scale": jnp.full(3, 3.0)}, norm)
    mean = (2 * 1 + 3 * 3**power) / 5
    np.testing.assert_allclose(found["bias"], norm_of_typical(2, mean), rtol=1e-6)
    np.testing.assert_allclose(found["scale"], norm_of_typical(3, mean), rtol=1e-6)
    # If all numbers are 0, a typical weight is 1.
    found = units_of({"bias": jnp.zeros(3)}, norm)
    np.testing.assert_allclose(found["bias"], norm_of_typical(3, 1), rtol=1e-6)


@each_norm
def test_layers_have_separate_units_and_share_the_typical_weight(norm):
    one, two = (
        random_tree({"kernel": (3, 4), "bias": (4,)}, 0),
        random_tree({"kernel": (3, 4), "bias": (4,)}, 1, scale=3.0),
    )
    apart = units_of({"one": one, "two": two}, norm)
    stacked = {"layers": jax.tree.map(lambda *x: jnp.stack(x), one, two)}
    found = units_of(stacked, norm, {"layers/.*": Axes(layers=0)})
    for name in ("kernel", "bias"):
        expected = [*apart[f"one/{name}"], *apart[f"two/{name}"]]
        np.testing.assert_allclose(found[f"layers/{name}"], expected, rtol=1e-6)


@each_norm
def test_a_unit_is_positive_even_where_the_anchor_is_zero(norm):
    # The first kernel is zero, like the last of a residual branch: it gets typical weights.
    params = {"a/kernel": jnp.zeros((9, 2)), "b/kernel": jnp.full((9, 2), 2.0)}
    found = units_of(params, norm)
    expected = 9.0 if norm == "mars" else np.sqrt(18 * 2.0)
    np.testing.assert_allclose(found["a/kernel"], expected, rtol=1e-6)
    for params in ({"kernel": jnp.zeros((3, 2))}, {"bias": jnp.zeros(3)}, {"bias": jnp.ones(3)}):
        for unit in units_of(params, norm).values():
            assert np.all(unit > 0)
            assert np.all(np.isfinite(unit))


@each_norm
def test_a_unit_is_finite_even_where_squares_overflow(norm):
    for unit in units_of({"kernel": jnp.full((3, 2), 1e25), "bias": jnp.ones(2)}, norm).values():
        assert np.all(np.isfinite(unit))


def test_the_radius_optimizer_gets_radii_in_the_same_unit_in_init_and_update():
    # It stores the radii that it starts from, and moves the radii back there.
    def back(updates: Any, state: Any, params: Any = None) -> Any:
        del updates
        return state - params, state

    memory = optax.GradientTransformation(lambda params: params, back)
    params = {"kernel": jnp.full((3, 2), 4.0)}  # rows of 12
    tx = ftp(optax.sgd(0.1), radius_optimizer=memory, unit="anchor", initial_radius=0.5)
    step, state = make_step(tx), tx.init(params)
    moved = params
    for _ in range(3):
        moved, state = step(moved, state, {"kernel": jnp.full((3, 2), -100.0)})
    assert tpgm_jax.radii(state, params)["kernel"] == pytest.approx(6.0, rel=1e-6)


@each_norm
@pytest.mark.parametrize(
    "method", mostly_slow({x: x for x in ("ftp", "ftp compact", "tpgm")}, "ftp", "tpgm")
)
def test_radii_are_the_same_for_a_model_that_is_a_hundred_times_larger(norm, method):
    def learn(scale):
        anchor = random_tree(SHAPES, 0, scale=scale, dtype=jnp.float32)
        base = optax.sgd(scale * 0.1)
        if method == "tpgm":
            tx = tpgm(base, norm=norm, unit="anchor")
        else:
            memory = "compact" if method == "ftp compact" else "full"
            tx = ftp(base, norm=norm, unit="anchor", memory=memory)
        grads = random_tree(SHAPES, 1)  # in one direction, so that radii grow

        def held_out_loss(params):
            return sum(jnp.vdot(params[name], grads[name]) for name in SHAPES)

        step, params, state = make_step(tx, held_out_loss=held_out_loss), anchor, tx.init(anchor)
        for _ in range(8):
            params, state = step(params, state, grads)
        return {name: r / scale for name, r in tpgm_jax.radii(state, params).items()}

    small, large = learn(1.0), learn(100.0)
    assert all(r > 1e-3 for r in small.values())
    # Only the 1e-8 that is added to norms and in Adam does not scale with the weights. Beside
    # numbers of 0.01 and more it is 1e-6, to which eight steps add rounding. Compact memory stores
    # eight bits of the direction of a row at its floor, as after the first step.
    tolerance = 2**-8 if method == "ftp compact" else 1e-5
    for name, radius in small.items():
        assert large[name] == pytest.approx(radius, rel=tolerance), name


def test_a_radius_optimizer_that_reads_radii_gets_them_in_units_of_the_anchor():
    # Each step goes half of the way back to the radii that `init` got: by hand, with `U` = 8,
    # 8 * (r / 8 + 0.5 * (r0 / 8 - r / 8)).
    def update(updates: Any, state: Any, params: Any = None) -> Any:
        del updates
        return 0.5 * (state - params), state

    tx = optax.GradientTransformation(lambda params: params, update)
    unit = jnp.array([8.0])
    start = tx.init(jnp.array([6.0]) / unit)
    step = _radii.descend(optax.with_extra_args_support(tx), unit, start, jnp.array([4.0]), unit)
    assert step[0] == 5.0
    # A row moves by 2, so the first radius is 1; it stays there, because `fit_radii` starts at it.
    fitted = fit_radii(
        lambda params, _: jnp.sum(params["w"]),
        {"w": jnp.full((1, 4), 3.0)},
        {"w": jnp.full((1, 4), 2.0)},
        [None] * 3,
        radius_optimizer=tx,
        unit="anchor",
    )
    assert fitted.radii == {"w": 1.0}


def test_infinities_in_an_anchor_count_as_zero():
    # As in attention masks. The rows are (1, 3) and (-inf, 2), so their mean norm is (4 + 2) / 2.
    params = {"kernel": jnp.array([[1.0, -jnp.inf], [3.0, 2.0]])}
    state: Any = ftp(optax.sgd(0.1), unit="anchor").init(params)
    np.testing.assert_array_equal(state.unit_size, [3.0])


def test_an_empty_tree_has_no_units():
    tx: Any = tpgm_jax.ftp(optax.sgd(0.1), unit="anchor")
    state = tx.init({})
    assert state.unit_size.shape == (0,)
    assert tx.update({}, state, {})[0] == {}


def test_an_unknown_unit_and_an_anchor_unit_of_zeros_are_refused():
    makers = (
        lambda **options: ftp(optax.sgd(0.1), **options),
        lambda **options: tpgm(optax.sgd(0.1), **options),
        lambda **options: project_to_anchor(0.1, **options),
    )
    for make in makers:
        with pytest.raises(ValueError, match="`unit` must be one of 'norm', 'anchor'"):
            make(unit="mars")
        with pytest.raises(ValueError, match="leave `unit` out"):
            make(unit="anchor", anchor="zero")
    params, untyped = {"kernel": jnp.ones((2, 2))}, cast("Any", fit_radii)
    with pytest.raises(ValueError, match="`unit` must be one of"):
        untyped(lambda params, _: 0.0, params, params, [0], unit="mars")
