"""The unit in which the radius optimizer measures radii: the norm, or the size of the anchor.

A distance of 0.01 is far for a bias of 32 numbers and near for a row of 576 weights. With
`unit="anchor"` the radius optimizer gets `r / U`. For each group

    mars:  U = mean over rows of N(W0)    l2:  U = N(W0)                 kernels
           U = n * mean |W0|                   U = sqrt(n * mean W0^2)   a single row of n numbers

The means in the second line are over all numbers of all kernels, because the values of biases
(zeros) and norm scales (ones) do not indicate how far these may move.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from tpgm_jax._core.axes import Layout, Tensor
from tpgm_jax._core.ball import norms
from tpgm_jax._core.names import Nothing
from tpgm_jax._core.spec import Spec
from tpgm_jax._core.stacks import replicate


def unit_sizes(anchor: list[Any], spec: Spec, dtype: jnp.dtype) -> jax.Array | Nothing:
    """`U` of each group, `[G]`, positive, for a state. `Nothing` if the unit is the norm.

    Args:
        anchor: the constrained leaves. If one of them is a `jax.ShapeDtypeStruct`, so is the
            result.
        spec: with the layout, the unit and the norm.
        dtype: of the result.
    """
    layout = spec.layout
    if spec.unit == "norm":
        return Nothing()
    if not layout.tensors:
        return jnp.ones(0, dtype)

    def compute(anchor: list[Any]) -> jax.Array:
        pairs = zip(anchor, layout.tensors, strict=True)
        sums = [row_sums(x, tensor, spec.norm, dtype) for x, tensor in pairs]
        return unit_from_sums(sums, layout, spec.norm, dtype)

    # An abstract anchor has no size, and zeros in its place would be a wrong unit.
    abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in anchor)
    return jax.eval_shape(compute, anchor) if abstract else compute(anchor)


def divisor(unit_size: jax.Array | Nothing, groups: int, dtype: jnp.dtype) -> jax.Array:
    """The divisor of the radii for their optimizer, `[G]`: the `unit_size` of a state, or ones."""
    # Ones are a constant here and not an array in the state, so XLA drops the division.
    return jnp.ones(groups, dtype) if isinstance(unit_size, Nothing) else unit_size


def row_sums(anchor: jax.Array, tensor: Tensor, norm: str, dtype: jnp.dtype) -> jax.Array:
    """The sum over rows of `N(W0)`, or of its square for "l2", of `radius_shape`."""
    power = 1 if norm == "mars" else 2
    finite = jnp.where(jnp.isfinite(anchor), anchor, 0)
    sizes = norms(finite.astype(dtype), tensor, norm) ** power
    return jnp.sum(sizes, axis=tensor.rows, keepdims=True)


def unit_from_sums(sums: list[jax.Array], layout: Layout, norm: str, dtype: jnp.dtype) -> jax.Array:
    """`U` of each group, from the `row_sums` of each tensor."""
    power = 1 if norm == "mars" else 2
    sizes = [math.prod(tensor.shape) for tensor in layout.tensors]
    kernels = [(x, n) for x, n, t in zip(sums, sizes, layout.tensors, strict=True) if t.rows]
    typical = kernels or list(zip(sums, sizes, strict=True))
    mean = sum(jnp.sum(x) for x, _ in typical) / sum(n for _, n in typical)
    # If all anchors are zero (as for adapters), there is no scale to measure by: use 1.
    mean = jnp.where(mean > 0, mean, 1.0)

    units = []
    for x, size, tensor in zip(sums, sizes, layout.tensors, strict=True):
        rows = tensor.row_count(norm)
        own = (x / rows) ** (1 / power)
        usual = jnp.full_like(own, (size / tensor.groups / rows * mean) ** (1 / power))
        units.append(jnp.where(own > 0, own, usual) if tensor.rows else usual)
    # Squares of an anchor overflow from 1e19, and an infinite unit would block every step.
    flat = [replicate(x).reshape(-1).astype(dtype) for x in units]
    return jnp.minimum(jnp.concatenate(flat), jnp.finfo(dtype).max)
