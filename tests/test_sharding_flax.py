"""Flax's containers on eight devices: boxed linen parameters, and `nnx.Optimizer`."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import mostly_slow
from flax import linen as nn
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from test_sharding import (
    AUTO,
    EXPLICIT,
    METHODS,
    assert_same_sharding,
    assert_same_types,
    each_kind,
    mesh_of,
)
from transforms import STEPS, assert_close, loss, stepper

from tpgm_jax import Axes

LAYERS = 3
OPTIONS: Any = {"exclude": "head/.*", "axes": {"layers/.*": Axes(layers=0)}}
NAMES = ("fsdp", "tensor")
# Without `spd`, whose state has no fields that the others lack.
STATES = {name: method for name, method in METHODS.items() if name != "spd"}
each_method = pytest.mark.parametrize("method", mostly_slow(STATES, "ftp"))
pytestmark = pytest.mark.usefixtures("x64")


class LinenLayer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        init = nn.with_partitioning(nn.initializers.lecun_normal(), NAMES)
        return nn.Dense(8, kernel_init=init, param_dtype="float64", name="dense")(x), None


class LinenModel(nn.Module):
    """Scanned layers and a head, whose kernels are boxed with names of mesh axes."""

    @nn.compact
    def __call__(self, x):
        scan: Any = nn.scan
        layers = scan(
            LinenLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=LAYERS,
            metadata_params={nn.PARTITION_NAME: None},
        )
        init = nn.with_partitioning(nn.initializers.lecun_normal(), NAMES)
        x, _ = layers(name="layers")(x, None)
        return nn.Dense(4, kernel_init=init, param_dtype="float64", name="head")(x)


def linen_shardings(mesh, shapes):
    """The shardings that a linen user gives to JAX, for parameters or an optimizer's state."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), nn.get_partition_spec(shapes))


@each_kind
@each_method
def test_boxed_parameters_learn_the_same_on_eight_devices_as_on_one(method, kind):
    given = LinenModel().init(jax.random.key(0), jnp.ones((2, 8)))["params"]
    tx, given = method(**OPTIONS), jax.tree.map(np.array, given)

    def run(mesh):
        with jax.set_mesh(mesh):
            params = start = jax.device_put(given, linen_shardings(mesh, given))
            shardings = linen_shardings(mesh, jax.eval_shape(tx.init, params))
            state = jax.jit(tx.init, out_shardings=shardings)(params)
            step = jax.jit(stepper(tx), donate_argnums=(0, 1))
            for _ in range(STEPS):
                params, state = step(params, state)
            return start, params, state

    (start, params, state), (_, *one) = run(mesh_of(kind)), run(mesh_of(AUTO, (1, 1)))
    assert_close([params, state], one)
    assert params["layers"]["dense"]["kernel"].value.sharding.spec == P(None, *NAMES)
    assert_same_sharding(params, start)
    assert_same_sharding(optax.tree.get(state, "anchor")["layers"], start["layers"])
    radii = optax.tree.get(state, "radii")
    assert radii is None or radii.sharding.is_fully_replicated


class NNXModel(nnx.Module):
    """The same model in NNX, which shards parameters when it creates them."""

    def __init__(self, rngs):
        init = nnx.with_partitioning(nnx.initializers.lecun_normal(), NAMES)
        layer = partial(nnx.Linear, 8, 8, kernel_init=init, param_dtype=jnp.float64)
        stack = nnx.vmap(
            lambda rngs: layer(rngs=rngs), transform_metadata={nnx.PARTITION_NAME: None}
        )
        self.layers = stack(rngs.split(LAYERS))
        self.head = nnx.Linear(8, 4, kernel_init=init, param_dtype=jnp.float64, rngs=rngs)


@each_kind
@each_method
def test_an_nnx_optimizer_learns_the_same_on_eight_devices_as_on_one(method, kind):
    def loss_of_model(model):
        return loss(nnx.state(model, nnx.Param))

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(loss_of_model)(model), held_out_loss=loss)

    def run(mesh):
        with jax.set_mesh(mesh):
            model = NNXModel(nnx.Rngs(0))
            optimizer = nnx.Optimizer(model, method(**OPTIONS), wrt=nnx.Param)
            start = nnx.state(optimizer)
            for _ in range(STEPS):
                step(model, optimizer)
            return model, start, nnx.state(optimizer)

    (model, start, state), (one, _, state_of_one) = run(mesh_of(kind)), run(mesh_of(AUTO, (1, 1)))
    for x, y in (model, one), (state, state_of_one):
        assert_close(jax.tree.leaves(x), jax.tree.leaves(y))
    kernel: Any = model.layers.kernel[...]
    assert kernel.sharding.spec == P(None, *NAMES)
    if kind is EXPLICIT:
        assert_same_types(state, start)
