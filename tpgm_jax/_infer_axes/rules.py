"""Rules for the operations of a jaxpr, and the table from primitives to rules.

A product contracts inputs, an index selects rows, and a loop runs over layers.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from jax.extend.core import Literal

from tpgm_jax._infer_axes.moves import (
    Atom,
    Value,
    View,
    atoms_of_size,
    axes_in,
    broadcast_dims,
    cut,
    data,
    fit_shape,
    is_data,
    join_views,
    parameters,
    repeats,
    repetition,
    varies,
)
from tpgm_jax._infer_axes.products import conv, dot_general, ragged_dot
from tpgm_jax._infer_axes.walk import Rule, Use, Walk, open_jaxpr


def find_uses(
    jaxpr: Any,
    names: Sequence[str | None],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, list[Use]]:
    """The uses of each parameter, in the order of the forward pass.

    Args:
        jaxpr: the function.
        names: for each input, the parameter that it is, or `None` for data.
        shapes: shapes of the parameters, by name.
    """
    walk = Walk(shapes, RULES)
    inputs: list[Value] = []
    for name, var in zip(names, open_jaxpr(jaxpr).invars, strict=True):
        shape = getattr(var.aval, "shape", ())
        whole = tuple((Atom((axis,), n),) for axis, n in enumerate(shape))
        inputs.append(data(shape) if name is None else (View(name, whole),))
    walk.run(jaxpr, inputs)
    return walk.uses


# Rules: from an equation and its inputs to its outputs.


def pass_on(walk: Walk, eqn: Any, values: list[Value]) -> list[Value]:
    return values


def split(walk: Walk, eqn: Any, values: list[Value]) -> list[Value]:
    axis, sizes = eqn.params["axis"], eqn.params["sizes"]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [
        tuple(cut(view, axis, int(start), int(n)) for view in values[0])
        for start, n in zip(starts, sizes, strict=True)
    ]


def elementwise(walk: Walk, eqn: Any, values: list[Value]) -> list[Value]:
    shape = eqn.outvars[0].aval.shape
    varying = [
        tuple(view._replace(dims=broadcast_dims(view, shape)) for view in value)
        for value in values
        if varies(value)
    ]
    return [combine(walk, eqn.primitive.name, varying, shape)]


def concatenate(walk: Walk, eqn: Any, values: list[Value]) -> list[Value]:
    shape = eqn.outvars[0].aval.shape
    varying = [fit_shape(value, shape) for value in values if varies(value)]
    return [combine(walk, eqn.primitive.name, varying, shape)]


def combine(walk: Walk, name: str, varying: Sequence[Value], shape: Sequence[int]) -> Value:
    """Arrays of the same axes as one array."""
    views: dict[str | None, View | None] = {}
    for view in chain(*varying):
        views[view.name] = join_views(views[view.name], view) if view.name in views else view
    kept = tuple(view for view in views.values() if view is not None)
    clashing = tuple(view for view in chain(*varying) if views[view.name] is None)
    walk.give_up(clashing[:1], name, f"`{name}` combines it with a rearrangement of itself")
    weight = len(varying) < 2 or not any(map(is_data, varying))
    products = [view for view in kept if view.inner and not view.merged]
    if weight and len(varying) > 1 and 0 < len(products) < len(kept):
        # `W + A @ B` is a weight, and `A @ B + bias` is an activation.
        weight = any(not view.inner and all(map(axes_in, view.dims)) for view in kept)
        kept = tuple(view._replace(merged=weight and bool(view.inner)) for view in kept)
    return kept if weight else walk.as_data(kept, shape)


def gather(walk: Walk, eqn: Any, values: list[Value]) -> list[Value]:
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    indexed = [i for i in numbers.start_index_map if sizes[i] < eqn.invars[0].aval.shape[i]]
    batched = numbers.operand_batching_dims
    dropped = (*numbers.collapsed_slice_dims, *batched)
    kept = [i for i in range(len(sizes)) if i not in dropped]
    places = dict(zip(numbers.offset_dims, kept, strict=True))
    return [select(walk, eqn, values[0], indexed, batched, sizes, places)]


def dynamic_slice(walk: Walk, eqn: Any, values: list[Value]) -> list[Value]:
    sizes, shape = eqn.params["slice_sizes"], eqn.invars[0].aval.shape
    value, indexed = values[0], []
    for i, start in enumerate(eqn.invars[1:]):
        if isinstance(start, Literal):
            value = tuple(cut(view, i, int(start.val), sizes[i]) for view in value)
        elif sizes[i] == 1 < shape[i]:
            indexed.append(i)
    if not indexed and (parameters(value) or not any(values)):
        return [fit_shape(value, sizes)]
    places = {i: i for i in range(len(sizes))}
    return [select(walk, eqn, value, indexed, (), sizes, places)]


def select(
    walk: Walk,
    eqn: Any,
    value: Value,
    indexed: Sequence[int],
    batched: Sequence[int],
    sizes: Sequence[int],
    places: Mapping[int, int],
) -> Value:
    """Slices at computed indices: data, such as embeddings, which may also be used as weights.

    Args:
        indexed: axes of the array that an index selects from.
        batched: axes along which each slice has an index of its own.
        sizes: of the slices.
        places: axis of the result to axis of the array.
    """
    shape = eqn.outvars[0].aval.shape
    found = data(shape)
    for view in () if is_data(value) else parameters(value):
        dims = list(map(repetition, shape))
        for to, i in places.items():
            if i not in indexed:
                dims[to] = atoms_of_size(view.dims[i], sizes[i])
        new = view._replace(
            dims=tuple(dims),
            layers=(*view.layers, *axes_in([a for i in batched for a in view.dims[i]])),
            looked_up=(*view.looked_up, *axes_in([a for i in indexed for a in view.dims[i]])),
        )
        found += (new,)
        if new.looked_up:
            embedding = walk.describe(new, "gather", ["input"] * len(shape))
            walk.uses[str(view.name)].append(embedding)
    return found


def call(walk: Walk, eqn: Any, values: list[Value]) -> list[Value]:
    inner = next(eqn.params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in eqn.params)
    return walk.run(inner, values)


def cond(walk: Walk, eqn: Any, values: list[Value]) -> list[Value]:
    branches = [walk.run(branch, values[1:]) for branch in eqn.params["branches"]]
    outputs: list[Value] = []
    for var, *results in zip(eqn.outvars, *branches, strict=True):
        if all(result == results[0] for result in results) and results[0]:
            outputs.append(results[0])
            continue
        for result in results:
            walk.give_up(result, "cond", "the branches of a `cond` return different arrays")
        outputs.append(data(var.aval.shape))
    return outputs


def while_(walk: Walk, eqn: Any, values: list[Value]) -> list[Value]:
    tests, consts = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    body, start = open_jaxpr(eqn.params["body_jaxpr"]), values[tests + consts :]
    carry = [loop_carry(walk, *x) for x in zip(body.invars[consts:], start, strict=True)]
    walk.run(eqn.params["cond_jaxpr"], [*values[:tests], *carry])
    walk.run(body, [*values[tests : tests + consts], *carry])
    return carry


def scan(walk: Walk, eqn: Any, values: list[Value]) -> list[Value]:
    body, length = open_jaxpr(eqn.params["jaxpr"]), eqn.params["length"]
    # First constants, then what the loop carries, then what it runs over or stacks up.
    xs, ys = _count_unstacked(eqn.invars, body.invars), _count_unstacked(eqn.outvars, body.outvars)
    consts = xs - ys
    pairs = zip(body.invars[consts:xs], values[consts:xs], strict=True)
    carry = [loop_carry(walk, *x) for x in pairs]
    stacks = {view.name: view.dims[0] for value in values[xs:] for view in value}
    slices = [tuple(map(slice_of, value)) for value in values[xs:]]
    results = walk.run(body, [*values[:consts], *carry, *slices])[ys:]
    return [*carry, *(tuple(stack_of(v, stacks, length) for v in result) for result in results)]


def _count_unstacked(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    """How many arrays are the same outside and inside a loop. The others have one axis more."""
    pairs = zip(outside, inside, strict=True)
    return sum(len(one.aval.shape) == len(two.aval.shape) for one, two in pairs)


def slice_of(view: View) -> View:
    """The view in the body of a loop over the first axis of the array."""
    layers = axes_in(view.dims[0]) if view.name is not None else ()
    return view._replace(dims=view.dims[1:], layers=view.layers + layers)


def stack_of(view: View, stacks: Mapping[str | None, tuple[Atom, ...]], length: int) -> View:
    """The view of the array that a loop stacks up. It undoes `slice_of`."""
    if view.name is None:
        return view._replace(dims=(*data((length,))[0].dims, *view.dims))
    first = stacks.get(view.name, repetition(length))
    layers = view.layers[: len(view.layers) - len(axes_in(first))]
    return view._replace(dims=(first, *view.dims), layers=layers)


def loop_carry(walk: Walk, var: Any, start: Value) -> Value:
    """An array that a loop changes, which is data. JAX makes constants of those that it keeps."""
    if is_data(start) and not parameters(start):
        return start
    if repeats(start):
        return walk.as_data(start, var.aval.shape)
    walk.give_up(start, "loop", "a loop changes it")
    return data(var.aval.shape)


# Operations that act on each entry alone.
ELEMENTWISE = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp conj cos cosh div eq
    erf erf_inv erfc exp exp2 expm1 floor ge gt imag integer_pow is_finite le lgamma log log1p
    logistic lt max min mul ne neg nextafter not or pow real rem round rsqrt select_n shift_left
    shift_right_arithmetic shift_right_logical sign sin sinh sqrt square sub tan tanh xor
"""
CALLS = """
    checkpoint closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr jit pjit
    remat remat2 shard_map
"""
RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE.split(), elementwise),
    **dict.fromkeys(CALLS.split(), call),
    "concatenate": concatenate,
    "cond": cond,
    "conv_general_dilated": conv,
    "device_put": pass_on,
    "dot_general": dot_general,
    "dynamic_slice": dynamic_slice,
    "gather": gather,
    "optimization_barrier": pass_on,
    "ragged_dot_general": ragged_dot,
    "scan": scan,
    "split": split,
    "while": while_,
}
