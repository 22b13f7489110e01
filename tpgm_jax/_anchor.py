"""What the states keep of the parameters: the anchor, and trees shaped like it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from tpgm_jax._axes import Layout
from tpgm_jax._names import by_name


def copied(params: optax.Params, layout: Layout) -> optax.Params:
    """`params`, leaf for leaf; nothing is kept of the leaves that are not constrained.

    Copied, so that a jitted step may donate both the parameters and the state. A
    `jax.ShapeDtypeStruct` stays one: zeros in its place would be a wrong anchor.
    """

    def copy(leaf):
        return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.copy(leaf)

    return _mapped(copy, params, layout)


def zeros(params: optax.Params, layout: Layout) -> optax.Params:
    """Zeros shaped like `params`; nothing for the leaves that are not constrained."""
    # The dtype is named because a zero made like a weakly typed number is weak as well,
    # and a state must not change type when it is updated.
    return _mapped(lambda leaf: jnp.zeros_like(leaf, jnp.result_type(leaf)), params, layout)


def _mapped(f, params: optax.Params, layout: Layout) -> optax.Params:
    leaves, treedef = jax.tree.flatten(params)
    pairs = zip(leaves, layout.leaves, strict=True)
    return treedef.unflatten([_empty(x) if t is None else f(x) for x, t in pairs])


def _empty(leaf: Any) -> jax.Array:
    """An array of no elements, and of the rank of `leaf`, so that its sharding fits."""
    return jnp.zeros(empty_shape(jnp.ndim(leaf)), jnp.result_type(leaf))


def empty_shape(rank: int) -> tuple[int, ...]:
    """The shape of what is kept of a leaf that is not constrained."""
    return (0,) * max(rank, 1)


def moved(anchor: optax.Params, params: optax.Params) -> optax.Params:
    """`params` in the structure and dtypes of `anchor`, as a new anchor.

    Leaves are found by name: `params` may hold more of them (`optax.partition` shows
    each transformation its own part), in other containers (`nnx` variables or arrays).
    """
    source = by_name(params)

    def replacement(name, old):
        if jnp.size(old) == 0:  # not constrained: a new head need not be in a checkpoint
            return old
        if name not in source:
            raise ValueError(
                f"`params` lacks {name!r}, which the state is anchored at: pass the "
                "parameters of the model that `init` saw."
            )
        new = source[name]
        if jnp.shape(new) != jnp.shape(old):
            raise ValueError(
                f"`params` has {name!r} of shape {jnp.shape(new)}, but its anchor has shape "
                f"{jnp.shape(old)}: pass the parameters of the model that `init` saw."
            )
        return jnp.array(new, dtype=jnp.result_type(old), copy=True)

    new_leaves = [replacement(name, old) for name, old in by_name(anchor).items()]
    return jax.tree.unflatten(jax.tree.structure(anchor), new_leaves)
