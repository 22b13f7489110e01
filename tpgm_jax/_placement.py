"""Arrays that lie in the host's memory between steps, and on the device in one.

Where an array lies is part of its type, also while a step is traced, so that it needs no option:
what `offload` or the caller's shardings put on the host is moved in where it is used, and what
takes its place in the state is moved back.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

DEVICE, HOST = jax.memory.Space.Device, jax.memory.Space.Host


def on_device(array: Any) -> Any:
    """`array`, moved to the device if it lies on the host."""
    return jax.device_put(array, DEVICE) if _on_host(array) else array


def beside(array: jax.Array, old: Any) -> jax.Array:
    """`array`, moved to where `old` lies."""
    return jax.device_put(array, HOST) if _on_host(old) else array


def in_place_of(old: Any, new: Any) -> jax.Array:
    """A copy of `new` in the dtype of `old` and laid out over devices as that is."""
    dtype = jnp.result_type(old)
    if isinstance(old, Tracer) or not getattr(old, "committed", False):  # nobody said where
        return beside(jnp.array(on_device(new), dtype=dtype, copy=True), old)
    # Of what comes from a file no device then ever holds more than its part.
    source = new if isinstance(new, jax.Array) else np.asarray(new, dtype)
    return jax.device_put(source, old.sharding, may_alias=False).astype(dtype)


def on_host(array: Any) -> Any:
    """`array`, moved to the host. Layout over devices stays as it is."""
    return jax.device_put(array, HOST)


def _on_host(array: Any) -> bool:
    return isinstance(array, jax.Array) and jax.typeof(array).memory_space == HOST
