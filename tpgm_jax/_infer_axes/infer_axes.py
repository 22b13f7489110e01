"""Reads rows and layers off the model that uses the parameters."""

from __future__ import annotations  # so that `help` shows names, and not what they expand to

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tpgm_jax._core.axes import Axes, other_axes
from tpgm_jax._core.columns import plain_table
from tpgm_jax._core.names import check_unique, closest, leaf_names, match_pattern
from tpgm_jax._core.names import leaves as all_leaves
from tpgm_jax._core.rows_by_name import rows_by_name
from tpgm_jax._infer_axes.rules import find_uses
from tpgm_jax._infer_axes.walk import Use


class InferredAxes(Mapping[str, Axes]):
    """Rows and layers of every parameter, from `infer_axes`. Pass it as `axes`.

    A mapping from the name of a parameter to its `Axes`, which prints as a table. Names are matched
    exactly, and need no escapes; a dict made of it would be read as patterns. To change entries,
    combine it with patterns: `inferred | {"head/.*": Axes(rows=0)}`.

    Attributes:
        notes: by name, why rows are taken from the name alone, or which other uses a parameter has.
    """

    def __init__(
        self,
        axes: Mapping[str, Axes],
        shapes: Mapping[str, tuple[int, ...]],
        notes: Mapping[str, str],
    ):
        self._axes, self._shapes, self.notes = dict(axes), dict(shapes), dict(notes)

    def __getitem__(self, name: str) -> Axes:
        return self._axes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._axes)

    def __len__(self) -> int:
        return len(self._axes)

    def __call__(self, name: str, leaf: Any) -> Axes:
        """The `Axes` of a parameter. Transformations call this, so names are matched exactly."""
        if self._shapes.get(name) != jnp.shape(leaf):
            known = self._shapes.get(name, f"nothing (closest: {closest(name, self)})")
            raise ValueError(
                f"`axes` has {known} for {name!r} of shape {jnp.shape(leaf)}, because `infer_axes` "
                "got other parameters: call it with the tree that `init` gets."
            )
        return self._axes[name]

    def __or__(self, declared: Mapping[str, Axes]) -> InferredAxes:
        if not isinstance(declared, Mapping):
            raise TypeError(
                f"`|` needs a mapping from patterns to `Axes`; got {type(declared).__name__}."
            )
        axes, notes = dict(self._axes), dict(self.notes)
        for pattern, value in declared.items():
            for name in match_pattern(pattern, list(axes), "axes"):
                axes[name] = value
                notes.pop(name, None)
        return InferredAxes(axes, self._shapes, notes)

    def __repr__(self) -> str:
        columns = [
            ["parameter", *self],
            ["shape", *(str(self._shapes[name]) for name in self)],
            ["rows", *(str(axes.rows) for axes in self.values())],
            ["layers", *(str(axes.layers) for axes in self.values())],
        ]
        notes = [f"{name}: {note}" for name, note in self.notes.items()]
        return "\n".join([plain_table(columns), *([""] if notes else []), *notes])


def infer_axes(fn: Callable[..., Any], params: Any, *args: Any) -> InferredAxes:
    """Reads rows and stacked layers off a function that uses the parameters.

    It traces `fn(params, *args)` on shapes alone, and follows each parameter to the operation where
    it meets data:

        operation                       rows                    layers
        product (`dot_general`)         axes that remain        batch axes
        convolution                     output features
        embedding (`gather`)            the indexed axis
        by entry, as scales and biases  none, so one row        axes that stack the weights before
        loop (`scan`)                   as used in the loop     the axis that it runs over

    Use it for models whose parameters are not named and shaped as Flax's.

    Args:
        fn: the loss or the forward pass of the model. Put static options into `functools.partial`.
            Pass the batch in `args`, because arrays that `fn` closes over count as constants.
        params: the tree that `init` gets; arrays or shapes (`jax.ShapeDtypeStruct`).
        *args: all else that `fn` takes; trees of arrays or shapes. Leaves that are neither, such as
            `False`, reach `fn` as they are.

    Returns:
        An `InferredAxes`, to pass as `axes`. Print it before the first run. A parameter that cannot
        be followed has the rows that its name suggests, and a note with the reason. If a parameter
        has several uses, such as a tied embedding, the first one in the forward pass counts, and a
        note lists the others.

    Raises:
        ValueError: `params` has no arrays, or two with the same path. Errors of `fn` are passed on.

    Limits, without a note:
        1. Copies of a layer that `jax.vmap` applies to one and the same input look like heads of
           one layer. Their kernels have the right rows, but share a radius unless you declare
           `layers`; their biases and embeddings are read as one.
        2. A product with one-hot vectors is read as a dense layer, not as an embedding.
        3. An axis that a product sums over is an input, also if it counts experts or heads.
        4. Arrays that `fn` closes over are constants, and a parameter that meets only constants
           entry by entry is followed further.

    A product of two parameters alone, such as `A @ B`, gets a note, because one of them may be an
    activation. In `W + A @ B`, both are weights.

    Examples:
        PyTorch's layout, outputs first, which Flax's rules would read the other way:

        >>> import jax, jax.numpy as jnp, optax, tpgm_jax
        >>> def model(params, tokens):
        ...     x = params["wte"][tokens]
        ...     return jnp.tanh(x @ params["fc.weight"].T + params["fc.bias"])
        >>> shapes = {"wte": (9, 4), "fc.weight": (6, 4), "fc.bias": (6,)}
        >>> params = {name: jnp.ones(shape) for name, shape in shapes.items()}
        >>> axes = tpgm_jax.infer_axes(model, params, jnp.zeros((2, 3), int))
        >>> axes
        parameter   shape  rows  layers
        fc.bias      (6,)    ()      ()
        fc.weight  (6, 4)  (0,)      ()
        wte        (9, 4)  (0,)      ()
        >>> tx = tpgm_jax.ftp(optax.adam(1e-3), axes=axes)
    """
    if not callable(fn):
        raise TypeError(
            "`infer_axes` needs a function of the parameters, such as the loss, as its first "
            f"argument; got {type(fn).__name__}: call `infer_axes(loss_fn, params, batch)`."
        )
    leaves, treedef = jax.tree.flatten((params, args))
    arrays = [leaf for leaf in leaves if _is_array(leaf)]
    pairs = zip(leaf_names(params), all_leaves(params), strict=True)
    names = [name for name, leaf in pairs if _is_array(leaf)]
    if not names:
        raise ValueError("`params` has no arrays: pass the tree of parameters that `init` gets.")
    check_unique(names)

    def flat(arrays: list[Any]) -> Any:
        rest = iter(arrays)
        given = [next(rest) if _is_array(leaf) else leaf for leaf in leaves]
        params, args = treedef.unflatten(given)
        # `make_jaxpr` accepts arrays only.
        return [x for x in jax.tree.leaves(fn(params, *args)) if _is_array(x)]

    shapes = {name: tuple(leaf.shape) for name, leaf in zip(names, arrays, strict=False)}
    inputs: list[str | None] = [*names, *[None] * (len(arrays) - len(names))]
    return _axes_from_uses(find_uses(jax.make_jaxpr(flat)(arrays), inputs, shapes), shapes)


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _axes_from_uses(
    uses: Mapping[str, list[Use]], shapes: Mapping[str, tuple[int, ...]]
) -> InferredAxes:
    """The `Axes` and the notes that follow from the uses of all parameters."""
    found = {name: _whole_uses(uses[name], shape) for name, shape in shapes.items()}
    layers = {name: found[name][0].layers if found[name] else () for name in shapes}
    by_name, _ = rows_by_name(shapes, layers)
    axes: dict[str, Axes] = {}
    notes: dict[str, str] = {}
    for name, shape in shapes.items():
        one_row = len(other_axes(len(shape), layers[name])) < 2
        known = [use for use in found[name] if not use.problem]
        if shape and not found[name]:  # a scalar has no axes to follow
            notes[name] = "rows by name, because it never meets data"
        elif one_row:
            pass
        elif not known:
            notes[name] = f"rows by name, because {found[name][0].problem}"
        elif others := {use: None for use in found[name] if use != known[0]}:
            texts = ", ".join(map(_text, others))
            notes[name] = f"rows by {_text(known[0])}; also used by {texts}"
        if known:
            axes[name] = Axes(known[0].rows, known[0].layers)
        else:
            axes[name] = Axes(by_name[name], layers[name])
    return InferredAxes(axes, shapes, notes)


def _whole_uses(uses: Sequence[Use], shape: tuple[int, ...]) -> list[Use]:
    """Uses of slices as uses of the whole parameter.

    An axis whose slices are all used one by one, as in a Python loop, stacks layers.
    """
    picks = [dict(use.picked) for use in uses]
    layers = {
        axis
        for axis in set().union(*picks)
        if {pick.get(axis) for pick in picks} == set(range(shape[axis]))
    }
    whole: list[Use] = []
    for use, pick in zip(uses, picks, strict=True):
        others = set(pick) - layers if use.rows else set()
        whole.append(
            use._replace(
                rows=tuple(sorted({*use.rows, *others})),
                layers=tuple(sorted({*use.layers, *layers})),
                picked=(),
            )
        )
    return whole


def _text(use: Use) -> str:
    if use.problem:
        return f"`{use.kind}`, where {use.problem}"
    return f"`{use.kind}` (rows {use.rows}, layers {use.layers})"
