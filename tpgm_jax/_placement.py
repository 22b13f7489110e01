"""Arrays that lie in the host's memory between steps, and on the device in one.

Where an array lies is part of its type, also while a step is traced, so that it needs no option:
what `offload` or the caller's shardings put on the host is moved in where it is used, and what
takes its place in the state is moved back.
"""

from typing import Any

import jax

DEVICE, HOST = jax.memory.Space.Device, jax.memory.Space.Host


def on_device(array: Any) -> Any:
    """`array`, moved to the device if it lies on the host."""
    return jax.device_put(array, DEVICE) if _on_host(array) else array


def beside(array: jax.Array, old: Any) -> jax.Array:
    """`array`, moved to where `old` lies."""
    return jax.device_put(array, HOST) if _on_host(old) else array


def on_host(array: Any) -> Any:
    """`array`, moved to the host. Layout over devices stays as it is."""
    return jax.device_put(array, HOST)


def _on_host(array: Any) -> bool:
    return isinstance(array, jax.Array) and jax.typeof(array).memory_space == HOST
