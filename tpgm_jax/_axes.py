"""How each parameter tensor divides into layers and rows.

A *row* is all the weights that feed one output unit; the "mars" norm is taken row by
row. A *layer* is one slice of a tensor that stacks several (`nn.scan`, `nnx.vmap`).
A *group* is what one radius constrains: a tensor, or one layer of a stacked tensor.

    kernel (in, out)              one group, `out` rows of `in` weights
    kernel (layers, in, out)      `layers` groups of `out` rows each
    bias (out,)                   one group of one row
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp

from tpgm_jax import _names
from tpgm_jax._names import Exclude, excluded, leaf_names, matches


class Axes(NamedTuple):
    """Which axes of a tensor index its rows, and which the layers stacked in it.

    Axes are counted as in the whole tensor, from the front or (negative) from the back.

    Attributes:
        rows: axis or axes that index output units. `()` makes each layer one row; `None`,
            the default, reads the rows off the tensor's name and shape as Flax lays it
            out, once the layers are taken away. What has a single axis beside its layers, as
            a bias or the scale of a norm, is one row whatever is said.
        layers: axis or axes that index stacked layers.

    Examples:
        A scanned decoder with layers leading, and a PyTorch layout with outputs leading:

        >>> import tpgm_jax
        >>> scanned = {"layers/.*": tpgm_jax.Axes(layers=0)}
        >>> torch_like = {".*weight": tpgm_jax.Axes(rows=0)}
    """

    rows: int | Sequence[int] | None = None
    layers: int | Sequence[int] = ()


AxesSpec = Mapping[str, Axes] | Callable[[str, Any], Axes | None]


class Tensor(NamedTuple):
    """A constrained leaf.

    Attributes:
        name: its path.
        shape: its shape.
        rows: axes that index rows, counted from the front, sorted.
        layers: axes that index stacked layers, likewise.
    """

    name: str
    shape: tuple[int, ...]
    rows: tuple[int, ...]
    layers: tuple[int, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        """Axes along which one row extends."""
        return _others(len(self.shape), self.rows + self.layers)

    @property
    def radius_shape(self) -> tuple[int, ...]:
        """Shape of this tensor's radii, to broadcast against it."""
        return tuple(n if i in self.layers else 1 for i, n in enumerate(self.shape))

    def smallest(self, norms: jax.Array) -> jax.Array:
        """The smallest of the rows' norms in each group, of `radius_shape`."""
        return jnp.min(norms, axis=self.rows, keepdims=True)

    def largest(self, norms: jax.Array) -> jax.Array:
        """The largest of the rows' norms in each group, of `radius_shape`."""
        return jnp.max(norms, axis=self.rows, keepdims=True)

    @property
    def groups(self) -> int:
        """How many radii constrain this tensor."""
        return math.prod(self.radius_shape)


class Layout(NamedTuple):
    """How the leaves of a tree are constrained. Static: it holds no arrays.

    Attributes:
        leaves: for each leaf, in the order of `jax.tree.leaves`, its `Tensor`, or `None`
            where the base optimizer has it to itself.
    """

    leaves: tuple[Tensor | None, ...]

    @property
    def tensors(self) -> list[Tensor]:
        """The constrained leaves."""
        return [tensor for tensor in self.leaves if tensor is not None]

    @property
    def groups(self) -> int:
        """How many radii there are, `G`."""
        return sum(tensor.groups for tensor in self.tensors)

    @property
    def layers(self) -> list[int]:
        """For each leaf how many layers it stacks; 0: it is not stacked; -1: excluded."""
        return [-1 if t is None else t.groups if t.layers else 0 for t in self.leaves]

    def select(self, tree: Any) -> list[jax.Array]:
        """The leaves of `tree` that are constrained."""
        pairs = zip(_names.leaves(tree), self.leaves, strict=True)
        return [jnp.asarray(leaf) for leaf, tensor in pairs if tensor is not None]

    def leave(self, tree: Any) -> list[jax.Array]:
        """The leaves of `tree` that are not constrained."""
        pairs = zip(jax.tree.leaves(tree), self.leaves, strict=True)
        return [leaf for leaf, tensor in pairs if tensor is None]

    def replace(self, tree: Any, constrained: Sequence[jax.Array]) -> Any:
        """`tree` with its constrained leaves exchanged for those given."""
        old, treedef = jax.tree.flatten(tree, is_leaf=_names.is_nothing)
        new = iter(constrained)
        pairs = zip(old, self.leaves, strict=True)
        return treedef.unflatten([x if t is None else next(new) for x, t in pairs])


def layout(params: Any, exclude: Exclude | None = None, axes: AxesSpec | None = None) -> Layout:
    """Decides which leaves of `params` are constrained, and their rows and layers.

    Only names, shapes and dtypes are read, so that it runs while a step is traced.

    Raises:
        ValueError: a pattern matches nothing; axes out of range or overlapping;
            everything excluded.
        TypeError: a constrained leaf is not real floating point.
    """
    names, leaves = leaf_names(params), jax.tree.leaves(params)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(
            f"two parameters have the same path, {twice!r}, so that no name tells them apart: "
            "rename a key that has a slash in it."
        )
    for name, leaf in zip(names, leaves, strict=True):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, int | float | complex):
            raise TypeError(
                f"{name!r} is a {type(leaf).__name__} and no array: pass the trainable arrays "
                "alone, such as `eqx.filter(model, eqx.is_inexact_array)`."
            )
    shapes = dict(zip(names, map(jnp.shape, leaves), strict=True))
    declared = _declared(axes, names, leaves)
    layers = {name: _normalised(declared[name].layers, name, shapes[name]) for name in names}

    tensors: list[Tensor | None] = []
    flags = excluded(exclude, names, leaves)
    for name, leaf, flag in zip(names, leaves, flags, strict=True):
        # An empty leaf can not move, and its rows have no largest norm.
        if flag or math.prod(shapes[name]) == 0:
            tensors.append(None)
            continue
        _check_dtype(name, leaf)
        rows = declared[name].rows
        if rows is None:
            rows = _flax_rows(name, shapes, layers)
        elif len(shapes[name]) < 2:
            rows = ()  # such as the scale of a norm, where that is a `weight` too
        else:
            rows = _normalised(rows, name, shapes[name])
        if set(rows) & set(layers[name]):
            raise ValueError(
                f"`axes` of {name!r} use an axis both for rows {rows} and for layers "
                f"{layers[name]}, because of {declared[name]}: name each axis once."
            )
        if len(_others(len(shapes[name]), layers[name])) < 2:
            rows = ()
        tensors.append(Tensor(name, shapes[name], rows, layers[name]))
    # A tree without leaves is no mistake: a label of `optax.partition` may be empty.
    if leaves and all(flags):
        raise ValueError(
            "`exclude` leaves no parameter to constrain: it matches all of "
            f"{len(leaves)}. Exclude less, or use the base optimizer on its own."
        )
    return Layout(tuple(tensors))


def _declared(
    axes: AxesSpec | None, names: Sequence[str], leaves: Sequence[Any]
) -> dict[str, Axes]:
    """What `axes` says of each leaf; where several patterns match, the first."""
    found: dict[str, Axes | None] = {}
    if callable(axes):
        found = {name: axes(name, leaf) for name, leaf in zip(names, leaves, strict=True)}
    elif isinstance(axes, Mapping):
        for pattern, value in axes.items():
            for name in matches(pattern, names, "axes"):
                found.setdefault(name, value)
    elif axes is not None:
        raise TypeError(
            "`axes` must be a dict of patterns, such as `{'layers/.*': Axes(layers=0)}`, or a "
            f"callable `(path, leaf) -> Axes or None`; got {axes!r}."
        )
    for name, value in found.items():
        if not isinstance(value, Axes | None):
            raise TypeError(f"`axes` gives {value!r} for {name!r}: give a `tpgm_jax.Axes`.")
    return {name: found.get(name) or Axes() for name in names}


def _normalised(axes: int | Sequence[int], name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    axes = (axes,) if isinstance(axes, SupportsIndex) else tuple(axes)
    axes = tuple(map(operator.index, axes))
    if not all(-len(shape) <= axis < len(shape) for axis in axes):
        raise ValueError(
            f"`axes` names axis {axes} of {name!r}, out of range because its shape is {shape}."
        )
    counted = {axis % len(shape) for axis in axes}
    if len(counted) < len(axes):
        raise ValueError(f"`axes` names an axis of {name!r} twice: {axes}, in shape {shape}.")
    return tuple(sorted(counted))


def _flax_rows(
    name: str, shapes: Mapping[str, tuple[int, ...]], layers: Mapping[str, tuple[int, ...]]
) -> tuple[int, ...]:
    """Row axes as Flax lays out its modules (linen and NNX)."""
    rest = _others(len(shapes[name]), layers[name])
    module, _, leaf = name.rpartition("/")
    # Norm scales and biases are one row whatever their rank: attention's are 2-D.
    if len(rest) < 2 or leaf in ("bias", "scale"):
        return ()
    if leaf == "embedding":
        return rest[:1]
    if leaf == "kernel":
        bias = f"{module}/bias" if module else "bias"
        if bias in shapes:
            units = [shapes[bias][i] for i in _others(len(shapes[bias]), layers[bias])]
            rows = _axes_of_sizes(units, rest, shapes[name])
            # A row needs inputs; without any the bias stacks layers that `axes` omits.
            if rows and len(rows) < len(rest):
                return rows
        if module.rpartition("/")[2] in ("query", "key", "value") and len(rest) == 3:
            return rest[-2:]
    return rest[-1:]


def _axes_of_sizes(
    sizes: Sequence[int], axes: Sequence[int], shape: tuple[int, ...]
) -> tuple[int, ...]:
    """The last of `axes` that have these sizes in this order, or `()`.

    A module adds its bias to its outputs, so the bias's shape tells output axes from
    input axes: `(heads, head_dim)` of `(in, heads, head_dim)`.
    """
    found: list[int] = []
    left = list(axes)
    for size in reversed(sizes):
        while left and shape[left[-1]] != size:
            left.pop()
        if not left:
            return ()
        found.append(left.pop())
    return tuple(sorted(found))


def _others(rank: int, axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(i for i in range(rank) if i not in axes)


def _check_dtype(name: str, leaf: Any) -> None:
    dtype = jnp.result_type(leaf)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(
            f"{name!r} is complex ({dtype}), and radii are real: wrap the transformation in "
            "`optax.contrib.split_real_and_imaginary`, or `exclude` it."
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{name!r} has dtype {dtype}, which no projection can move: `exclude` it, or "
            "keep it out of the tree of trainable parameters."
        )
