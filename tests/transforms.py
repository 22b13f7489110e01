"""The transformations whose contract is tested, and a small problem for them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import mostly_slow

from tpgm_jax import Axes, add_anchor_decay, ftp, project_to_anchor, spd, tpgm

# A stack of two layers, a head, and a parameter of rank 0.
SHAPES = {
    "layers": {"kernel": (2, 3, 4), "bias": (2, 4)},
    "head": {"kernel": (4, 3)},
    "gain": (),
}
# The transformations "of parts" exclude the head and declare the layers.
PARTS: Any = {"exclude": "head/.*", "axes": {"layers/.*": Axes(layers=0)}}

# In float16 the default `eps` is 0, and the square of a clipped gradient may be 0 as well.
ADAMW = optax.adamw(0.1, eps=1e-3)

WRAPPERS = {
    "ftp": lambda: ftp(optax.adam(0.1)),
    "ftp of parts": lambda: ftp(
        optax.sgd(0.1, momentum=0.9), k=0.5, norm="l2", unit="anchor", **PARTS
    ),
    "ftp chained": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), ftp(ADAMW, k=lambda step: 1 / (step + 1))
    ),
    "ftp compact": lambda: ftp(optax.adam(0.1), memory="compact", **PARTS),
    "tpgm": lambda: tpgm(optax.adam(0.1)),
    "tpgm of parts": lambda: tpgm(
        optax.sgd(0.1, momentum=0.9), steps=2, every=2, norm="l2", **PARTS
    ),
    "tpgm chained": lambda: optax.chain(optax.clip_by_global_norm(1.0), tpgm(ADAMW)),
    # With this momentum SPD acts within the first steps.
    "spd": lambda: spd(optax.sgd(0.6, momentum=0.9)),
    "spd of parts": lambda: optax.chain(
        optax.clip_by_global_norm(1.0),
        spd(optax.adamw(1.0, eps=1e-3), strength=lambda step: 1 / (step + 1), **PARTS),
    ),
}
TRANSFORMS = WRAPPERS | {
    "project_to_anchor": lambda: project_to_anchor(0.5),
    "project_to_anchor of parts": lambda: project_to_anchor(0.5, norm="l2", **PARTS),
    "project_to_anchor chained": lambda: optax.chain(
        optax.adam(0.1), project_to_anchor(lambda step: 0.1 * (step + 1))
    ),
    "add_anchor_decay": lambda: optax.chain(add_anchor_decay(0.3), optax.adam(0.1)),
    "add_anchor_decay of parts": lambda: optax.chain(
        optax.scale_by_adam(eps=1e-3),
        add_anchor_decay(
            lambda step: 1 / (step + 1),
            importance=jax.tree.map(jnp.abs, numbers(9)),
            exclude="head/.*",
        ),
        optax.scale_by_learning_rate(0.1),
    ),
}
each_transform = pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS)
# For tests that compile a separate program for each transformation.
each_mostly_slow_transform = pytest.mark.parametrize(
    "make",
    mostly_slow(
        TRANSFORMS,
        *("ftp of parts", "ftp chained", "ftp compact", "tpgm of parts", "spd of parts"),
        *("project_to_anchor chained", "add_anchor_decay of parts"),
    ),
)

# Comparisons of two ways to compute the same numbers use float64. Each of five steps rounds numbers
# of up to 10 a dozen times, by 2e-16 of them, and Adam's division by the root of a small second
# moment can magnify the error tenfold: 5 * 12 * 2e-16 * 10 * 10.
STEPS, FLOAT64 = 5, 1.2e-12


def assert_close(received, expected):
    """Checks that structures are equal, and numbers equal up to float64 rounding."""
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=FLOAT64), received, expected
    )


def numbers(seed=0, dtype=None, shapes=None):
    """Random parameters, or another random tree with their shapes."""
    rng = np.random.default_rng(seed)
    shapes = SHAPES if shapes is None else shapes
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), dtype),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def loss(params, target=2.0):
    """Pulls all parameters to `target`; used as the training and the held-out loss."""
    return sum(jnp.sum((x - target) ** 2) for x in jax.tree.leaves(params))


def stepper(tx, loss=loss, **extra):
    """`step(params, state)`, which returns the next params and state; not compiled."""

    def step(params, state):
        grads = jax.grad(loss)(params)
        # Transformations that use no held-out data must ignore the argument.
        updates, state = tx.update(grads, state, params, held_out_loss=loss, **extra)
        return optax.apply_updates(params, updates), state

    return step


def run(tx, params):
    """Parameters and state after some compiled steps."""
    step, state = jax.jit(stepper(tx)), jax.jit(tx.init)(params)
    for _ in range(STEPS):
        params, state = step(params, state)
    return params, state
