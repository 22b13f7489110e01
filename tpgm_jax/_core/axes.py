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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tpgm_jax._core import names as _names
from tpgm_jax._core.layout_text import note_for_error
from tpgm_jax._core.names import (
    Exclude,
    check_unique,
    exclude_flags,
    leaf_names,
    match_pattern,
)
from tpgm_jax._core.rows_by_name import rows_by_name


class Axes(NamedTuple):
    """Which axes of a tensor index its rows, and which index stacked layers.

    Axes are counted in the whole tensor, from the front or (negative) from the back.

    Attributes:
        rows: axis or axes that index output units. `()` makes each layer one row. `None`
            (default): read from the name and shape, ignoring layer axes: as Flax's modules have
            them; the first axis if the leaf is called `weight` (PyTorch, Equinox); else the last.
            A tensor with one axis besides its layers (a bias, a scale) is always one row.
        layers: axis or axes that index stacked layers.

    Examples:
        A scanned decoder with layers first, and Keras's embeddings with a row for each token:

        >>> import tpgm_jax
        >>> scanned = {"layers/.*": tpgm_jax.Axes(layers=0)}
        >>> keras = {".*embeddings": tpgm_jax.Axes(rows=0)}
    """

    rows: int | Sequence[int] | None = None
    layers: int | Sequence[int] = ()


AxesSpec = Mapping[str, Axes] | Callable[[str, jax.Array], Axes | None]


class Tensor(NamedTuple):
    """A leaf of the parameters.

    Attributes:
        name: its path.
        shape: its shape.
        rows: axes that index rows, counted from the front, sorted.
        layers: axes that index stacked layers, likewise.
        constrained: whether it has radii; if not, the base optimizer alone updates it.
    """

    name: str
    shape: tuple[int, ...]
    rows: tuple[int, ...]
    layers: tuple[int, ...]
    constrained: bool = True

    @property
    def inputs(self) -> tuple[int, ...]:
        """Axes along which one row extends."""
        return other_axes(len(self.shape), self.rows + self.layers)

    @property
    def radius_shape(self) -> tuple[int, ...]:
        """Shape of this tensor's radii, which broadcasts against it."""
        return tuple(n if i in self.layers else 1 for i, n in enumerate(self.shape))

    @property
    def groups(self) -> int:
        """How many radii constrain this tensor."""
        return math.prod(self.radius_shape)

    def row_count(self, norm: str) -> int:
        """How many norms are taken in each group."""
        return math.prod(self.shape[axis] for axis in self.rows) if norm == "mars" else 1


class GuessedRowsWarning(UserWarning):
    """Rows of a tensor are a guess, because its name and its shape do not determine them."""


class Layout(NamedTuple):
    """The leaves of a tree. Static: it holds no arrays.

    Attributes:
        leaves: a `Tensor` for each leaf, in the order of `jax.tree.leaves`.
    """

    leaves: tuple[Tensor, ...]

    @property
    def tensors(self) -> list[Tensor]:
        """The constrained leaves."""
        return [tensor for tensor in self.leaves if tensor.constrained]

    @property
    def groups(self) -> int:
        """How many radii there are, `G`."""
        return sum(tensor.groups for tensor in self.tensors)

    def constrained(self, tree: Any) -> list[Any]:
        """The constrained leaves of `tree`."""
        pairs = zip(_names.leaves(tree), self.leaves, strict=True)
        return [leaf for leaf, tensor in pairs if tensor.constrained]

    def unconstrained(self, tree: Any) -> list[Any]:
        """The other leaves of `tree`."""
        pairs = zip(_names.leaves(tree), self.leaves, strict=True)
        return [leaf for leaf, tensor in pairs if not tensor.constrained]

    def replace(
        self, tree: Any, constrained: Sequence[jax.Array], others: Sequence[jax.Array] | None = None
    ) -> Any:
        """`tree` with other constrained leaves, and with other unconstrained ones if given."""
        old, treedef = jax.tree.flatten(tree, is_leaf=_names.is_nothing)
        new = iter(constrained)
        rest = iter(others) if others is not None else None
        pairs = zip(old, self.leaves, strict=True)
        return treedef.unflatten(
            [next(new) if t.constrained else x if rest is None else next(rest) for x, t in pairs]
        )


def make_layout(
    params: Any, exclude: Exclude | None = None, axes: AxesSpec | None = None
) -> Layout:
    """Decides which leaves of `params` are constrained, and their rows and layers.

    It reads names, shapes and dtypes only, so it also runs under tracing.

    Raises:
        ValueError: a pattern matches nothing; axes are out of range or overlap; everything is
            excluded.
        TypeError: a constrained leaf is not real floating point.
    """
    return read_layout(params, exclude, axes)[0]


def read_layout(
    params: Any, exclude: Exclude | None = None, axes: AxesSpec | None = None
) -> tuple[Layout, list[Tensor]]:
    """The layout of `params`, and the constrained tensors whose rows are a guess."""
    names, leaves = leaf_names(params), jax.tree.leaves(params)
    _check_leaves(names, leaves)
    shapes = dict(zip(names, map(jnp.shape, leaves), strict=True))
    try:
        return _read_layout(names, leaves, shapes, exclude, axes)
    except Exception as error:
        rows, guesses = rows_by_name(shapes, dict.fromkeys(names, ()))
        plain = [Tensor(name, shape, rows[name], ()) for name, shape in shapes.items()]
        error.add_note(note_for_error(str(error), plain, guesses))
        raise


def _read_layout(
    names: list[str],
    leaves: list[Any],
    shapes: dict[str, tuple[int, ...]],
    exclude: Exclude | None,
    axes: AxesSpec | None,
) -> tuple[Layout, list[Tensor]]:
    declared = _declared_axes(axes, names, leaves)
    layers = {
        name: _from_front(declared[name].layers, "layers", name, shapes[name]) for name in names
    }
    by_name, guesses = rows_by_name(shapes, layers)

    tensors: list[Tensor] = []
    flags = exclude_flags(exclude, names, leaves)
    for name, leaf, flag in zip(names, leaves, flags, strict=True):
        shape = shapes[name]
        # An empty leaf cannot move, and its rows have no largest norm.
        if flag or math.prod(shape) == 0:
            tensors.append(Tensor(name, shape, (), (), constrained=False))
            continue
        _check_dtype(name, leaf)
        rows = declared[name].rows
        if rows is None:
            rows = by_name[name]
        elif len(shape) < 2:
            rows = ()  # for example the scale of a norm that is called `weight` like the kernels
        else:
            rows = _from_front(rows, "rows", name, shape)
        if set(rows) & set(layers[name]):
            raise ValueError(
                f"`axes` of {name!r} use an axis both for rows {rows} and for layers "
                f"{layers[name]}, because of {declared[name]}: name each axis once."
            )
        if len(other_axes(len(shape), layers[name])) < 2:
            rows = ()
        tensors.append(Tensor(name, shape, rows, layers[name]))
    # An empty tree is fine: a label of `optax.partition` may match nothing.
    if leaves and all(flags):
        raise ValueError(
            "`exclude` leaves no parameter to constrain: it matches all of "
            f"{len(leaves)}. Exclude less, or use the base optimizer on its own."
        )
    guessed = {name for name in guesses if declared[name].rows is None}
    return Layout(tuple(tensors)), [x for x in tensors if x.constrained and x.name in guessed]


def other_axes(rank: int, axes: Sequence[int]) -> tuple[int, ...]:
    """The axes of a tensor of this rank that are not among `axes`."""
    return tuple(i for i in range(rank) if i not in axes)


def _declared_axes(
    axes: AxesSpec | None, names: Sequence[str], leaves: Sequence[Any]
) -> dict[str, Axes]:
    """The `Axes` that the user gave for each leaf. If several patterns match, the first counts."""
    declared: dict[str, Axes | None] = {}
    if callable(axes):
        declared = {name: axes(name, leaf) for name, leaf in zip(names, leaves, strict=True)}
    elif isinstance(axes, Mapping):
        for pattern, value in axes.items():
            for name in match_pattern(pattern, names, "axes"):
                declared.setdefault(name, value)
    elif axes is not None:
        raise TypeError(
            "`axes` must be a dict of patterns, such as `{'layers/.*': Axes(layers=0)}`, or a "
            f"callable `(path, leaf) -> Axes or None`; got {axes!r}."
        )
    for name, value in declared.items():
        if not isinstance(value, Axes | None):
            raise TypeError(f"`axes` gives {value!r} for {name!r}: give a `tpgm_jax.Axes`.")
    return {name: declared.get(name) or Axes() for name in names}


def _from_front(
    given: int | Sequence[int], argument: str, name: str, shape: tuple[int, ...]
) -> tuple[int, ...]:
    """Axes counted from the front, sorted."""
    several: Any = given if isinstance(given, list | tuple | range) else (given,)
    try:
        axes = tuple(map(operator.index, several))
    except TypeError:
        axes = None
    if axes is None or any(isinstance(axis, bool) for axis in several):
        nothing = "; for none, leave it out" if given is None else ""
        raise TypeError(
            f"`axes` gives `{argument}={given!r}` for {name!r}, which is not an axis: pass a whole "
            f"number or a tuple of them, such as `Axes({argument}=0)`{nothing}."
        )
    if not all(-len(shape) <= axis < len(shape) for axis in axes):
        raise ValueError(
            f"`axes` names axis {axes} of {name!r}, out of range because its shape is {shape}."
        )
    from_front = {axis % len(shape) for axis in axes}
    if len(from_front) < len(axes):
        raise ValueError(f"`axes` names an axis of {name!r} twice: {axes}, in shape {shape}.")
    return tuple(sorted(from_front))


def _check_leaves(names: Sequence[str], leaves: Sequence[Any]) -> None:
    check_unique(names)
    for name, leaf in zip(names, leaves, strict=True):
        kind = getattr(getattr(leaf, "dtype", None), "kind", "")
        if kind in tuple("SUOMm") or not (kind or isinstance(leaf, int | float | complex)):
            what = f"an array of {leaf.dtype}" if kind else f"a {type(leaf).__name__}, not an array"
            raise TypeError(
                f"{name!r} is {what}: pass only the trainable arrays, such as "
                "`nnx.state(model, nnx.Param)` or `eqx.filter(model, eqx.is_inexact_array)`."
            )


def _check_dtype(name: str, leaf: Any) -> None:
    dtype = jnp.result_type(leaf)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(
            f"{name!r} is complex ({dtype}), and radii are real: wrap the transformation in "
            "`optax.contrib.split_real_and_imaginary`, or `exclude` it."
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{name!r} has dtype {dtype}, and a projection moves floating-point numbers only: "
            "`exclude` it, or keep it out of the tree of trainable parameters."
        )
