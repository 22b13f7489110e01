"""Arrays that are in host memory between steps, and in device memory during a step.

An array's memory space is part of its JAX type, also under tracing, so no option is needed:
arrays in host memory are copied to the device where they are used, and their replacements are
copied back.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

DEVICE, HOST = jax.memory.Space.Device, jax.memory.Space.Host


def to_device(array: Any) -> Any:
    """`array` in device memory."""
    return jax.device_put(array, DEVICE) if _is_on_host(array) else array


def to_host(array: Any) -> Any:
    """`array` in host memory, with the same sharding."""
    return jax.device_put(array, HOST)


def to_memory_of(old: Any, array: jax.Array) -> jax.Array:
    """`array` in the memory of `old`."""
    return jax.device_put(array, HOST) if _is_on_host(old) else array


def copy_like(old: Any, new: Any) -> jax.Array:
    """A copy of `new` with the dtype, the sharding and the memory of `old`."""
    dtype = jnp.result_type(old)
    if isinstance(old, Tracer) or not getattr(old, "committed", False):  # placed by default
        return to_memory_of(old, jnp.array(to_device(new), dtype=dtype, copy=True))
    # Copy from NumPy, so that each device only gets its own part of an array from a file.
    source = new if isinstance(new, jax.Array) else np.asarray(new, dtype)
    return jax.device_put(source, old.sharding, may_alias=False).astype(dtype)


def _is_on_host(array: Any) -> bool:
    return isinstance(array, jax.Array) and jax.typeof(array).memory_space == HOST
