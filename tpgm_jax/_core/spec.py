"""How a state was made: a static node in the state, and its fingerprint among the arrays.

Every state of this library has both. The field `spec` holds no arrays: JAX keeps it in the
structure of the tree, so `report` and others read it, and an update with other options is refused.
Checkpoints store arrays only. For these there is `fingerprint`, a small array with a checksum of
each option.
"""

import sys
import warnings
import zlib
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from tpgm_jax._core import checks
from tpgm_jax._core.axes import (
    AxesSpec,
    GuessedRowsWarning,
    Layout,
    Tensor,
    read_layout,
)
from tpgm_jax._core.checks import AnchorSource, Memory, Norm, Unit
from tpgm_jax._core.names import Exclude


@jax.tree_util.register_static
@dataclass(frozen=True, eq=False)  # not a NamedTuple, because `optax.tree.set` walks into those
class Spec:
    """The options that decide what the numbers in a state mean.

    Attributes:
        norm: "mars" or "l2".
        unit: in which the radius optimizer measures radii.
        memory: whether the displacement is in the state.
        anchor_source: where `W0` comes from.
        layout: the leaves of the parameters, in order, with their rows and layers.
        anchor_dtype: name of the stored dtype of the anchor; `None`: the dtype of the parameters.
    """

    norm: str
    unit: str
    memory: str
    anchor_source: str
    layout: Layout
    anchor_dtype: str | None = None

    # Flax may be imported before this package or after it, but not after the last `Spec` is made.
    def __post_init__(self):
        _register_with_flax()

    def __setstate__(self, state: dict[str, Any]):
        self.__dict__.update(state)
        _register_with_flax()

    # `optax.tree.map_params` compares a state with the state of a tree without leaves, and returns
    # the latter's `Spec`. So a layout without leaves equals every other one.
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Spec) or self._choices() != other._choices():
            return False
        one, two = self.layout, other.layout
        return one == two or not one.leaves or not two.leaves

    def __hash__(self) -> int:
        return hash(self._choices())

    def _choices(self) -> tuple[str | None, ...]:
        return self.norm, self.unit, self.memory, self.anchor_source, self.anchor_dtype


def _register_with_flax() -> None:
    """Makes Flax's serialization leave a `Spec` out and restore the target's."""
    flax = sys.modules.get("flax.serialization")
    if flax is not None:
        flax.register_serialization_state(
            Spec, lambda spec: {}, lambda spec, state: spec, override=True
        )


class Options(NamedTuple):
    """The arguments that most factories share; the docstring of `ftp` describes them.

    `caller` is the name of the factory, for error messages.
    """

    caller: str
    norm: Norm = "l2"
    unit: Unit = "norm"
    exclude: Exclude | None = None
    axes: AxesSpec | None = None
    anchor: AnchorSource = "init"
    anchor_dtype: jax.typing.DTypeLike | None = None
    memory: Memory = "full"

    def check(self) -> "Options":
        """These options, if they are in range."""
        checks.check_choice(self.norm, Norm, "norm")
        checks.check_choice(self.unit, Unit, "unit")
        checks.check_choice(self.memory, Memory, "memory")
        checks.check_choice(self.anchor, AnchorSource, "anchor")
        checks.check_anchor_dtype(self.anchor_dtype, self.anchor)
        checks.check_unit(self.unit, self.anchor)
        return self

    def spec(self, params: optax.Params) -> Spec:
        """The `Spec` of a state for `params`."""
        return self._read(params)[0]

    def first_spec(self, params: optax.Params, stacklevel: int) -> Spec:
        """The `Spec` of a new state. Warns if the norm is taken by row, and rows are a guess."""
        spec, guessed = self._read(params)
        if self.norm == "mars" and guessed:
            self._warn(guessed, stacklevel + 1)
        return spec

    def _read(self, params: optax.Params) -> tuple[Spec, list[Tensor]]:
        layout, guessed = read_layout(params, self.exclude, self.axes)
        dtype = None if self.anchor_dtype is None else jnp.dtype(self.anchor_dtype).name
        return Spec(self.norm, self.unit, self.memory, self.anchor, layout, dtype), guessed

    def _warn(self, guessed: list[Tensor], stacklevel: int) -> None:
        shown = ", ".join(f"{tensor.name!r} {tensor.shape}" for tensor in guessed[:3])
        more = f" and {len(guessed) - 3} more" if len(guessed) > 3 else ""
        warnings.warn(
            f"`{self.caller}` takes the last axis for the rows of {shown}{more}. This is a guess, "
            "because names and shapes do not determine it. Pass "
            "`axes=tpgm_jax.infer_axes(loss_fn, params, batch)`, which reads rows off the model, "
            "or give `axes` yourself; `tpgm_jax.layout(params)` shows the rows of all tensors.",
            GuessedRowsWarning,
            stacklevel=stacklevel + 1,
        )


def fingerprint(spec: Spec) -> jax.Array:
    """Checksums of what `spec` determines, uint32 of shape `(9,)`."""
    return jnp.array([_checksum(x) for x in _values(spec).values()], jnp.uint32)


def check_same_spec(received: Spec, spec: Spec, caller: str) -> None:
    """Raises if a state was made with other options, or for another model."""
    if received == spec:
        return
    theirs, differences = _values(received), []
    for option, here in _values(spec).items():
        there = theirs[option]
        if there != here:
            if isinstance(here, tuple):  # one entry for each leaf: name the first that differs
                there, here = next(x for x in zip_longest(there, here) if x[0] != x[1])
            differences.append(f"{option}: {there!r} in the state and {here!r} here")
        if differences and option == "parameters":
            break
    raise ValueError(
        f"`{caller}` got a state that was made with other options or for another model "
        f"({'; '.join(differences)}). Build the transformation with the options of the state, load "
        "the matching checkpoint, or call `init` with these parameters."
    )


def check_fingerprint(state: Any, caller: str) -> None:
    """Raises if the arrays of `state` come from a checkpoint that was made with other options.

    Does nothing under tracing.
    """
    # Through `leaves`, because `nnx.Optimizer` wraps each array of a state in a variable.
    (saved,) = jax.tree.leaves(state.fingerprint)
    if not state.spec.layout.leaves or isinstance(saved, Tracer):
        return
    values = _values(state.spec)
    if np.shape(saved) != (len(values),):
        raise ValueError(
            f"`{caller}` got a fingerprint of shape {np.shape(saved)}, where {(len(values),)} is "
            "expected, because `opt_state` holds several models or comes from another version: "
            "pick one, `jax.tree.map(lambda x: x[i], opt_state)`."
        )
    pairs = zip(np.asarray(saved).tolist(), values.items(), strict=True)
    differences = [_saved_value(option, x) for x, (option, y) in pairs if x != _checksum(y)]
    if differences:
        raise ValueError(
            f"`{caller}` got a state whose arrays come from a checkpoint made with other options "
            f"({', '.join(differences)}). Build the transformation with the options of the "
            "checkpoint, and restore again."
        )


def _values(spec: Spec) -> dict[str, Any]:
    """The options in the fingerprint: a choice, or a tuple with an entry for each leaf."""
    leaves = spec.layout.leaves
    return {
        "`norm`": spec.norm,
        "`unit`": spec.unit,
        "`memory`": spec.memory,
        "`anchor`": spec.anchor_source,
        "`anchor_dtype`": spec.anchor_dtype,
        "parameters": tuple((x.name, x.shape) for x in leaves),
        "constrained, by `exclude`": tuple((x.name, x.constrained) for x in leaves),
        "rows, by `axes`": tuple((x.name, x.rows) for x in leaves),
        "layers, by `axes`": tuple((x.name, x.layers) for x in leaves),
    }


def _checksum(value: Any) -> int:
    return zlib.crc32(repr(value).encode())


def _saved_value(option: str, checksum: int) -> str:
    """The option, with the choice behind its checksum if it has few choices."""
    choices = [x for kind in (Norm, Unit, Memory, AnchorSource) for x in get_args(kind)]
    value = next((repr(x) for x in choices if _checksum(x) == checksum), "different")
    return f"{option} was {value}"
