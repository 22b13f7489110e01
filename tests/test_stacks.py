"""Equal tensors are computed together, and each gets its own numbers back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_step, random_tree

from tpgm_jax import Axes, ftp, tpgm
from tpgm_jax._core.axes import make_layout
from tpgm_jax._core.stacks import gather, make_kinds, spread, sum_leaves, unstack

SHAPES: dict[str, tuple[int, ...]] = {
    "block_0/bias": (4,),
    "block_0/kernel": (3, 4),
    "block_0/stack": (2, 3, 4),
    "block_1/bias": (4,),
    "block_1/kernel": (3, 4),
    "block_1/stack": (2, 3, 4),
    "other/gain": (),
    "other/kernel": (3, 4),
}
AXES = {".*stack": Axes(layers=0)}


def kinds_of(params, axes=None):
    layout = make_layout(params, axes=axes)
    leaves = jax.tree.leaves(params)
    return layout, leaves, make_kinds(layout, leaves)


def test_tensors_are_of_one_kind_if_their_names_differ_in_numbers_only():
    layout, _, kinds = kinds_of(random_tree(SHAPES, 0), AXES)
    names = [[layout.tensors[i].name for i in kind.members] for kind in kinds]
    assert sorted(names) == [
        ["block_0/bias", "block_1/bias"],
        ["block_0/kernel", "block_1/kernel"],
        ["block_0/stack", "block_1/stack"],
        ["other/gain"],
        ["other/kernel"],  # of the same shape, but perhaps sharded differently
    ]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("shape", "dtype", "axes"),
    [
        ((2, 4, 4), "float32", {}),
        ((2, 3, 4), "float32", {"block_1": Axes(rows=1)}),
        # The last axis has the rows, with layers too.
        ((2, 3, 4), "float32", {"block_1": Axes(layers=0)}),
        ((2, 3, 4), "float64", {}),
    ],
    ids=["shape", "rows", "layers", "precision"],
)
def test_tensors_are_of_two_kinds_if_they_differ_in_more_than_numbers(shape, dtype, axes):
    params = {"block_0": jnp.zeros((2, 3, 4), "float32"), "block_1": jnp.zeros(shape, dtype)}
    assert [kind.members for kind in kinds_of(params, axes)[2]] == [[0], [1]]


def test_half_and_single_precision_are_of_one_kind():
    # Their norms are both float32.
    params = {"block_0": jnp.zeros((3, 4), "bfloat16"), "block_1": jnp.zeros((3, 4), "float32")}
    assert [kind.members for kind in kinds_of(params)[2]] == [[0, 1]]


def test_a_kind_has_at_most_a_hundred_tensors():
    params = {f"block_{i}": jnp.zeros(3) for i in range(250)}
    *_, kinds = kinds_of(params)
    assert [len(kind.members) for kind in kinds] == [100, 100, 50]
    assert sorted(i for kind in kinds for i in kind.members) == list(range(250))


def test_unstack_and_gather_are_the_inverses_of_stack_and_spread():
    layout, leaves, kinds = kinds_of(random_tree(SHAPES, 0), AXES)
    stacked = [jnp.stack([leaves[i] for i in kind.members]) for kind in kinds]
    for x, y in zip(unstack(stacked, kinds), leaves, strict=True):
        np.testing.assert_array_equal(x, y)
    radii = jnp.arange(1.0, 1 + layout.groups)
    stacks = spread(radii, kinds, leaves)
    np.testing.assert_array_equal(gather(stacks, kinds, radii.dtype), radii)
    # Each leaf gets its own radii: the first group of each is known by its place.
    start = 0
    for tensor, radius in zip(layout.tensors, unstack(stacks, kinds), strict=True):
        expected = np.arange(start, start + tensor.groups).reshape(tensor.radius_shape) + 1.0
        np.testing.assert_array_equal(radius, expected)
        start += tensor.groups


@pytest.mark.parametrize("norm", ["mars", "l2"])
def test_sums_of_leaves_equal_numpy(norm):
    layout, leaves, kinds = kinds_of(random_tree(SHAPES, 0), AXES)
    stacks = sum_leaves(lambda x, y: x * y, [leaves, leaves], kinds, norm)
    for tensor, x, found in zip(layout.tensors, leaves, unstack(stacks, kinds), strict=True):
        axes = tensor.inputs if norm == "mars" else tensor.inputs + tensor.rows
        expected = np.sum(np.float64(x) ** 2, axis=axes, keepdims=True)
        # At most 12 float32 roundings.
        np.testing.assert_allclose(found, expected, rtol=12 * 6e-8)


@pytest.mark.parametrize("make", [ftp, tpgm])
def test_equal_tensors_train_like_tensors_of_their_own_names(make):
    # "a" and "b" are kinds of their own, and the two numbered tensors are one kind.
    anchor, slopes = (random_tree({"x": (3, 4), "y": (3, 4)}, seed) for seed in (0, 1))
    results = {}
    for names in (("a", "b"), ("block_0", "block_1")):
        params = dict(zip(names, anchor.values(), strict=True))
        grads = dict(zip(names, slopes.values(), strict=True))
        tx = make(optax.adam(0.1))
        step = make_step(tx, held_out_loss=lambda p: sum(jnp.sum(x**2) for x in p.values()))
        state = tx.init(params)
        for _ in range(5):
            params, state = step(params, state, grads)
        results[names] = [*params.values(), state.radii]
    for x, y in zip(*results.values(), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)
