"""What several test modules share."""

import os

# Most of the time goes into compiling programs that run for a moment. LLVM without its passes
# takes half as long; what XLA does before, which some tests read, is the same. `XLA_FLAGS= make
# test` tests the programs that users get. It has to be said before JAX is imported.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

# For the tests of sharding; it has to be said before JAX first looks for devices. All other
# tests use the first one.
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture
def x64():
    """Runs a test in float64."""
    with jax.enable_x64(True):
        yield


def make_step(tx: optax.GradientTransformationExtraArgs, **extra: Any) -> Callable[..., Any]:
    """A jitted step on given gradients."""

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    return step


def make_update(tx: optax.GradientTransformation) -> Callable[..., Any]:
    """`tx.update`, jitted."""
    return jax.jit(tx.update)


def random_tree(shapes: dict[str, tuple[int, ...]], seed: int, scale: float = 1.0, dtype=None):
    """Normal numbers of the given standard deviation, by name."""
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(scale * rng.normal(size=s), dtype) for name, s in shapes.items()}
