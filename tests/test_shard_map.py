"""Devices that run the same program on their own data: `jax.shard_map` and `jax.pmap`.

The caller averages the gradients, as for any optimizer. `tpgm` averages the held-out loss along
`axis_name`, because only `tpgm` computes its gradient with respect to the radii.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import mostly_slow, random_tree
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from transforms import STEPS, assert_close

from tpgm_jax import ftp, project_to_anchor, tpgm

DEVICES = 4
SHAPES = {"kernel": (3, 2), "bias": (2,)}
DATA = {"x": (8, 3), "y": (8, 2), "held_out_x": (8, 3), "held_out_y": (8, 2)}

# Gradient descent on the radii, because Adam would hide a sum in place of a mean.
SLOPE = optax.sgd(0.1)
METHODS = {
    "ftp": lambda _: ftp(optax.adam(0.1), radius_optimizer=SLOPE),
    "ftp compact": lambda _: ftp(optax.adam(0.1), radius_optimizer=SLOPE, memory="compact"),
    "tpgm": lambda axis: tpgm(optax.adam(0.1), radius_optimizer=SLOPE, axis_name=axis),
    "tpgm every other": lambda axis: tpgm(
        optax.adam(0.1), radius_optimizer=SLOPE, axis_name=axis, steps=2, every=2
    ),
    "project_to_anchor": lambda _: optax.chain(optax.adam(0.1), project_to_anchor(0.3)),
}
pytestmark = pytest.mark.usefixtures("x64")


def loss(params, x, y):
    return jnp.mean((x @ params["kernel"] + params["bias"] - y) ** 2)


def average(tree, axis):
    return tree if axis is None else jax.lax.pmean(tree, axis)


def train(tx, params, state, data, *, axis=None, of_gradients=True, of_held_out=False):
    """Takes a few steps. If devices share the work, the flags choose what the caller averages."""

    def mean_loss(params):
        value = loss(params, data["x"], data["y"])
        return value if of_gradients else average(value, axis)

    def held_out_loss(params):
        value = loss(params, data["held_out_x"], data["held_out_y"])
        return average(value, axis) if of_held_out else value

    def step(carry, _):
        params, state = carry
        grads = jax.grad(mean_loss)(params)
        grads = average(grads, axis) if of_gradients else grads
        updates, state = tx.update(grads, state, params, held_out_loss=held_out_loss)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, state), length=STEPS)[0]


def by_shard_map(tx, params, data, *, checked, of_held_out):
    devices = jax.devices("cpu")[:DEVICES]
    mesh = jax.make_mesh((DEVICES,), ("data",), (AxisType.Auto,), devices=devices)
    # With `check_vma`, `shard_map` also sums gradients over devices, so the loss is averaged.
    run = functools.partial(
        train, tx, axis="data", of_gradients=not checked, of_held_out=of_held_out
    )
    specs = (P(), P(), P("data"))
    mapped = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=checked)
    found = jax.jit(mapped)(params, tx.init(params), data)
    return [jax.tree.map(lambda x, i=i: x.addressable_data(i), found) for i in range(DEVICES)]


def by_pmap(tx, params, data, *, of_held_out):
    run = functools.partial(train, tx, axis="data", of_held_out=of_held_out)
    state = tx.init(params)
    parts = jax.tree.map(lambda x: x.reshape(DEVICES, -1, *x.shape[1:]), data)
    mapped = jax.pmap(
        run, axis_name="data", in_axes=(None, None, 0), devices=jax.devices("cpu")[:DEVICES]
    )
    found = mapped(params, state, parts)
    return [jax.tree.map(lambda x, i=i: np.asarray(x)[i], found) for i in range(DEVICES)]


WAYS = {
    "shard_map, checked": functools.partial(by_shard_map, checked=True),
    "shard_map, unchecked": functools.partial(by_shard_map, checked=False),
    "pmap": by_pmap,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(
    ("method", "of_held_out"),
    mostly_slow(
        {
            **{name: (method, False) for name, method in METHODS.items()},
            "tpgm, held-out loss averaged by the caller too": (METHODS["tpgm"], True),
        },
        *("tpgm", "project_to_anchor"),
    ),
)
def test_every_device_has_the_same_params_and_state_as_a_single_device(method, way, of_held_out):
    params, data = random_tree(SHAPES, 0), random_tree(DATA, 1)
    one = method(None)
    expected = jax.jit(functools.partial(train, one))(params, one.init(params), data)
    for received in way(method("data"), params, data, of_held_out=of_held_out):
        assert_close(received, expected)
