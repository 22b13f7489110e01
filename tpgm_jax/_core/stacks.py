"""Equal tensors, whose norms and radii are computed together.

A model has hundreds of tensors but few kinds of them. What the methods compute for each row or
group (norms, inner products, radii, ratios) is one array `[k, ...]` for the `k` tensors of a kind,
because XLA takes milliseconds to compile each operation. A list of such arrays, one for each kind,
is called *stacks*.
"""

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tpgm_jax._core.axes import Layout, Tensor
from tpgm_jax._core.ball import norm_axes, wide_dtype

# The time to compile a concatenation grows faster than linearly with its operands.
LARGEST = 100


class Kind(NamedTuple):
    """The constrained leaves of one stack. Static.

    Attributes:
        tensor: the first of them.
        members: their places among the constrained leaves.
        groups: the places of their radii in `[G]`, in the order of the stack.
    """

    tensor: Tensor
    members: list[int]
    groups: np.ndarray


def make_kinds(layout: Layout, leaves: Sequence[jax.Array]) -> list[Kind]:
    """Sorts the constrained leaves by shape, rows, layers and precision.

    Leaves are of one kind only if their names differ in nothing but numbers, such as
    `block_0/out/kernel` and `block_1/out/kernel`. Others of the same shape may be sharded
    differently, which is not visible under `jax.jit`, and devices would have to exchange rows.
    """
    stops = list(itertools.accumulate(tensor.groups for tensor in layout.tensors))
    members = defaultdict(list)
    for i, (tensor, leaf) in enumerate(zip(layout.tensors, leaves, strict=True)):
        family = re.sub(r"\d+", "#", tensor.name)
        sharding = jax.typeof(leaf).sharding.spec
        key = tensor.shape, tensor.rows, tensor.layers, wide_dtype(leaf), sharding, family
        members[key].append(i)
    kinds = []
    for several in members.values():
        for start in range(0, len(several), LARGEST):
            chunk = several[start : start + LARGEST]
            tensor = layout.tensors[chunk[0]]
            groups = [np.arange(stops[i] - tensor.groups, stops[i]) for i in chunk]
            kinds.append(Kind(tensor, chunk, np.concatenate(groups)))
    return kinds


def sum_leaves(
    terms: Callable[..., jax.Array],
    leaves: Sequence[Sequence[jax.Array]],
    kinds: Sequence[Kind],
    norm: str,
    stacks: Sequence[jax.Array] | None = None,
) -> list[jax.Array]:
    """Stacks of sums of `terms`, one for each norm.

    Args:
        terms: computes what is summed from one array of each of `leaves`, and one of `stacks`.
        leaves: lists of arrays, one for each leaf.
        kinds: of the leaves.
        norm: "mars" for a sum over each row, "l2" for a sum over each group.
        stacks: a last argument of `terms`, which broadcasts against leaves.
    """
    entries = [unstack(stacks, kinds)] if stacks is not None else []
    result = []
    for i, kind in enumerate(kinds):
        axes = norm_axes(kind.tensor, norm)
        if len(kind.tensor.shape) < 2:  # one sum of all vectors, instead of one for each
            arguments = [jnp.stack([x[i] for i in kind.members]) for x in leaves]
            arguments += [] if stacks is None else [stacks[i]]
            axes = tuple(axis + 1 for axis in axes)
            result.append(jnp.sum(terms(*arguments), axis=axes, keepdims=True))
        else:
            arguments = [[x[i] for x in (*leaves, *entries)] for i in kind.members]
            sums = [jnp.sum(terms(*leaf), axis=axes, keepdims=True) for leaf in arguments]
            result.append(jnp.stack(sums))
    return result


def unstack(stacks: Sequence[jax.Array], kinds: Sequence[Kind]) -> list[jax.Array]:
    """One array for each kind to one for each leaf."""
    leaves: list[jax.Array] = [jnp.zeros([])] * sum(len(kind.members) for kind in kinds)
    for array, kind in zip(stacks, kinds, strict=True):
        for place, i in enumerate(kind.members):
            leaves[i] = _entry(array, place)
    return leaves


def _entry(array: jax.Array, place: int) -> jax.Array:
    """`array[place]`, by a gather of two entries.

    XLA fuses a slice into the kernel that uses it, and then compiles a kernel for each leaf because
    each slice is another. It does not fuse this gather, so equal leaves share one kernel.
    """
    k, *shape = array.shape
    indices = np.array([[place], [k if place == 0 else 0]], np.int32)
    numbers = jax.lax.GatherDimensionNumbers(
        offset_dims=tuple(range(1, array.ndim)), collapsed_slice_dims=(0,), start_index_map=(0,)
    )
    # `array.at[...].get` is the same, and takes four times as long to trace.
    pair = jax.lax.gather(array, indices, numbers, (1, *shape), mode="clip")
    return jax.lax.index_in_dim(pair, 0, keepdims=False)


def spread(radii: jax.Array, kinds: Sequence[Kind], leaves: Sequence[jax.Array]) -> list[jax.Array]:
    """`[G]` to stacks that broadcast against stacked leaves, in their wide dtype."""
    stacks = []
    for kind in kinds:
        leaf = leaves[kind.members[0]]
        radius = _take(radii, kind.groups).reshape(-1, *kind.tensor.radius_shape)
        stacks.append(_shard_like(radius.astype(wide_dtype(leaf)), leaf, kind.tensor.layers))
    return stacks


def gather(stacks: Sequence[jax.Array], kinds: Sequence[Kind], dtype: jnp.dtype) -> jax.Array:
    """Stacks of `radius_shape` to `[G]`: the inverse of `spread`."""
    if not kinds:
        return jnp.zeros(0, dtype)
    flat = [replicate(array).reshape(-1).astype(dtype) for array in stacks]
    order = np.argsort(np.concatenate([kind.groups for kind in kinds]))
    return _take(jnp.concatenate(flat), order)


def _take(array: jax.Array, places: np.ndarray) -> jax.Array:
    """`array[places]`, as a slice if the places are consecutive."""
    first = int(places[0])
    if np.array_equal(places, np.arange(first, first + len(places))):
        return array[first : first + len(places)]
    return array[places]


def _shard_like(stacked: jax.Array, leaf: jax.Array, axes: Sequence[int]) -> jax.Array:
    """`stacked`, sharded like `leaf` along these axes of the leaf and replicated along others.

    For meshes with explicit axes, where layers may be on different devices: arrays with different
    shardings cannot be concatenated or selected from. The compiler handles automatic axes.
    """
    mesh, spec = jax.typeof(leaf).sharding.mesh, jax.typeof(leaf).sharding.spec
    if all(axis is None for axis in spec):
        return stacked
    wanted = [x if i in axes else None for i, x in enumerate(spec)]
    spec = jax.sharding.PartitionSpec(None, *wanted)
    return jax.sharding.reshard(stacked, jax.sharding.NamedSharding(mesh, spec))


def replicate(array: jax.Array) -> jax.Array:
    """`array` on all devices, if it is sharded over explicit axes."""
    mesh, spec = jax.typeof(array).sharding.mesh, jax.typeof(array).sharding.spec
    if all(axis is None for axis in spec):
        return array
    return jax.sharding.reshard(
        array, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    )


def reshard_like(array: jax.Array, like: jax.Array) -> jax.Array:
    """`array` with the sharding of `like` over explicit axes."""
    old, new = jax.typeof(array).sharding, jax.typeof(like).sharding
    return array if old.spec == new.spec else jax.sharding.reshard(array, new)
