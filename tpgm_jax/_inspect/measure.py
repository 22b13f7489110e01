"""The numbers of a report: what the state holds, and distances of the parameters."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tpgm_jax._core.axes import Tensor
from tpgm_jax._core.ball import difference, norms
from tpgm_jax._core.displacement import floor_margin, limit_floor
from tpgm_jax._core.placement import to_device
from tpgm_jax._core.spec import Spec
from tpgm_jax._core.stacks import make_kinds
from tpgm_jax._core.unit import row_sums, unit_from_sums


class Numbers(NamedTuple):
    """Numbers of each group, `[G]`. Those of radii are `None` if the state has none.

    Attributes:
        distance: `max over rows of N(W - W0)`.
        size: `max over rows of N(W)`.
        floor: "compact": the largest floor of a row; else 0.
        anchor_sum: the `row_sums` of the anchor.
        radius: `r`.
        relative: `r / U`; `None` if the anchor is zero.
        pulled_back: the share of moved rows that the last projection pulled back.
        overshoot: `max over rows of N(c) / r`, before the last projection.
    """

    distance: np.ndarray
    size: np.ndarray
    floor: np.ndarray
    anchor_sum: np.ndarray
    radius: np.ndarray | None = None
    relative: np.ndarray | None = None
    pulled_back: np.ndarray | None = None
    overshoot: np.ndarray | None = None


def measure(states: Sequence[Any], params: list[list[Any]], anchors: list[list[Any]]) -> Any:
    """The `Numbers` of each state. They come to the host in one transfer.

    Args:
        states: states of this library.
        params: the constrained leaves, a list for each state.
        anchors: their anchors; `None` for zeros.
    """
    on_device = []
    for state, w, w0 in zip(states, params, anchors, strict=True):
        norm, memory = state.spec.norm, state.spec.memory
        measured = [
            # Drop the name, so that equal leaves share a program.
            _program(_replicated_sharding(x), tensor._replace(name=""), norm, memory)(x, y)
            for x, y, tensor in zip(w, w0, state.spec.layout.tensors, strict=True)
        ]
        fields = [getattr(state, x, ()) for x in ("radii", "row_norms", "unit_size")]
        on_device.append((measured, [list(map(_replicate, jax.tree.leaves(x))) for x in fields]))
    on_host = jax.device_get(on_device)
    triples = zip(states, params, on_host, strict=True)
    return [_numbers(state.spec, w, *arrays) for state, w, arrays in triples]


def _numbers(spec: Spec, params: list[Any], measured: list[Any], fields: list[Any]) -> Any:
    """The numbers of one state, from arrays on the host."""
    radii, row_norms, unit_size = fields
    columns: Any = np.concatenate([np.zeros((4, 0)), *measured], axis=1)
    if not radii:
        return Numbers(*columns)
    (radius,) = radii
    sums = np.split(columns[3], np.cumsum([t.groups for t in spec.layout.tensors])[:-1])
    if unit_size:
        (unit,) = unit_size
    elif spec.anchor_source == "zero" or not spec.layout.tensors:
        unit = None
    else:
        pairs = zip(sums, spec.layout.tensors, strict=True)
        shaped = [jnp.reshape(x, tensor.radius_shape) for x, tensor in pairs]
        unit = np.asarray(unit_from_sums(shaped, spec.layout, spec.norm, radius.dtype))

    pulled_back, overshoot = np.zeros_like(radius), np.zeros_like(radius)
    for kind, n in zip(make_kinds(spec.layout, params), row_norms, strict=True):
        rows = tuple(axis + 1 for axis in kind.tensor.rows)
        r = radius[kind.groups].reshape(-1, *kind.tensor.radius_shape)
        moved = np.maximum(np.sum(n > 0, axis=rows), 1)
        pulled_back[kind.groups] = np.ravel(np.sum(n > r, axis=rows) / moved)
        largest = np.maximum(np.max(n, axis=rows, keepdims=True), 0)
        overshoot[kind.groups] = np.ravel(np.divide(largest, r, where=r > 0, out=largest * 0))
    relative = None if unit is None else radius / unit
    learned = [radius, relative, pulled_back, overshoot]
    return Numbers(*columns, *learned)


@functools.lru_cache(maxsize=1000)
def _program(out_sharding: Any, tensor: Tensor, norm: str, memory: str) -> Any:
    """A jitted function of a leaf and its anchor to the first four `Numbers`, `[4, groups]`."""

    def compute(w: Any, w0: Any) -> jax.Array:
        w = jnp.asarray(to_device(w))
        w0 = jnp.zeros_like(w) if w0 is None else jnp.asarray(to_device(w0))
        d = difference(w, w0)
        n = norms(d, tensor, norm)
        floors = jnp.zeros_like(n)
        if memory == "compact":
            sizes = norms(w0.astype(d.dtype), tensor, norm)
            floors = limit_floor(sizes) * floor_margin(w.dtype)
        rows = [n, norms(w.astype(d.dtype), tensor, norm), floors]
        axes = (*tensor.inputs, *tensor.rows)
        columns = [jnp.max(x, axis=axes) for x in rows]
        columns.append(jnp.sum(row_sums(w0, tensor, norm, d.dtype), axis=axes))
        return jnp.stack([jnp.ravel(x) for x in columns])

    return jax.jit(compute, out_shardings=out_sharding)


def _replicate(array: Any) -> Any:
    """`array` on all its devices, so that each process has all of it."""
    sharding = _replicated_sharding(array)
    if sharding is None or array.sharding.is_fully_replicated:
        return array
    return jax.device_put(array, sharding)


def _replicated_sharding(array: Any) -> jax.sharding.Sharding | None:
    if not isinstance(getattr(array, "sharding", None), jax.sharding.NamedSharding):
        return None
    return jax.sharding.NamedSharding(array.sharding.mesh, jax.sharding.PartitionSpec())
