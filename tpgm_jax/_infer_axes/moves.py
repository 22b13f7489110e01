"""Operations that only rearrange an array, and how an array holds a parameter's axes.

A `View` lists, for each axis of an array, the axes of the parameter that it runs over. A transpose
permutes that list, a reshape merges or splits its entries, and so on.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

# Data have no parameter's axes. An axis that separates stacked layers is marked.
PLAIN, STACKED = -1, -2


class Atom(NamedTuple):
    """A part of an axis of an array.

    Attributes:
        axes: the parameter's axes that it runs over. Empty if it repeats the parameter.
        size: its length. The sizes of an axis multiply to the axis's length.
    """

    axes: tuple[int, ...]
    size: int


Dims = tuple[tuple[Atom, ...], ...]  # for each axis of an array its atoms, outermost first


class View(NamedTuple):
    """How an array holds the entries of one parameter.

    Attributes:
        name: the parameter; `None` for data.
        dims: which axes of the parameter are in each axis of the array.
        layers: axes that an enclosing loop runs over.
        picked: pairs (axis, index) of slices at a fixed index.
        looked_up: axes that a computed index selects from, as in an embedding.
        inner: axes that are contracted with another parameter, as in a low-rank pair.
        merged: whether that product was added to a third parameter, and so is a weight.
    """

    name: str | None
    dims: Dims
    layers: tuple[int, ...] = ()
    picked: tuple[tuple[int, int], ...] = ()
    looked_up: tuple[int, ...] = ()
    inner: tuple[int, ...] = ()
    merged: bool = False


# A view for each parameter that the array is made of, and one for data. Constants have none.
Value = tuple[View, ...]


def data(shape: Sequence[int]) -> Value:
    return (View(None, tuple((Atom((PLAIN,), n),) for n in shape)),)


def parameters(value: Value) -> Value:
    return tuple(view for view in value if view.name is not None)


def varies(value: Value) -> bool:
    """Whether it is more than a constant or a repeated scalar."""
    return any(atom.axes for view in value for atoms in view.dims for atom in atoms)


def is_data(value: Value) -> bool:
    return varies(tuple(view for view in value if view.name is None))


def repeats(value: Value) -> bool:
    """Whether an axis only repeats the parameters. Then they are not weights of a product."""
    columns = zip(*(view.dims for view in value), strict=True)
    return any(
        all(atom.size > 1 and not atom.axes for atoms in column for atom in atoms)
        for column in columns
    )


def axes_in(atoms: Sequence[Atom]) -> tuple[int, ...]:
    return tuple(sorted({axis for atom in atoms for axis in atom.axes}))


def is_stacked(atoms: Sequence[Atom]) -> bool:
    """Whether an axis of data separates stacked layers, and nothing else."""
    return axes_in(atoms) == (STACKED,)


def repetition(size: int) -> tuple[Atom, ...]:
    return (Atom((), size),)


def atoms_of_size(atoms: tuple[Atom, ...], size: int) -> tuple[Atom, ...]:
    """The atoms of an axis that was cut, padded or concatenated to length `size`."""
    (before,) = _lengths((atoms,))
    return atoms if before == size else (Atom(axes_in(atoms), size),)


def broadcast_dims(view: View, shape: Sequence[int]) -> Dims:
    """The axes of the array, with axes of length 1 repeated if `shape` is longer."""
    return tuple(
        repetition(n) if before == 1 < n and view.name is not None else atoms_of_size(atoms, n)
        for before, n, atoms in zip(_lengths(view.dims), shape, view.dims, strict=True)
    )


def fit_shape(value: Value, shape: Sequence[int]) -> Value:
    """`value` as part of an array of this shape. A scalar is repeated."""

    def fit(dims: Dims) -> Dims:
        if not dims:
            return tuple(map(repetition, shape))
        return tuple(atoms_of_size(atoms, n) for atoms, n in zip(dims, shape, strict=True))

    return tuple(view._replace(dims=fit(view.dims)) for view in value)


def join_views(one: View | None, two: View) -> View | None:
    """Two views of one parameter, combined entry by entry. `None` if they arrange it differently.

    One may be a reduction of the other, such as the norm of a weight that is divided by it.
    """
    if one is None or one._replace(dims=()) != two._replace(dims=()):
        return None
    dims: list[tuple[Atom, ...]] = []
    for a, b in zip(one.dims, two.dims, strict=True):
        if one.name is None:
            dims.append(b if STACKED in axes_in(b) or not axes_in(a) else a)
        elif not axes_in(a) or not axes_in(b) or a == b:
            dims.append(a if axes_in(a) else b)
        else:
            return None
    return one._replace(dims=tuple(dims))


# Rules: from an equation with one array and a view of this array to a view of the result. `None`:
# the result mixes axes.


def same(eqn: Any, view: View) -> View | None:
    return view


def transpose(eqn: Any, view: View) -> View | None:
    return view._replace(dims=tuple(view.dims[i] for i in eqn.params["permutation"]))


def squeeze(eqn: Any, view: View) -> View | None:
    return _without(view, eqn.params["dimensions"])


def reduction(eqn: Any, view: View) -> View | None:
    return _without(view, eqn.params["axes"])


def broadcast_in_dim(eqn: Any, view: View) -> View | None:
    shape, places = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    dims = list(map(repetition, shape))
    for to, atoms in zip(places, broadcast_dims(view, [shape[to] for to in places]), strict=True):
        dims[to] = atoms
    return view._replace(dims=tuple(dims))


def tile(eqn: Any, view: View) -> View | None:
    return view._replace(dims=broadcast_dims(view, eqn.outvars[0].aval.shape))


def reshape(eqn: Any, view: View) -> View | None:
    """Merges axes, or splits them. A part of a split axis is still that axis."""
    order = eqn.params["dimensions"] or range(len(view.dims))
    left = [atom for i in order for atom in view.dims[i]]
    dims: list[tuple[Atom, ...]] = []
    for size in eqn.params["new_sizes"]:
        atoms: list[Atom] = []
        if size == 1 and left and left[0].size == 1:
            atoms.append(left.pop(0))
        while size > 1 and left:
            atom = left.pop(0)
            if atom.size > size and atom.size % size == 0:
                left.insert(0, atom._replace(size=atom.size // size))
                atom = atom._replace(size=size)
            if size % atom.size:
                return None
            atoms.append(atom)
            size //= atom.size
        dims.append(tuple(atoms) or repetition(size))
    return view._replace(dims=tuple(dims))


def resize(eqn: Any, view: View) -> View | None:
    """`pad`, and an `all_gather` along an axis of the array."""
    shape = eqn.outvars[0].aval.shape
    return fit_shape((view,), shape)[0] if len(view.dims) == len(shape) else None


def slice_(eqn: Any, view: View) -> View | None:
    for axis, n in enumerate(eqn.outvars[0].aval.shape):
        view = cut(view, axis, eqn.params["start_indices"][axis], n)
    return view


def cut(view: View, axis: int, start: int, size: int) -> View:
    """A slice along one axis of the array."""
    atoms = view.dims[axis]
    part, picked = atoms_of_size(atoms, size), view.picked
    if size == 1 < atoms[0].size and len(atoms) == 1 and len(atoms[0].axes) == 1 and view.name:
        part, picked = repetition(1), (*picked, (atoms[0].axes[0], start))
    return view._replace(dims=(*view.dims[:axis], part, *view.dims[axis + 1 :]), picked=picked)


def _without(view: View, axes: Sequence[int]) -> View:
    return view._replace(dims=tuple(x for i, x in enumerate(view.dims) if i not in axes))


def _lengths(dims: Dims) -> list[int]:
    return [math.prod(atom.size for atom in atoms) for atoms in dims]


RETYPES = """
    convert_element_type copy copy_p layout_constraint mesh_cast name pcast pvary reduce_precision
    reshard sharding_constraint
"""
REDUCTIONS = """
    argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum
"""
MOVES: dict[str, Callable[[Any, View], View | None]] = {
    **dict.fromkeys(RETYPES.split(), same),
    **dict.fromkeys(REDUCTIONS.split(), reduction),
    "transpose": transpose,
    "squeeze": squeeze,
    "broadcast_in_dim": broadcast_in_dim,
    "reshape": reshape,
    "slice": slice_,
    "pad": resize,
    "all_gather": resize,
    "rev": same,
    "tile": tile,
}
