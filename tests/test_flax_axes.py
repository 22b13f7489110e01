"""Rows, layers and groups of real Flax modules, linen and NNX.

The parameters move by whole numbers, whose sums are exact in float32: a norm is either
right or wrong.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import mostly_slow
from flax import linen as nn
from flax_modules import AXES, LINEN, NNX, ROWS, linen_shapes, nnx_shapes

import tpgm_jax
from tpgm_jax._core.axes import make_layout

RADIUS = 0.5  # below every norm, so that every row shrinks by a ratio that shows its norm
# The root of the l2 norm, the ratio and the product each round by half an ulp, `eps / 2`.
TOLERANCE = 1.5 * float(jnp.finfo(jnp.float32).eps)

DECLARED = {f"(linen|nnx)/{name}/.*": axes for name, axes in AXES.items()}
CASES = [("linen", name) for name in LINEN] + [("nnx", name) for name in NNX]
each_module = pytest.mark.parametrize(("library", "module"), CASES)
# `l2` has one norm for each group; `mars` has one for each row, and so tests rows and groups.
each_norm = pytest.mark.parametrize("norm", mostly_slow({"mars": "mars", "l2": "l2"}, "mars"))


def by_name(tree):
    """Leaves by path; an NNX variable's path ends in the name of its array, `value`."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    return {name.removesuffix("/value"): x for name, (_, x) in zip(names, leaves, strict=True)}


@functools.cache
def moves():
    """One tree of all the modules: how far each parameter moves from an anchor of zeros."""
    rng = np.random.default_rng(0)

    def whole_numbers(leaf):
        size = rng.integers(1, 10, leaf.shape) * rng.choice([-1, 1], leaf.shape)
        return jnp.asarray(size, jnp.float32)

    shapes = {
        "linen": {name: linen_shapes(name) for name in LINEN},
        "nnx": {name: nnx_shapes(name) for name in NNX},
    }
    return jax.tree.map(whole_numbers, shapes)


@functools.cache
def measure(norm):
    """The moves after `project_to_anchor`, and the first radii of `tpgm`."""
    projection = tpgm_jax.project_to_anchor(RADIUS, norm=norm, axes=DECLARED)
    learned = tpgm_jax.tpgm(optax.identity(), norm=norm, axes=DECLARED)

    @jax.jit
    def steps(u):
        params = jax.tree.map(jnp.zeros_like, u)
        projected, _ = projection.update(u, projection.init(params), params)
        # With a constant loss the radii stay at half the smallest norm.
        _, state = learned.update(u, learned.init(params), params, held_out_loss=lambda _: 0.0)
        return projected, state

    projected, state = steps(moves())
    return by_name(projected), tpgm_jax.radii(state, moves())


def leaves_of(library, module):
    """For each leaf of a module: its name in the whole tree, its numbers, its row function."""
    prefix = f"{library}/{module}/"
    leaves = {name: x for name, x in by_name(moves()).items() if name.startswith(prefix)}
    assert {name.removeprefix(prefix) for name in leaves} == set(ROWS[module])
    return [
        (name, np.asarray(x), ROWS[module][name.removeprefix(prefix)]) for name, x in leaves.items()
    ]


def norms_by_hand(group, norm):
    """One norm for each row."""
    if norm == "l2":
        return [np.sqrt(sum(float(np.sum(row**2)) for row in group))] * len(group)
    return [float(np.sum(np.abs(row))) for row in group]


@each_norm
@each_module
def test_each_row_shrinks_to_the_radius_by_its_own_norm(library, module, norm):
    projected, _ = measure(norm)
    for name, d, rows in leaves_of(library, module):
        for before, after in zip(rows(d), rows(np.asarray(projected[name])), strict=True):
            sizes = norms_by_hand(before, norm)
            for row, shrunk, n in zip(before, after, sizes, strict=True):
                np.testing.assert_allclose(shrunk, RADIUS / n * row, rtol=TOLERANCE, err_msg=name)


@each_norm
@each_module
def test_each_group_has_a_radius_that_starts_at_half_its_smallest_norm(library, module, norm):
    _, radii = measure(norm)
    for name, d, rows in leaves_of(library, module):
        expected = [min(norms_by_hand(group, norm)) / 2 for group in rows(d)]
        stacked = module in AXES and AXES[module].layers != ()
        assert isinstance(radii[name], list if stacked else float)
        received = np.atleast_1d(radii[name])
        np.testing.assert_allclose(received, expected, rtol=TOLERANCE, err_msg=name)


@each_module
def test_the_layout_counts_groups_and_rows(library, module):
    tensors = {tensor.name: tensor for tensor in make_layout(moves(), axes=DECLARED).tensors}
    for name, d, rows in leaves_of(library, module):
        groups, tensor = rows(d), tensors[name]
        assert tensor.groups == len(groups)
        rows_in_a_group = int(np.prod([d.shape[axis] for axis in tensor.rows]))
        assert [len(group) for group in groups] == [rows_in_a_group] * len(groups)


@pytest.mark.parametrize(
    ("module", "units"),
    [
        ("dense", (-1,)),
        ("many outputs", (-2, -1)),
        ("many inputs", (-1,)),
        ("batched", (0, -1)),
        ("conv", (-1,)),
        ("conv in 1d", (-1,)),
        ("conv grouped", (-1,)),
        ("conv depthwise", (-1,)),
        ("conv depthwise without bias", (-1,)),
        ("transpose", (-1,)),
        ("transpose of a conv", (-1,)),
        ("vmapped", (0, -1)),
        ("vmapped conv", (0, -1)),
    ],
)
def test_each_row_of_the_table_feeds_one_output_unit(module, units):
    """Checks the table against the modules themselves, by differentiating them."""
    linen, shape = LINEN[module]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), linen_shapes(module))

    @jax.jacobian
    def outputs(kernel):
        y = jnp.asarray(linen.apply({"params": zeros | {"kernel": kernel}}, jnp.ones(shape)))
        return y.sum([i for i in range(y.ndim) if i not in [unit % y.ndim for unit in units]])

    slopes = np.asarray(jax.jit(outputs)(zeros["kernel"]))
    size = zeros["kernel"].size
    feeding = {tuple(np.flatnonzero(x)) for x in slopes.reshape(-1, size)}
    groups = ROWS[module]["kernel"](np.arange(size).reshape(zeros["kernel"].shape))
    assert {tuple(sorted(row.ravel())) for group in groups for row in group} == feeding


@pytest.mark.parametrize("module", ["many outputs", "transpose of a conv", "attention"])
@pytest.mark.parametrize("shapes", [linen_shapes, nnx_shapes])
def test_a_module_has_the_same_rows_on_its_own_and_with_its_biases_excluded(module, shapes):
    def rows(tree, **options):
        return {x.name.removeprefix("block/"): x.rows for x in make_layout(tree, **options).tensors}

    params = shapes(module)
    nested = rows({"block": params})
    assert rows(params) == nested
    kernels = rows(params, exclude=".*bias")
    assert kernels == {name: nested[name] for name in kernels}
    assert not any(name.endswith("bias") for name in kernels)


def test_a_convolution_called_query_has_the_rows_of_a_convolution():
    # As in convolutional self-attention. Attention's own kernels have one axis less.
    conv = nn.Conv(8, (1, 1), use_bias=False)
    params = jax.eval_shape(conv.init, jax.random.key(0), jnp.zeros((1, 5, 5, 4)))["params"]
    (tensor,) = make_layout({"query": params}).tensors
    assert tensor.shape == (1, 1, 4, 8)
    assert tensor.rows == (3,)
