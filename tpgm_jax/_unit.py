"""How far a radius moves in one step of its optimizer: in units of the norm, or of the anchor.

A distance of 0.01 is far for a bias of 32 numbers and near for a row of 576 weights. In units of
the anchor a step is one of `rho = r / U`, where for each group

    mars:  U = mean over rows of N(W0)    l2:  U = N(W0)                 kernels
           U = n * mean |W0|                   U = sqrt(n * mean W0^2)   a single row of n numbers

with the means of the second line over all numbers of all kernels: biases start at zero, and the
scales of norms at one, which says nothing of how far they may go.
"""

import math

import jax
import jax.numpy as jnp

from tpgm_jax import _radii
from tpgm_jax._axes import Layout, Tensor
from tpgm_jax._projection import norms


def units(
    unit: str, anchor: list[jax.Array], layout: Layout, norm: str, dtype: jnp.dtype
) -> jax.Array:
    """`U` of each group, `[G]`, positive; ones if `unit` is "norm"."""
    if unit == "norm" or not anchor:
        return _radii.full(layout, 1.0, dtype)
    sums = [row_sums(x, t, norm, dtype) for x, t in zip(anchor, layout.tensors, strict=True)]
    return from_sums(sums, layout, norm, dtype)


def row_sums(anchor: jax.Array, tensor: Tensor, norm: str, dtype: jnp.dtype) -> jax.Array:
    """All that is needed of one tensor: the sum over rows of `N(W0)`, or of its square for "l2"."""
    # Row by row and then over rows, as the hyper-gradients are summed, so that devices add up both
    # in one go.
    power = 1 if norm == "mars" else 2
    return jnp.sum(norms(anchor.astype(dtype), tensor, norm) ** power, tensor.rows, keepdims=True)


def from_sums(sums: list[jax.Array], layout: Layout, norm: str, dtype: jnp.dtype) -> jax.Array:
    """`U` of each group, from the `row_sums` of each tensor."""
    power = 1 if norm == "mars" else 2
    sizes = [math.prod(tensor.shape) for tensor in layout.tensors]
    kernels = [(x, n) for x, n, t in zip(sums, sizes, layout.tensors, strict=True) if t.rows]
    typical = kernels or list(zip(sums, sizes, strict=True))
    mean = sum(jnp.sum(x) for x, _ in typical) / sum(n for _, n in typical)
    # An anchor of zeros has no size; adapters start so, and then a unit is as good as another.
    mean = jnp.where(mean > 0, mean, 1.0)

    found = []
    for x, tensor in zip(sums, layout.tensors, strict=True):
        rows = math.prod(tensor.shape[axis] for axis in tensor.rows) if norm == "mars" else 1
        count = math.prod(tensor.shape) / tensor.groups / rows
        own = (x / rows) ** (1 / power)
        usual = jnp.full_like(own, (count * mean) ** (1 / power))
        found.append(jnp.where(own > 0, own, usual) if tensor.rows else usual)
    # Squares of an anchor overflow from 1e19; an infinite unit would never let a step be made.
    return jnp.minimum(_radii.gather(found, layout, dtype), jnp.finfo(dtype).max)
