"""Settings, fixtures and helpers that several test modules share."""

import os
from importlib import metadata

# Compiling takes most of the tests' time. Without LLVM's passes and XLA's fusion emitters it takes
# less than half as long, and the number of collectives, which some tests count, stays the same.
# `make test-optimized` sets `XLA_FLAGS` to the empty string and so tests the programs that users
# get. Virtual devices that wait for each other abort the process after 40 s, which is not enough on
# a machine with much other work. jaxlib exits with an error about an unknown flag, and 0.12
# lacks the last. The variable must be set before JAX is imported.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_collective_call_terminate_timeout_seconds=600"
    + " --xla_cpu_use_fusion_emitters=false"
    * (tuple(map(int, metadata.version("jaxlib").split(".")[:2])) < (0, 11)),
)

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

# For the sharding tests. It must be set before JAX initializes its devices. All other tests use the
# first device.
jax.config.update("jax_num_cpu_devices", 8)


def pytest_collection_modifyitems(items):
    """Skips examples with host memory on CPU, which JAX has from 0.10 on."""
    for item in items:
        if jax.__version_info__ < (0, 10) and item.path.name in ("pods.md", "edit.py"):
            item.add_marker(pytest.mark.skip(reason="no host memory on CPU before jax 0.10"))


@pytest.fixture
def x64():
    """Runs a test in float64."""
    with jax.enable_x64(True):
        yield


def mostly_slow(cases: dict[str, Any], *quick: str) -> list[Any]:
    """Cases for `pytest.mark.parametrize`. `make test` runs only those named in `quick`.

    Args:
        cases: by name; a plain tuple holds the values of several arguments.
        quick: names of the cases that are not slow.
    """
    assert cases.keys() >= set(quick)
    return [
        pytest.param(
            *(case if type(case) is tuple else (case,)),
            id=name,
            marks=() if name in quick else pytest.mark.slow,
        )
        for name, case in cases.items()
    ]


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
