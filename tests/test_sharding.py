"""Eight devices give the same numbers as one, and every array keeps its sharding."""

import functools
import math
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest
from conftest import mostly_slow
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from transforms import STEPS, assert_close, loss, numbers, stepper

import tpgm_jax
from tpgm_jax import Axes, add_anchor_decay, fit_radii, ftp, project_to_anchor, spd, tpgm
from tpgm_jax._core.axes import make_layout
from tpgm_jax._core.stacks import make_kinds

DEVICES = 8

# Two models: the shapes of their parameters, their layouts on a mesh of 4 x 2 devices, and the
# options of the transformations.
SHAPES: Any = {
    "fsdp x tensor": {
        "embed": {"embedding": (16, 8)},
        "layers": {"query": {"kernel": (3, 8, 2, 4), "bias": (3, 2, 4)}},
        "layers_along_1": {"kernel": (8, 3, 16)},
        "head": {"kernel": (16, 6)},
        "gain": (),
    },
    "layers on devices of their own": {
        "layers": {"kernel": (4, 8, 6), "bias": (4, 6)},
        "head": {"kernel": (16, 6)},
        "norm": {"scale": (8,)},
    },
}
SPECS: Any = {
    "fsdp x tensor": {
        "embed": {"embedding": P("tensor", "fsdp")},
        "layers": {
            "query": {
                "kernel": P(None, "fsdp", "tensor", None),
                "bias": P(None, "tensor", None),
            },
        },
        "layers_along_1": {"kernel": P("fsdp", None, "tensor")},
        "head": {"kernel": P("fsdp", "tensor")},
        "gain": P(),
    },
    "layers on devices of their own": {
        "layers": {"kernel": P("fsdp", None, "tensor"), "bias": P("fsdp", None)},
        "head": {"kernel": P("fsdp", None)},
        "norm": {"scale": P("tensor")},
    },
}
OPTIONS: Any = {
    "fsdp x tensor": {
        "exclude": "head/.*",
        "axes": {"layers/.*": Axes(layers=0), "layers_along_1/.*": Axes(layers=1)},
    },
    "layers on devices of their own": {
        "exclude": "head/.*",
        "axes": {"layers/.*": Axes(layers=0)},
    },
}
METHODS = {
    "ftp": lambda **options: ftp(optax.adam(0.1), **options),
    "tpgm": lambda **options: tpgm(
        optax.adam(0.1),
        norm="l2",
        unit="anchor",
        anchor_dtype="float32",
        steps=2,
        every=2,
        **options,
    ),
    "project_to_anchor": lambda **options: optax.chain(
        optax.adam(0.1), project_to_anchor(0.5, **options)
    ),
    "spd": lambda **options: spd(optax.sgd(0.6, momentum=0.9), **options),
    "add_anchor_decay": lambda *, exclude, axes: optax.chain(
        add_anchor_decay(0.3, exclude=exclude), optax.adam(0.1)
    ),
}
LEARNED = [METHODS["ftp"], METHODS["tpgm"]]
AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
each_method = pytest.mark.parametrize("method", mostly_slow(METHODS, "ftp"))
each_model = pytest.mark.parametrize(
    "model", mostly_slow({name: name for name in SHAPES}, "fsdp x tensor")
)
each_kind = pytest.mark.parametrize(
    "kind", mostly_slow({"Auto": AUTO, "Explicit": EXPLICIT}, "Explicit")
)
pytestmark = pytest.mark.usefixtures("x64")


def mesh_of(kind, shape=(4, 2)):
    devices = jax.devices("cpu")
    assert len(devices) >= DEVICES, f"set `jax_num_cpu_devices` to {DEVICES} before JAX starts"
    devices = devices[: math.prod(shape)]
    return jax.make_mesh(shape, ("fsdp", "tensor"), (kind, kind), devices=devices)


def lay_out(tree, mesh, specs):
    return jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), tree, specs)


def is_placeholder(node):
    return isinstance(node, optax.MaskedNode)


def assert_same_sharding(received, expected):
    for x, y in zip(jax.tree.leaves(received), jax.tree.leaves(expected), strict=True):
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim), (x.sharding, y.sharding)


def assert_same_types(received, expected):
    """Containers, shapes, dtypes, weak types and shardings."""
    assert jax.tree.map(jax.typeof, received) == jax.tree.map(jax.typeof, expected)
    assert_same_sharding(received, expected)


class Run(NamedTuple):
    """The start and the end of a few steps that donate their arguments."""

    start: Any
    init: Any
    compiled_init: Any
    params: Any
    state: Any


@functools.cache
def run(method, model, mesh):
    with jax.set_mesh(mesh):
        tx = method(**OPTIONS[model])
        start = params = lay_out(numbers(shapes=SHAPES[model]), mesh, SPECS[model])
        compiled_init = jax.jit(tx.init)(params)
        init = state = tx.init(params)
        step = jax.jit(stepper(tx), donate_argnums=(0, 1))
        for _ in range(STEPS):
            given = params, state
            params, state = step(params, state)
            assert all(x.is_deleted() for x in jax.tree.leaves(given))
    return Run(start, init, compiled_init, params, state)


@each_kind
@each_model
@each_method
def test_eight_devices_learn_the_same_as_one(method, model, kind):
    many, one = run(method, model, mesh_of(kind)), run(method, model, mesh_of(AUTO, (1, 1)))
    assert {len(x.devices()) for x in jax.tree.leaves(many.params)} == {DEVICES}
    assert {len(x.devices()) for x in jax.tree.leaves(one.params)} == {1}
    assert_close((many.params, many.state), (one.params, one.state))
    if method in LEARNED:
        radii = tpgm_jax.radii(many.state, many.params)
        assert_close(radii, tpgm_jax.radii(one.state, one.params))


@pytest.mark.parametrize("options", [{"anchor": "argument"}, {"anchor": "zero"}], ids=str)
def test_eight_devices_learn_the_same_as_one_with_other_anchors(options):
    model = "fsdp x tensor"

    def learn(mesh):
        with jax.set_mesh(mesh):
            tx = METHODS["ftp"](**options, **OPTIONS[model])
            params, anchor = (
                lay_out(numbers(seed, shapes=SHAPES[model]), mesh, SPECS[model]) for seed in (0, 1)
            )
            state = tx.init(params)
            handed = {"anchor": anchor} if options["anchor"] == "argument" else {}
            step = jax.jit(
                lambda params, state, handed: stepper(tx, **handed)(params, state),
                donate_argnums=(0, 1),
            )
            for _ in range(STEPS):
                params, state = step(params, state, handed)
        assert not jax.tree.leaves(state.anchor)
        return params, state

    assert_close(learn(mesh_of(EXPLICIT)), learn(mesh_of(AUTO, (1, 1))))


@each_kind
@each_model
@each_method
def test_arrays_keep_the_sharding_of_the_params(method, model, kind):
    done = run(method, model, mesh_of(kind))
    assert_same_sharding(done.params, done.start)
    # All but the head, which is not constrained and so not stored in the state.
    for name in ("anchor", "displacement"):
        for _, mirror in optax.tree.get_all_with_path(done.state, name):
            mirror, start = ({**tree, "head": ()} for tree in (mirror, done.start))
            assert_same_sharding(mirror, start)


@each_model
@each_method
def test_state_types_agree_between_init_jitted_init_and_steps(method, model):
    done = run(method, model, mesh_of(EXPLICIT))
    assert_same_types(done.state, done.init)
    assert_same_types(done.compiled_init, done.init)


def test_tensors_with_other_explicit_shardings_are_of_another_kind():
    # Arrays with different shardings cannot be stacked.
    with jax.set_mesh(mesh_of(EXPLICIT)):
        tree = {"block_0": np.ones((8, 2)), "block_1": np.ones((8, 2))}
        params = lay_out(tree, jax.sharding.get_mesh(), {"block_0": P("fsdp"), "block_1": P()})
        kinds = make_kinds(make_layout(params), jax.tree.leaves(params))
    assert [kind.members for kind in kinds] == [[0], [1]]


@each_kind
@pytest.mark.parametrize("source", ["file", "whole", "laid alike"])
def test_set_anchor_keeps_the_sharding_of_the_anchor(kind, source):
    model, mesh = "fsdp x tensor", mesh_of(kind)
    params, other = (numbers(seed, shapes=SHAPES[model]) for seed in (0, 1))
    expected = new = jax.tree.map(np.asarray, other)
    with jax.set_mesh(mesh):
        state: Any = ftp(optax.sgd(0.1)).init(lay_out(params, mesh, SPECS[model]))
        if source == "whole":
            new = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, P())), new)
        elif source == "laid alike":
            new = lay_out(new, mesh, SPECS[model])
        moved: Any = tpgm_jax.set_anchor(state, new)
        if source != "file":  # a step that donates them must not delete the anchor
            jax.tree.map(lambda x: x.delete(), new)
    assert_same_types(moved.anchor, state.anchor)
    jax.tree.map(np.testing.assert_array_equal, moved.anchor, expected)


def test_an_eager_update_keeps_the_types_of_params_and_state():
    mesh = mesh_of(EXPLICIT)
    with jax.set_mesh(mesh):
        params = lay_out(numbers(shapes={"kernel": (3, 8, 4)}), mesh, {"kernel": P(None, "fsdp")})
        tx = ftp(optax.sgd(0.1), axes={"kernel": Axes(layers=0)})
        state = tx.init(params)
        assert_same_types(tx.update(params, state, params), (params, state))


def assert_shardings(state, shardings):
    """`shardings` has one sharding for all arrays of `row_norms`."""
    full = jax.tree.map(lambda s, x: jax.tree.map(lambda _: s, x), shardings, state)
    assert jax.tree.map(lambda x: x.sharding, state) == full


@each_kind
@each_method
def test_map_params_gives_jit_the_shardings_of_the_state(method, kind):
    mesh, model = mesh_of(kind), "fsdp x tensor"
    with jax.set_mesh(mesh):
        tx = method(**OPTIONS[model])
        params = lay_out(numbers(shapes=SHAPES[model]), mesh, SPECS[model])
        # As with `optax.masked`, the state has placeholders for the head, which is not stored.
        shardings = optax.tree.map_params(
            tx,
            lambda x, spec: x if is_placeholder(x) else NamedSharding(mesh, spec),
            jax.eval_shape(tx.init, params),
            SPECS[model],
            transform_non_params=lambda _: NamedSharding(mesh, P()),
            is_leaf=is_placeholder,
        )
        state = jax.jit(tx.init, out_shardings=shardings)(params)
        assert_shardings(state, shardings)
        _, state = jax.jit(stepper(tx), out_shardings=(None, shardings))(params, state)
        assert_shardings(state, shardings)


@each_kind
@pytest.mark.parametrize(("model", "norm"), list(zip(SHAPES, ["l2", "mars"], strict=True)))
def test_fit_radii_is_the_same_on_eight_devices(model, norm, kind):
    def fit(mesh):
        with jax.set_mesh(mesh):
            anchor, tuned = (
                lay_out(numbers(seed, shapes=SHAPES[model]), mesh, SPECS[model]) for seed in (0, 1)
            )
            batches = [0.1, 0.2, 0.3]
            return tuned, fit_radii(loss, tuned, anchor, batches, norm=norm, **OPTIONS[model])

    (tuned, many), (_, one) = fit(mesh_of(kind)), fit(mesh_of(AUTO, (1, 1)))
    assert_same_sharding(many.params, tuned)
    assert_close(many, one)
