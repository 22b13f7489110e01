"""Our transformations on Flax's parameter containers."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import mostly_slow
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState
from transforms import STEPS, assert_close

import tpgm_jax
from tpgm_jax import Axes, ftp, project_to_anchor, spd, tpgm

LAYERS = 2
DENSE = functools.partial(nn.Dense, param_dtype=jnp.float64)
OPTIONS: Any = {"exclude": "head/.*", "axes": {"layers/.*": Axes(layers=0)}}
METHODS = {
    "ftp": lambda **options: ftp(optax.adam(0.1), **options),
    "tpgm": lambda **options: tpgm(optax.adam(0.1), **options),
    "project_to_anchor": lambda **options: optax.chain(
        optax.adam(0.1), project_to_anchor(0.05, **options)
    ),
    "spd": lambda **options: spd(optax.sgd(0.6, momentum=0.9), **options),
}
each_method = pytest.mark.parametrize("method", mostly_slow(METHODS, "ftp", "spd"))
LEARNED = {name: METHODS[name] for name in ("ftp", "tpgm")}
each_learned_method = pytest.mark.parametrize("method", LEARNED.values(), ids=LEARNED)
X = np.random.default_rng(0).normal(size=(6, 4))
Y = np.random.default_rng(1).normal(size=(6, 3))


class LinenLayer(nn.Module):
    boxed: bool

    @nn.compact
    def __call__(self, x, _):
        init = nn.initializers.lecun_normal()
        if self.boxed:
            init = nn.with_partitioning(init, ("fsdp", "tensor"))
        return nn.tanh(DENSE(4, kernel_init=init, name="dense")(x)), None


class LinenModel(nn.Module):
    """Two scanned layers and a head, boxed with axis names or not."""

    boxed: bool = False

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
        return DENSE(3, name="head")(layers(self.boxed, name="layers")(x, None)[0])


@functools.cache
def linen_run(method, boxed):
    """Parameters and state after some steps on the loss of a linen model."""
    model, tx = LinenModel(boxed), method(**OPTIONS)
    params = model.init(jax.random.key(0), X)["params"]

    def loss(params):
        return jnp.mean((jnp.asarray(model.apply({"params": params}, X)) - Y) ** 2)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params, held_out_loss=loss)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(STEPS):
        params, state = step(params, state)
    return params, state


@each_method
def test_boxed_parameters_learn_the_same_as_plain_ones(method, x64):
    boxed, boxed_state = linen_run(method, boxed=True)
    params, state = linen_run(method, boxed=False)
    box: Any = boxed["layers"]["dense"]["kernel"]
    assert isinstance(box, nn.Partitioned)
    assert box.names == (None, "fsdp", "tensor")
    assert_close(nn.unbox(boxed), params)
    assert_close(nn.unbox(boxed_state), state)


@each_learned_method
def test_radii_of_boxed_parameters_are_named_like_plain_ones(method, x64):
    params, state = linen_run(method, boxed=True)
    radii = tpgm_jax.radii(state, params)
    assert set(radii) == {"layers/dense/kernel", "layers/dense/bias"}
    assert all(np.shape(radius) == (LAYERS,) for radius in radii.values())


@each_method
def test_boxes_give_the_partition_specs_of_the_state(method, x64):
    params, state = linen_run(method, boxed=True)
    specs: Any = nn.get_partition_spec(state)
    anchor: Any = optax.tree.get(specs, "anchor")
    assert (
        anchor["layers"]["dense"]["kernel"]
        == nn.get_partition_spec(params)["layers"]["dense"]["kernel"]
    )


def test_train_state_applies_ftp(x64):
    model, tx = LinenModel(), METHODS["ftp"](**OPTIONS)

    def loss(params):
        return jnp.mean((jnp.asarray(model.apply({"params": params}, X)) - Y) ** 2)

    @jax.jit
    def step(train_state):
        return train_state.apply_gradients(grads=jax.grad(loss)(train_state.params))

    params = model.init(jax.random.key(0), X)["params"]
    train_state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
    for _ in range(STEPS):
        train_state = step(train_state)
    assert_close(
        (train_state.params, train_state.opt_state), linen_run(METHODS["ftp"], boxed=False)
    )


# ---- NNX


class NNXModel(nnx.Module):
    """The same model, its layers stacked by `nnx.vmap`."""

    def __init__(self, rngs):
        make = nnx.vmap(lambda rngs: nnx.Dict(dense=nnx.Linear(4, 4, rngs=rngs)))
        self.layers = make(rngs.split(LAYERS))
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(x, layer):
            return nnx.tanh(layer["dense"](x))

        return self.head(forward(x, self.layers))


def nnx_loss(model):
    return jnp.mean((model(jnp.asarray(X)) - Y) ** 2)


@nnx.jit
def nnx_step(model, optimizer):
    graphdef, _ = nnx.split(model)
    optimizer.update(
        model,
        nnx.grad(nnx_loss)(model),
        held_out_loss=lambda params: nnx_loss(nnx.merge(graphdef, params)),
    )


def nnx_start(tx):
    """A model with the numbers of the linen one, and its optimizer."""
    model = nnx.eval_shape(lambda: NNXModel(nnx.Rngs(0)))
    nnx.update(model, LinenModel().init(jax.random.key(0), X)["params"])
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


@each_method
def test_an_nnx_optimizer_learns_the_same_as_a_linen_loop(method, x64):
    model, optimizer = nnx_start(method(**OPTIONS))
    for _ in range(STEPS):
        nnx_step(model, optimizer)
    params, state = linen_run(method, boxed=False)
    received = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert_close(received, params)
    leaves = zip(jax.tree.leaves(optimizer.opt_state), jax.tree.leaves(state), strict=True)
    for x, y in leaves:
        assert_close(x, y)
    if method in LEARNED.values():
        radii = tpgm_jax.radii(optimizer.opt_state, nnx.state(model, nnx.Param))
        assert_close(radii, tpgm_jax.radii(state, params))


@each_method
def test_set_anchor_works_on_the_state_of_an_nnx_optimizer(method, x64):
    model, optimizer = nnx_start(method(**OPTIONS))
    nnx_step(model, optimizer)
    elsewhere = nnx.state(model, nnx.Param)
    kernel = np.array(model.layers["dense"].kernel)
    state = tpgm_jax.set_anchor(optimizer.opt_state, elsewhere)
    assert jax.tree.structure(state) == jax.tree.structure(optimizer.opt_state)
    optimizer.opt_state = state
    nnx_step(model, optimizer)
    anchor: Any = optax.tree.get(optimizer.opt_state, "anchor")
    np.testing.assert_array_equal(anchor["layers"]["dense"]["kernel"], kernel)


def test_a_held_out_loss_that_calls_the_parameters_gets_a_note_on_making_the_model():
    x = jnp.ones((2, 4))
    model: Any = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tpgm(optax.adam(0.1)), wrt=nnx.Param)
    grads = nnx.grad(lambda model: jnp.sum(model(x)))(model)
    with pytest.raises(TypeError, match="not callable") as error:
        optimizer.update(model, grads, held_out_loss=lambda model: jnp.sum(model(x)))
    assert "`nnx.merge(graph, params, rest)`" in "".join(error.value.__notes__)
    # The remedy in the note:
    graph, _, rest = nnx.split(model, nnx.Param, ...)

    def held_out_loss(params):
        merged: Any = nnx.merge(graph, params, rest)
        return jnp.sum(merged(x))

    optimizer.update(model, grads, held_out_loss=held_out_loss)
