"""The anchor: where it comes from, and what the states keep of it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from tpgm_jax._axes import Layout
from tpgm_jax._names import Nothing, by_name, closest, is_nothing
from tpgm_jax._placement import in_place_of, on_device

# The parameters that `init` sees, copied into the state; a tree that each `update` is handed;
# or zeros, for adapters that are added to frozen weights.
ANCHORS = ("init", "argument", "zero")


def held(
    params: optax.Params, layout: Layout, source: str, dtype: jax.typing.DTypeLike | None = None
) -> optax.Params:
    """What the state keeps of an anchor of this source, in `dtype` or that of each leaf."""
    return copied(params, layout, dtype) if source == "init" else holes(params)


def used(
    source: str, state_anchor: optax.Params, argument: Any, params: optax.Params, layout: Layout
) -> optax.Params:
    """The anchor that an update measures from, in the structure of `params`, on the device.

    Raises:
        ValueError: an anchor that was handed in but is not asked for, or the reverse; or
            that lacks a constrained leaf, or has it in another shape.
    """
    if (argument is not None) != (source == "argument"):
        raise ValueError(
            "`update` needs the keyword `anchor`, the pre-trained parameters, because the "
            "transformation was built with `anchor='argument'`: call `update(grads, state, "
            "params, anchor=pretrained)`."
            if argument is None
            else "`update` was handed an `anchor`, but the transformation was built with "
            f"`anchor={source!r}` and would not look at it: build it with `anchor='argument'`."
        )
    if source == "init":
        return jax.tree.map(on_device, state_anchor)
    if source == "zero":
        return jax.tree.map(jnp.zeros_like, params)
    remedy = "pass the pre-trained parameters of the same model"
    return matched(argument, params, layout, "the `anchor` handed to `update`", remedy)


def matched(
    tree: Any, params: optax.Params, layout: Layout, what: str, remedy: str
) -> optax.Params:
    """The constrained leaves of `tree` in the structure of `params`, found by name.

    Raises:
        ValueError: `what` lacks a constrained leaf, or has it in another shape; with `remedy`.
    """
    given = by_name(tree)

    def matching(name, leaf, tensor):
        if tensor is None:  # not constrained: a new head need not be in a reference model
            return leaf
        if name not in given or jnp.shape(given[name]) != tensor.shape:
            found = f"of shape {jnp.shape(given[name])}" if name in given else "missing"
            raise ValueError(
                f"{what} has {name!r} {found}, where {tensor.shape} is expected (closest: "
                f"{closest(name, given) or 'none'}): {remedy}, or `exclude` what it lacks."
            )
        return on_device(given[name])

    pairs = zip(by_name(params).items(), layout.leaves, strict=True)
    leaves = [matching(name, leaf, tensor) for (name, leaf), tensor in pairs]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def copied(
    params: optax.Params, layout: Layout, dtype: jax.typing.DTypeLike | None = None
) -> optax.Params:
    """`params`, leaf for leaf; nothing is kept of the leaves that are not constrained.

    Copied, so that a jitted step may donate both the parameters and the state. A
    `jax.ShapeDtypeStruct` stays one: zeros in its place would be a wrong anchor.
    """

    def copy(leaf):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf if dtype is None else leaf.update(dtype=jnp.dtype(dtype))
        return jnp.copy(leaf) if dtype is None else jnp.array(leaf, dtype=dtype, copy=True)

    return _mapped(copy, params, layout)


def zeros(params: optax.Params, layout: Layout) -> optax.Params:
    """Zeros shaped like `params`; nothing for the leaves that are not constrained."""
    # The dtype is named because a zero made like a weakly typed number is weak as well,
    # and a state must not change type when it is updated.
    return _mapped(lambda leaf: jnp.zeros_like(leaf, jnp.result_type(leaf)), params, layout)


def holes(params: optax.Params) -> optax.Params:
    """Nothing for any leaf, under the names of all."""
    return jax.tree.map(lambda _: Nothing(), params)


def _mapped(f, params: optax.Params, layout: Layout) -> optax.Params:
    leaves, treedef = jax.tree.flatten(params)
    pairs = zip(leaves, layout.leaves, strict=True)
    return treedef.unflatten([Nothing() if t is None else f(x) for x, t in pairs])


def moved(anchor: optax.Params, params: optax.Params, what: str = "params") -> optax.Params:
    """`params` in the structure, dtypes and memory of `anchor`, as a new anchor.

    Leaves are found by name: `params` may hold more of them (`optax.partition` shows
    each transformation its own part), in other containers (`nnx` variables or arrays).

    Raises:
        ValueError: `what` lacks a leaf, or has it in another shape.
    """
    source = by_name(params)

    def replacement(name, old):
        if is_nothing(old):  # not constrained: a new head need not be in a checkpoint
            return old
        if name not in source:
            raise ValueError(
                f"`{what}` lacks {name!r}, which the state is anchored at: pass a tree "
                "of the model that `init` saw."
            )
        new = source[name]
        if jnp.shape(new) != jnp.shape(old):
            raise ValueError(
                f"`{what}` has {name!r} of shape {jnp.shape(new)}, but the state's has shape "
                f"{jnp.shape(old)}: pass a tree of the model that `init` saw."
            )
        return in_place_of(old, new)

    new_leaves = [replacement(name, old) for name, old in by_name(anchor).items()]
    return jax.tree.unflatten(jax.tree.structure(anchor, is_leaf=is_nothing), new_leaves)
