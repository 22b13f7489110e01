"""Rules for products: `dot_general`, `ragged_dot_general` and `conv_general_dilated`."""

import math
from collections.abc import Sequence
from typing import Any

from tpgm_jax._infer_axes.moves import (
    STACKED,
    Atom,
    Value,
    View,
    axes_in,
    data,
    is_data,
    is_stacked,
    parameters,
    repeats,
    repetition,
)
from tpgm_jax._infer_axes.walk import Walk


def dot_general(walk: Walk, eqn: Any, values: list[Value]) -> list[Value]:
    contracted, batch = eqn.params["dimension_numbers"]
    shapes = [x.aval.shape for x in eqn.invars]
    roles = [
        ["input" if i in c else "layer" if i in b else "row" for i in range(len(shape))]
        for c, b, shape in zip(contracted, batch, shapes, strict=True)
    ]
    # For each axis of the result, the axis of each operand.
    left, right = ([i for i, role in enumerate(x) if role == "row"] for x in roles)
    sources = (
        [*batch[0], *left, *[None] * len(right)],
        [*batch[1], *[None] * len(left), *right],
    )
    shape = eqn.outvars[0].aval.shape
    weights = [bool(parameters(value)) and not is_data(value) for value in values]
    if all(weights):
        repeat = [repeats(value) for value in values]
        if repeat[0] == repeat[1]:
            return [product(walk, values, contracted, sources, shape)]
        i = repeat.index(True)  # an activation, such as a learned query of each example
        values[i] = walk.as_data(values[i], shapes[i])
    for i, value in enumerate(values):
        # An embedding that meets a weight is an activation, and is recorded by `gather`.
        if is_data(value) and weights[1 - i]:
            continue
        if weights[i] and set(roles[i]) == {"layer"}:  # einsum("...k,k->...k", x, scale)
            walk.use(value, "elementwise", scale_roles(values[1 - i], batch[i], batch[1 - i]))
        else:
            walk.use(value, "dot_general", roles[i])
    return [product_with_data(values, sources, shape, len(batch[0]))] if any(values) else [()]


def scale_roles(other: Value, axes: Sequence[int], places: Sequence[int]) -> list[str]:
    """The roles of the axes of a scale, from the data that it scales.

    Args:
        other: the data.
        axes: axes of the scale.
        places: the axes of `other` that they meet.
    """
    marked = {i for view in other if view.name is None for i in places if is_stacked(view.dims[i])}
    place = dict(zip(axes, places, strict=True))
    return ["layer" if place[axis] in marked else "input" for axis in sorted(axes)]


def product(
    walk: Walk,
    values: Sequence[Value],
    contracted: Sequence[Sequence[int]],
    sources: Sequence[Sequence[int | None]],
    shape: Sequence[int],
) -> Value:
    """The product of two parameters, such as a low-rank pair."""
    views: dict[str | None, View] = {}
    for value, axes, source in zip(values, contracted, sources, strict=True):
        for view in value:
            if view.name in views:
                walk.give_up((view,), "dot_general", "it is multiplied by itself")
                return walk.as_data(tuple(x for x in views.values() if x.name != view.name), shape)
            pairs = zip(source, shape, strict=True)
            dims = tuple(repetition(n) if i is None else view.dims[i] for i, n in pairs)
            inner = {*view.inner, *(axis for i in axes for axis in axes_in(view.dims[i]))}
            views[view.name] = view._replace(dims=dims, inner=tuple(sorted(inner)), merged=False)
    return tuple(views.values())


def product_with_data(
    values: Sequence[Value],
    sources: Sequence[Sequence[int | None]],
    shape: Sequence[int],
    batch: int,
) -> Value:
    """The result of a product with data: axes along which weights are stacked are marked."""
    (result,) = data(shape)
    dims = list(result.dims)
    for value, source in zip(values, sources, strict=True):
        for view in value:
            for to, i in enumerate(source):
                atoms = () if i is None else view.dims[i]
                stacks = to < batch and view.name is not None and axes_in(atoms)
                if is_stacked(atoms) or stacks:
                    dims[to] = (Atom((STACKED,), shape[to]),)
    return (result._replace(dims=tuple(dims)),)


def ragged_dot(walk: Walk, eqn: Any, values: list[Value]) -> list[Value]:
    """A product of each expert with its part of the tokens."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (_, contracted), (_, batch) = numbers.dot_dimension_numbers
    layers = (*batch, *numbers.rhs_group_dimensions)
    rank = len(eqn.invars[1].aval.shape)
    roles = ["input" if i in contracted else "layer" if i in layers else "row" for i in range(rank)]
    return use_second_operand(walk, eqn, values, roles)


def conv(walk: Walk, eqn: Any, values: list[Value]) -> list[Value]:
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    inputs, outputs = numbers.lhs_spec[1], numbers.rhs_spec[0]
    roles = ["row" if i == outputs else "input" for i in range(len(numbers.rhs_spec))]
    stack = _kernel_stack_sizes(values, inputs, outputs, groups)
    kernel = tuple(_split_off(view, outputs, len(stack)) for view in values[1])
    ((result,),) = use_second_operand(walk, eqn, [values[0], kernel], [*roles, "layer"])
    features, dims = numbers.out_spec[1], list(result.dims)
    (whole,) = dims[features]
    rest = whole._replace(size=whole.size // math.prod(stack))
    dims[features] = (*(Atom((STACKED,), size) for size in stack), rest)
    return [(result._replace(dims=tuple(dims)),)]


def _kernel_stack_sizes(
    values: Sequence[Value], inputs: int, outputs: int, groups: int
) -> list[int]:
    """Sizes of the axes that stack kernels.

    `vmap` turns stacked kernels into the groups of one kernel, and merges their inputs alike.
    """
    images = [view.dims[inputs] for view in values[0] if view.name is None]
    kernels = [view.dims[outputs] for view in values[1]]
    sizes: list[int] = []
    if not images or not kernels:
        return sizes
    for image, kernel in zip(images[0][:-1], kernels[0][:-1], strict=False):
        if image.size != kernel.size or groups % kernel.size:
            break
        sizes.append(kernel.size)
        groups //= kernel.size
    return sizes


def _split_off(view: View, axis: int, n: int) -> View:
    """The first `n` atoms of an axis as an axis of their own, the last one."""
    atoms = view.dims[axis]
    dims = (*view.dims[:axis], atoms[n:], *view.dims[axis + 1 :], atoms[:n] or repetition(1))
    return view._replace(dims=dims)


def use_second_operand(
    walk: Walk, eqn: Any, values: list[Value], roles: Sequence[str]
) -> list[Value]:
    """The result of an operation whose second operand is the weight."""
    if is_data(values[1]):
        problem = f"`{eqn.primitive.name}` multiplies it by weights that depend on data"
        walk.give_up(values[0], eqn.primitive.name, problem)
    else:
        walk.as_data(values[0], eqn.invars[0].aval.shape)
    walk.use(values[1], eqn.primitive.name, roles)
    return [data(eqn.outvars[0].aval.shape)]
