"""The anchor `W0`: how states store it, and how updates read it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from tpgm_jax._core.axes import Layout
from tpgm_jax._core.names import Nothing, match_by_name
from tpgm_jax._core.placement import copy_like, to_device
from tpgm_jax._core.spec import Spec


def init_anchor(
    params: optax.Params, spec: Spec, dtype: jax.typing.DTypeLike | None = None
) -> optax.Params:
    """The `anchor` field of a new state, in `dtype` or the dtype of each leaf."""
    if spec.anchor_source != "init":
        return empty_like(params)
    if dtype is not None:
        for tensor, leaf in zip(spec.layout.tensors, spec.layout.constrained(params), strict=True):
            _check_range(leaf, dtype, tensor.name)
    return copy_tree(params, spec.layout, dtype)


def initial_anchor_leaves(fields: dict[str, Any], params: optax.Params) -> list[Any]:
    """The constrained leaves of the anchor of a new state, stored or else `params`."""
    spec: Spec = fields["spec"]
    return spec.layout.constrained(fields["anchor"] if spec.anchor_source == "init" else params)


def _check_range(leaf: Any, dtype: jax.typing.DTypeLike, name: str) -> None:
    """Raises if a finite weight is infinite in `dtype`. Traced values cannot be checked."""
    if any_number(lambda x: jnp.isfinite(x) & ~jnp.isfinite(jnp.asarray(x, dtype)), leaf):
        raise ValueError(
            f"`anchor_dtype={jnp.dtype(dtype).name}` cannot hold {name!r}, because its weights are "
            "beyond the range of this dtype: use `jnp.bfloat16`, which has the range of float32."
        )


def resolve_anchor(
    spec: Spec, state_anchor: optax.Params, argument: Any, params: optax.Params
) -> list[jax.Array]:
    """The constrained leaves of the anchor that an update measures from, in device memory.

    Raises:
        ValueError: the argument was given but is not used, or the reverse; or it lacks a
            constrained leaf, or has it in another shape.
    """
    if argument is None and spec.anchor_source == "argument":
        raise ValueError(
            "`update` needs the keyword `anchor`, the pre-trained parameters, because the "
            "transformation was built with `anchor='argument'`: call `update(grads, state, "
            "params, anchor=pretrained)`."
        )
    if argument is not None and spec.anchor_source != "argument":
        raise ValueError(
            "`update` got an `anchor`, which it does not use, because the transformation was built "
            f"with `anchor={spec.anchor_source!r}`: build it with `anchor='argument'`."
        )
    if spec.anchor_source == "init":
        return [jnp.asarray(to_device(x)) for x in spec.layout.constrained(state_anchor)]
    if spec.anchor_source == "zero":
        return [jnp.zeros_like(x) for x in spec.layout.constrained(params)]
    return match_leaves(argument, spec.layout, "the `anchor` given to `update`")


def match_leaves(tree: Any, layout: Layout, what: str) -> list[jax.Array]:
    """The constrained leaves of `tree`, found by name, in device memory.

    Excluded leaves may be missing, because a new head is not in a pre-trained model.

    Raises:
        ValueError: `what` lacks a constrained leaf, or has it in another shape.
    """
    shapes = {tensor.name: tensor.shape for tensor in layout.tensors}
    remedy = "pass a tree of the same model, or `exclude` what it lacks"
    return [jnp.asarray(to_device(x)) for x in match_by_name(shapes, tree, what, remedy)]


def copy_tree(
    params: optax.Params, layout: Layout, dtype: jax.typing.DTypeLike | None = None
) -> optax.Params:
    """A copy of the constrained leaves of `params`.

    They are copied, so that a jitted step may donate both the parameters and the state. A
    `jax.ShapeDtypeStruct` stays one, because zeros in its place would be a wrong anchor.
    """

    def copy(leaf):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf if dtype is None else leaf.update(dtype=jnp.dtype(dtype))
        return jnp.copy(leaf) if dtype is None else jnp.array(leaf, dtype=dtype, copy=True)

    return _map_constrained(copy, params, layout)


def zeros_like(params: optax.Params, layout: Layout) -> optax.Params:
    """Zeros shaped like the constrained leaves of `params`."""
    # The dtype is named, because zeros made like a weakly typed number are weakly typed too, and
    # the type of a state must not change in an update.
    return _map_constrained(
        lambda leaf: jnp.zeros_like(leaf, jnp.result_type(leaf)), params, layout
    )


def empty_like(params: optax.Params) -> optax.Params:
    """A placeholder for every leaf of `params`."""
    return jax.tree.map(lambda _: Nothing(), params)


def _map_constrained(f: Callable[[Any], Any], params: optax.Params, layout: Layout) -> optax.Params:
    leaves, treedef = jax.tree.flatten(params)
    pairs = zip(leaves, layout.leaves, strict=True)
    return treedef.unflatten([f(x) if t.constrained else Nothing() for x, t in pairs])


def replace_stored(
    old: optax.Params,
    new: Any,
    layout: Layout,
    what: str,
    check: Callable[[Any, str], None],
) -> optax.Params:
    """The tree `old` of a state, with the values of `new`, found by name.

    `new` may have more leaves, because `optax.partition` gives each transformation its own part of
    the model, and other containers (`nnx` variables or arrays). If the state stores nothing,
    nothing changes.

    Raises:
        ValueError: `what` lacks a leaf, or has it in another shape. Errors of `check`, which gets
            each leaf and text that names it.
    """
    if not jax.tree.leaves(old):
        return old
    shapes = {tensor.name: tensor.shape for tensor in layout.tensors}
    remedy = "pass a tree of the model that `init` saw"
    values = match_by_name(shapes, new, what, remedy)
    for name, value in zip(shapes, values, strict=True):
        check(value, f"{what} has {name!r}")
    pairs = zip(layout.constrained(old), values, strict=True)
    return layout.replace(old, [copy_like(x, y) for x, y in pairs])


def check_numbers(value: Any, what: str) -> None:
    """Raises if an array is complex, or holds NaN. Traced values cannot be checked."""
    if jnp.iscomplexobj(value):
        raise TypeError(f"{what} with complex numbers, and parameters are real: convert it first.")
    if any_number(jnp.isnan, value):
        raise ValueError(
            f"{what} with NaN in it, which the next update would spread to the parameters: load "
            "another checkpoint."
        )


def check_importance(value: Any, what: str) -> None:
    """Raises if an array of importances has other than finite numbers of 0 or more."""
    check_numbers(value, what)
    if any_number(jnp.isinf, value):
        raise ValueError(
            f"{what} with infinite numbers, which make every update infinite or NaN: compute the "
            "squared gradients again, in float32."
        )
    if any_number(lambda x: x < 0, value):
        raise ValueError(
            f"{what} with negative numbers, which push weights away from the anchor, faster with "
            "each step: square the gradients first, and then take their mean."
        )


def any_number(is_wrong: Callable[[Any], jax.Array], value: Any) -> bool:
    """Whether a number of an array is wrong. Traced values and shapes have no numbers."""
    if isinstance(value, Tracer | jax.ShapeDtypeStruct):
        return False
    with jax.ensure_compile_time_eval():  # under `jax.jit` the value may still be concrete
        return bool(is_wrong(value).any())
