"""The collectives of a step, counted in the compiled program."""

import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
import optax
import pytest
from conftest import mostly_slow
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tpgm_jax import Axes, add_anchor_decay, ftp, project_to_anchor, spd

SCANNED = {"layers/.*": Axes(layers=0)}
METHODS = {
    "ftp": ftp(optax.adamw(0.1), axes=SCANNED),
    "ftp l2": ftp(optax.adamw(0.1), axes=SCANNED, norm="l2"),
    "ftp by anchor": ftp(optax.adamw(0.1), axes=SCANNED, unit="anchor"),
    "ftp compact": ftp(optax.adamw(0.1), axes=SCANNED, memory="compact"),
    "ftp compact l2": ftp(optax.adamw(0.1), axes=SCANNED, memory="compact", norm="l2"),
    "spd": spd(optax.adamw(0.1), axes=SCANNED),
    "project_to_anchor": optax.chain(optax.adamw(0.1), project_to_anchor(0.1, axes=SCANNED)),
}
each_method = pytest.mark.parametrize("tx", mostly_slow(METHODS, "ftp", "ftp compact", "spd"))
each_kind = pytest.mark.parametrize(
    "kind", mostly_slow({"Auto": AxisType.Auto, "Explicit": AxisType.Explicit}, "Auto")
)
COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


def model(blocks, mixed):
    """Shapes and layouts: the same for all kernels, or alternating if `mixed`."""
    shapes, specs = {"layers/kernel": (3, 64, 256)}, {"layers/kernel": P(None, "fsdp", "tensor")}
    for i in range(blocks):
        shapes |= {f"{i}/up/kernel": (64, 256), f"{i}/up/bias": (256,)}
        specs |= {f"{i}/up/kernel": P("fsdp", "tensor"), f"{i}/up/bias": P()}
        shapes |= {f"{i}/down/kernel": (256, 64), f"{i}/down/bias": (64,)}
        specs |= {f"{i}/down/kernel": P("fsdp", "tensor"), f"{i}/down/bias": P()}
        if mixed:
            specs |= {f"{i}/up/bias": P("tensor"), f"{i}/down/kernel": P("tensor", "fsdp")}
    return shapes, specs


def collectives(tx, kind, blocks, mixed):
    """How many collectives of each kind there are, and the size of the largest in numbers."""
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), (kind, kind), devices=jax.devices("cpu")[:8])
    shapes, specs = model(blocks, mixed)
    with jax.set_mesh(mesh):
        params = {
            name: jax.device_put(jnp.ones(shape), NamedSharding(mesh, specs[name]))
            for name, shape in shapes.items()
        }

        def step(params, state, grads):
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, tx.init(params), params)
        program = lowered.compile().as_text() or ""
    kinds, largest = Counter(), 0
    for shape, kind_of_one in COLLECTIVE.findall(program):
        kinds[kind_of_one] += 1
        sizes = [list(map(int, x.split(","))) for x in re.findall(r"\[([\d,]+)\]", shape)]
        largest = max([largest, *map(math.prod, sizes)])
    return kinds, largest


@each_kind
@each_method
def test_a_step_has_at_most_four_all_reduces_and_no_other_collectives(tx, kind):
    kinds, largest = collectives(tx, kind, blocks=4, mixed=False)
    assert set(kinds) == {"all-reduce"}
    assert kinds["all-reduce"] <= 4
    # One device holds 128 rows of each of three scanned layers, so that many norms.
    assert largest <= 3 * 128


@pytest.mark.parametrize(
    "name",
    mostly_slow({x: x for x in ("ftp", "ftp by anchor", "ftp compact l2", "spd")}, "ftp"),
)
def test_the_number_of_collectives_does_not_grow_with_the_number_of_leaves(name):
    # With mixed layouts each of the three stages (hyper-gradients, norms, largest norms) reduces
    # over up to three sets of devices: along either mesh axis, or both.
    few, many = (
        collectives(METHODS[name], AxisType.Auto, blocks, mixed=True)[0] for blocks in (1, 4)
    )
    assert few == many
    assert set(many) == {"all-reduce"}
    assert many["all-reduce"] <= 9


@each_kind
def test_the_decay_needs_no_collectives(kind):
    decay = optax.chain(add_anchor_decay(0.1), optax.adam(0.1))
    assert not collectives(decay, kind, blocks=1, mixed=True)[0]
