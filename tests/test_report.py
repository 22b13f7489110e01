"""The numbers of a report, for every kind of state."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_step, mostly_slow
from flax import nnx
from jax.sharding import PartitionSpec as P
from reference import norm_units, size
from test_sharding import AUTO, EXPLICIT, OPTIONS, SHAPES, SPECS, lay_out, mesh_of
from transforms import PARTS, loss, numbers

import tpgm_jax
from tpgm_jax import Axes, add_anchor_decay, ftp, offload, project_to_anchor, spd, tpgm

# Rows and layers of the constrained parameters of `transforms.numbers`.
LAYOUTS = {"gain": ((), ()), "layers/bias": ((), (0,)), "layers/kernel": ((2,), (0,))}
STEPS = 4


# Untyped, because optax types a state only as a tree.
report: Any = tpgm_jax.report


def slopes(t):
    """Gradients that are almost zero in some rows."""
    weights = jnp.array([1.0, 1.0, 1e-3, 1e-3])
    return jax.tree.map(lambda x: x * weights if x.shape[-1:] == (4,) else x, numbers(t))


@functools.cache
def run(make):
    """Parameters and state after some steps of a transformation."""
    params, tx = numbers(dtype=jnp.float32), make()
    step, state, before = make_step(tx, held_out_loss=loss), tx.init(params), params
    for _ in range(STEPS):
        before = params
        params, state = step(params, state, slopes(5))
    candidate = jax.tree.map(lambda w, g: np.float64(w) - 0.1 * np.float64(g), before, slopes(5))
    return params, state, candidate


def by_path(tree):
    return {"/".join(k.key for k in path): x for path, x in jax.tree.leaves_with_path(tree)}


def distances(params, anchor, norm):
    """Distances of rows (or groups) from the anchor, by label, in float64."""
    params, anchor, found = by_path(params), by_path(anchor), {}
    for name, (rows, layers) in LAYOUTS.items():
        d = np.asarray(params[name], np.float64) - np.asarray(anchor[name], np.float64)
        units = norm_units(d.shape, rows, layers, norm)
        for i, unit in enumerate(units):
            label = f"{name}/{i}" if layers else name
            found[label] = [size(d, row, norm) for row in unit]
    return found


METHODS = {
    "ftp": lambda: ftp(optax.sgd(0.1), **PARTS),
    "ftp l2": lambda: ftp(optax.sgd(0.1), norm="l2", **PARTS),
    "ftp compact": lambda: ftp(optax.sgd(0.1), memory="compact", **PARTS),
    "tpgm": lambda: tpgm(optax.sgd(0.1), **PARTS),
}
each_method = pytest.mark.parametrize("name", METHODS)


@each_method
def test_numbers_equal_plain_loops(name):
    norm = "l2" if "l2" in name else "mars"
    params, state, candidate = run(METHODS[name])
    found, anchor = report(state, params), numbers(dtype=jnp.float32)
    expected, would_be = (distances(x, anchor, norm) for x in (params, candidate))
    assert [group.label for group in found.groups] == list(expected)
    assert found.excluded == ("head/kernel",)
    learned = tpgm_jax.radii(state, params)
    for group in found.groups:
        rows, radius = np.array(expected[group.label]), learned[group.name]
        assert group.radius == (radius if group.layer is None else radius[group.layer])
        assert (group.norm, group.rows) == (norm, len(rows))
        # Sums of at most 12 float32 numbers: as many roundings of 6e-8.
        np.testing.assert_allclose(group.distance, rows.max(), rtol=12 * 6e-8)
        before = np.array(would_be[group.label])
        # Each row is clearly inside its ball, at its radius up to rounding, or clearly outside.
        assert np.all(np.abs(before / group.radius - 1 - 1e-4) > 5e-5), before / group.radius
        assert group.pulled_back == pytest.approx(np.mean(before > 1.00005 * group.radius))
        # A few float32 roundings of 6e-8 in each of 12 summands.
        np.testing.assert_allclose(group.overshoot, before.max() / group.radius, rtol=40 * 6e-8)
        assert not group.beyond
    # Some groups have rows of both sorts.
    assert norm == "l2" or any(0.2 < group.pulled_back < 0.8 for group in found.groups)


BASE = optax.sgd(0.1)
WRAPPED: Any = {
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1e6), ftp(BASE, **PARTS)),
    "MultiSteps": lambda: optax.MultiSteps(ftp(BASE, **PARTS), 1),
    "inject_hyperparams": lambda: optax.inject_hyperparams(ftp, static_args=("exclude", "axes"))(
        BASE, k=1.0, **PARTS
    ),
    "after decay": lambda: optax.chain(add_anchor_decay(0.0), ftp(BASE, **PARTS)),
    "before decay": lambda: optax.chain(ftp(BASE, **PARTS), add_anchor_decay(0.0)),
    "argument": lambda: ftp(BASE, anchor="argument", **PARTS),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_state_is_found_inside_wrappers(name):
    params, trained, _ = run(METHODS["ftp"])
    pretrained = numbers(dtype=jnp.float32)
    fields = {"radii": trained.radii, "row_norms": trained.row_norms}
    state = optax.tree.set(WRAPPED[name]().init(pretrained), **fields)
    extra = {"anchor": pretrained} if name == "argument" else {}
    found = report(state, params, **extra).groups
    if "decay" in name:  # which also applies to the head, without a radius
        head, *found = sorted(found, key=lambda group: group.radius is not None)
        assert (head.name, head.norm, head.distance > 0) == ("head/kernel", "l2", True)
    assert tuple(found) == report(trained, params).groups


def test_parts_of_a_model_are_reported_together_or_one_by_one():
    tx = optax.partition(
        {"body": ftp(BASE, axes={"layers/.*": Axes(layers=0)}), "head": ftp(BASE, norm="l2")},
        lambda tree: {"layers": "body", "head": "head", "gain": "body"},
    )
    params = numbers(dtype=jnp.float32)
    state: Any = tx.init(params)
    labels = ["gain", "head/kernel", "layers/bias/0", "layers/bias/1"]
    labels += ["layers/kernel/0", "layers/kernel/1"]
    both = report(state, params)
    assert [group.label for group in both.groups] == labels
    assert {group.name: group.norm for group in both.groups}["head/kernel"] == "l2"
    (head,) = report(state.inner_states["head"], params).groups
    assert (head.label, head.norm, head.rows) == ("head/kernel", "l2", 1)


def test_methods_without_radii_have_distances():
    pretrained, params = (numbers(seed, jnp.float32) for seed in (0, 1))
    ball = optax.chain(BASE, project_to_anchor(0.05, **PARTS))
    for tx, norm in ((ball, "mars"), (spd(BASE, **PARTS), "l2")):
        found = report(tx.init(pretrained), params)
        expected = distances(params, pretrained, norm)
        assert [group.label for group in found.groups] == list(expected)
        for group in found.groups:
            # Sums of at most 12 float32 numbers, and a root.
            np.testing.assert_allclose(group.distance, max(expected[group.label]), rtol=13 * 6e-8)
            assert group[5:] == (False, None, None, None, None)
        assert set(found.scalars()) == {f"distance/{group.label}" for group in found.groups}


@pytest.mark.parametrize("make", [ftp, tpgm, spd])
def test_a_zero_anchor_gives_distances_from_zero(make):
    params, norm = numbers(dtype=jnp.float32), "l2" if make is spd else "mars"
    found = report(make(BASE, anchor="zero", **PARTS).init(params), params)
    expected = distances(params, jax.tree.map(jnp.zeros_like, params), norm)
    assert [group.label for group in found.groups] == list(expected)
    for group in found.groups:
        # Sums of at most 12 float32 numbers, and a root.
        np.testing.assert_allclose(group.distance, max(expected[group.label]), rtol=13 * 6e-8)


def test_a_report_reads_a_state_in_flax_variables():
    class Model(nnx.Module):
        def __init__(self):
            self.dense = nnx.Linear(3, 4, rngs=nnx.Rngs(0))

    model = Model()
    optimizer = nnx.Optimizer(model, ftp(BASE), wrt=nnx.Param)
    params = jax.tree.map(lambda x: x + 1.0, nnx.state(model, nnx.Param))
    found = report(optimizer.opt_state, params)
    # A row of 3 inputs, and a bias of 4 numbers, each moved by 1 and rounded twice.
    assert [(x.label, x.rows) for x in found.groups] == [("dense/bias", 1), ("dense/kernel", 4)]
    np.testing.assert_allclose([x.distance for x in found.groups], [4, 3], rtol=1e-6)


@pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="no host memory on CPU before 0.10")
@pytest.mark.parametrize("kind", mostly_slow({"Auto": AUTO, "Explicit": EXPLICIT}, "Explicit"))
def test_arrays_may_be_on_many_devices_and_anchors_on_the_host(kind):
    model = "fsdp x tensor"
    pretrained, params = (numbers(seed, jnp.float32, SHAPES[model]) for seed in (0, 1))
    state: Any = ftp(BASE, **OPTIONS[model]).init(pretrained)
    state = state._replace(radii=jnp.arange(1.0, 1 + len(state.radii)))
    expected = report(state, params)
    mesh = mesh_of(kind)
    laid = lay_out(params, mesh, SPECS[model])
    anchor = jax.tree.map(lambda x: x, state.anchor)
    for name in set(anchor) - {"head"}:
        anchor[name] = lay_out(anchor[name], mesh, SPECS[model][name])
    state = jax.device_put(state, jax.sharding.NamedSharding(mesh, P()))
    state = offload(state._replace(anchor=anchor))
    found = report(state, laid)
    assert [x.label for x in found.groups] == [x.label for x in expected.groups]
    for x, y in zip(found.groups, expected.groups, strict=True):
        # Sums of at most 64 numbers in another order.
        np.testing.assert_allclose(
            [x.distance, x.radius, x.relative], [y.distance, y.radius, y.relative], rtol=64 * 6e-8
        )


@pytest.mark.parametrize(
    ("dtype", "memory"),
    mostly_slow(
        {
            "float32-full": ("float32", "full"),
            "float32-compact": ("float32", "compact"),
            "bfloat16-full": ("bfloat16", "full"),
            "float16-compact": ("float16", "compact"),
        },
        *("float32-full", "float16-compact"),
    ),
)
def test_a_projected_row_is_at_its_radius_for_any_dtype(dtype, memory):
    rng = np.random.default_rng(0)
    # Rows of one number have the largest rounding errors, and long rows the errors of long sums.
    shapes = {"kernel": (300, 40), "ones": (1, 500), "tall": (3000, 4), "bias": (40,)}
    params = {name: np.zeros(shape) for name, shape in shapes.items()}
    params["kernel"] = rng.normal(size=shapes["kernel"])
    params = {name: jnp.asarray(x, dtype) for name, x in params.items()}
    slopes = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    grads = {name: jnp.asarray(x + np.sign(x), dtype) for name, x in slopes.items()}
    # Every step would go a hundred times as far as the growing radius. The last one reverses.
    directions = [grads] * 4 + [jax.tree.map(jnp.negative, grads)]
    tx = ftp(optax.sgd(10.0), memory=memory)
    step, state = make_step(tx), tx.init(params)
    for t, grads in enumerate(directions):
        params, state = step(params, state, grads)
        for group in report(state, params).groups:
            assert (group.pulled_back, group.beyond) == (1, False), (t, group)


def test_a_report_costs_one_transfer_and_does_not_change_the_step(monkeypatch):
    params, state, _ = run(METHODS["ftp"])
    tx = METHODS["ftp"]()
    before = str(jax.make_jaxpr(tx.update)(slopes(5), state, params))
    fetched = []
    real = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda x: fetched.append(x) or real(x))
    report(state, params)
    assert len(fetched) == 1
    # A few numbers for each group, and one for each row.
    assert sum(x.size for x in jax.tree.leaves(fetched)) < 100
    assert str(jax.make_jaxpr(tx.update)(slopes(5), state, params)) == before


def test_layers_are_sorted_by_their_numbers():
    params = {f"block_{i}": {"w": jnp.ones(2), "b": jnp.ones(2)} for i in (0, 1, 2, 10, 11)}
    found = report(ftp(BASE).init(params | {"a": jnp.ones(2)}), params | {"a": jnp.ones(2)})
    blocks = [f"block_{i}/{leaf}" for i in (0, 1, 2, 10, 11) for leaf in "bw"]
    assert [group.name for group in found.groups] == ["a", *blocks]


def test_layers_along_any_axes_are_separate_groups():
    params = {
        "stack": {"kernel": jnp.ones((3, 5, 3, 4)), "bias": jnp.ones((1, 4))},
        "thin": jnp.ones((1, 2, 4)),
    }
    declared = {"stack/kernel": Axes(layers=(0, 2)), "stack/bias": Axes(layers=0)}
    state = ftp(BASE, axes=declared | {"thin": Axes(layers=1)}).init(params)
    found = report(state, params).groups
    assert [(group.name, group.layer) for group in found] == [
        ("stack/bias", 0),
        *(("stack/kernel", i) for i in range(9)),
        *(("thin", i) for i in range(2)),
    ]
    assert [group.rows for group in found] == [1, *(11 * [4])]
