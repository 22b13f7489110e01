"""Three hundred random trees: `init`, `update` and `radii` against the reference loops."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from conftest import mostly_slow

import tpgm_jax

TREES, BATCH = 300, 20
# Rows are on the last axis. Empty arrays are not constrained.
SHAPES = [(), (1,), (3,), (2, 3), (1, 2, 2), (0,), (2, 0)]
METHODS = {
    "ftp": lambda: tpgm_jax.ftp(optax.sgd(0.125)),
    "ftp l2": lambda: tpgm_jax.ftp(optax.sgd(0.125), norm="l2"),
    "tpgm": lambda: tpgm_jax.tpgm(optax.sgd(0.125)),
    "project_to_anchor": lambda: optax.chain(optax.sgd(0.125), tpgm_jax.project_to_anchor(0.2)),
}
pytestmark = pytest.mark.usefixtures("x64")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    """A user-defined container."""

    first: Any
    rest: Any


def random_tree(rng, depth=0) -> Any:
    """A tree of dicts, lists, tuples, dataclasses, `None`, empty containers, and arrays."""
    kinds = ["array", "none", "dict", "list", "tuple", "layer"]
    likely = [0.2, 0.1, 0.3, 0.15, 0.1, 0.15] if depth < 3 else [0.8, 0.2, 0, 0, 0, 0]
    kind = rng.choice(kinds, p=likely)
    children = [random_tree(rng, depth + 1) for _ in range(rng.integers(0, 4))] if depth < 3 else []
    match kind:
        case "array":
            return jnp.asarray(rng.normal(size=SHAPES[rng.integers(len(SHAPES))]))
        case "none":
            return None
        case "dict":
            return {f"key_{i}": child for i, child in enumerate(children)}
        case "list":
            return children
        case "tuple":
            return tuple(children)
        case _:
            return Layer(random_tree(rng, 3), children)


def like(tree, rng):
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), tree)


def expected_leaf(method, anchor, grads):
    """One leaf after the reference loops, and its radius."""
    rows = (anchor.ndim - 1,) if anchor.ndim > 1 else ()
    norm = "l2" if method == "ftp l2" else "mars"
    units, params = reference.norm_units(anchor.shape, rows, (), norm), np.array(anchor)
    if method == "project_to_anchor":
        for g in grads:
            moved = reference.project(params - 0.125 * g - anchor, units, [0.2], norm)
            params = anchor + moved
        return params, None
    loop = (reference.TPGM if method == "tpgm" else reference.FTP)(anchor, units, norm)
    for g in grads:
        if isinstance(loop, reference.TPGM):
            params = loop.step(params, -0.125 * g, lambda projected, _: projected - 1.0)
        else:
            params = loop.step(params, g, -0.125 * g)
    return params, loop.radii[0]


def held_out_loss(params):
    return sum(0.5 * jnp.sum((x - 1.0) ** 2) for x in jax.tree.leaves(params))


@pytest.mark.parametrize("batch", mostly_slow({str(i): i for i in range(TREES // BATCH)}, "0"))
def test_random_trees_equal_the_reference_loops(batch):
    for seed in range(batch * BATCH, (batch + 1) * BATCH):
        rng = np.random.default_rng(seed)
        method = list(METHODS)[seed % len(METHODS)]
        anchor, tx = {"root": random_tree(rng), "more": random_tree(rng)}, METHODS[method]()
        grads = [like(anchor, rng) for _ in range(3)]
        params, state = anchor, tx.init(anchor)
        types = jax.tree.map(jax.typeof, state)
        for g in grads:
            updates, state = tx.update(g, state, params, held_out_loss=held_out_loss)
            params = optax.apply_updates(params, updates)
        assert jax.tree.structure(params) == jax.tree.structure(anchor), seed
        assert jax.tree.map(jax.typeof, state) == types, seed

        leaves = [[np.asarray(x) for x in jax.tree.leaves(tree)] for tree in (anchor, *grads)]
        found = zip(jax.tree.leaves(params), *leaves, strict=True)
        constrained = []
        for moved, start, *gradients in found:
            if start.size:
                expected, radius = expected_leaf(method, start, gradients)
                constrained.append(radius)
                # Three steps of a dozen float64 roundings each, of numbers up to 10.
                np.testing.assert_allclose(moved, expected, rtol=0, atol=1e-13, err_msg=str(seed))
        if method != "project_to_anchor":
            radii = list(tpgm_jax.radii(state, params).values())
            np.testing.assert_allclose(radii, constrained, rtol=0, atol=1e-13, err_msg=str(seed))
