"""The fields that all states share, and the inputs that all updates start from.

Trees become lists of constrained leaves here, once, and a tree again at the end of the update.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from tpgm_jax._core import radii as _radii
from tpgm_jax._core.anchor import check_numbers, init_anchor, initial_anchor_leaves, resolve_anchor
from tpgm_jax._core.ball import (
    EPSILON,
    difference,
    norm_of_sum,
    norm_terms,
    scaled_update,
    shrinkage,
)
from tpgm_jax._core.finite import finite_or_zero, select, zero_unless
from tpgm_jax._core.names import Nothing, by_name, closest
from tpgm_jax._core.optimizers import check_optimizer_state
from tpgm_jax._core.spec import Options, Spec, check_fingerprint, check_same_spec, fingerprint
from tpgm_jax._core.stacks import (
    Kind,
    gather,
    make_kinds,
    reshard_like,
    spread,
    sum_leaves,
    unstack,
)
from tpgm_jax._core.unit import divisor, unit_sizes


def initial_fields(options: Options, params: optax.Params) -> dict[str, Any]:
    """The fields of a new state that all methods have."""
    spec = options.first_spec(params, stacklevel=3)  # where `init` is called
    return {
        "step": jnp.zeros([], jnp.int32),
        "anchor": init_anchor(params, spec, options.anchor_dtype),
        "spec": spec,
        "fingerprint": fingerprint(spec),
    }


def initial_radii(
    fields: dict[str, Any], params: optax.Params, optimizer: optax.GradientTransformation
) -> dict[str, Any]:
    """The fields of a new state for learned radii.

    Args:
        fields: the `initial_fields`.
        params: the parameters, whose size counts if the state stores no anchor.
        optimizer: of the radii.
    """
    spec: Spec = fields["spec"]
    radii = jnp.zeros(spec.layout.groups, _radii.radii_dtype(spec.layout.constrained(params)))
    return {
        "radii": radii,
        "row_norms": _initial_row_norms(spec, params),
        "radius_state": optimizer.init(radii),
        "unit_size": initial_unit_size(fields, params),
        "skipped": jnp.zeros([], jnp.int32),
    }


def initial_unit_size(fields: dict[str, Any], params: optax.Params) -> jax.Array | Nothing:
    """The field `unit_size` of a new state, from the stored anchor or else from `params`."""
    spec: Spec = fields["spec"]
    dtype = _radii.radii_dtype(spec.layout.constrained(params))
    return unit_sizes(initial_anchor_leaves(fields, params), spec, dtype)


def _initial_row_norms(spec: Spec, params: optax.Params) -> Any:
    """The field `row_norms` of a new state: stacks of zeros."""
    # `optax.tree.map_params` needs a prefix of other states from a tree without leaves.
    if not spec.layout.leaves:
        return jnp.zeros(0)

    def compute(w: list[jax.Array]) -> list[jax.Array]:
        problem = Problem(spec, params, params, w, w, w)
        return problem.norms(problem.differences())

    w = spec.layout.constrained(params)
    # Zeros of a sharded array have its sharding. A jitted step can only reuse the memory of donated
    # arrays if these are sharded like its results.
    if any(isinstance(x, jax.Array) and not isinstance(x, Tracer) and _is_sharded(x) for x in w):
        return tuple(jnp.zeros_like(x) for x in compute(w))
    shapes = jax.eval_shape(compute, w)
    return tuple(jnp.zeros(x.shape, x.dtype, device=x.sharding) for x in shapes)


def _is_sharded(array: jax.Array) -> bool:
    return len(array.sharding.device_set) > 1


@dataclass(frozen=True)
class Problem:
    """Gradients, parameters and anchor of one update.

    Lists of arrays are by leaf, or by kind of leaf ("stacks", see `stacks.py`).

    Attributes:
        spec: how the state was made.
        updates: the gradients, the whole tree.
        params: the parameters, the whole tree.
        g: gradients of the constrained leaves.
        w: parameters `W` of the constrained leaves.
        w0: anchor `W0` of the constrained leaves.
    """

    spec: Spec
    updates: optax.Updates
    params: optax.Params
    g: list[jax.Array]
    w: list[jax.Array]
    w0: list[jax.Array]

    @functools.cached_property
    def kinds(self) -> list[Kind]:
        return make_kinds(self.spec.layout, self.w)

    @functools.cached_property
    def radii_dtype(self) -> jnp.dtype:
        return _radii.radii_dtype(self.w)

    def unit_size(self, state: Any) -> jax.Array:
        """The divisor of the radii for their optimizer, `[G]`."""
        return divisor(state.unit_size, self.spec.layout.groups, self.radii_dtype)

    def differences(self) -> list[jax.Array]:
        """`W - W0` of each leaf, in the wide dtype."""
        return [difference(*leaf) for leaf in zip(self.w, self.w0, strict=True)]

    def norms(self, c: list[jax.Array]) -> list[jax.Array]:
        """Stacks of `N(c)`."""
        norm = self.spec.norm
        sums = sum_leaves(lambda x: norm_terms(x, norm), [c], self.kinds, norm)
        return [norm_of_sum(x, norm) for x in sums]

    def row_norms(self, sizes: list[jax.Array], old: Any, update: jax.Array) -> Any:
        """The next field `row_norms`: `sizes` if `update`, else `old`."""
        # A state for a tree without leaves has an array instead of a tuple, see `initial_radii`.
        if not self.kinds:
            return old
        pairs = zip(sizes, old, strict=True)
        return select(update, tuple(reshard_like(*pair) for pair in pairs), old)

    def inner_products(self, x: list[jax.Array], y: list[jax.Array]) -> list[jax.Array]:
        """Stacks of `<x, y>`, shaped like `norms`."""
        return sum_leaves(jnp.multiply, [x, y], self.kinds, self.spec.norm)

    def scaled_products(
        self, x: list[jax.Array], y: list[jax.Array], n: list[jax.Array]
    ) -> list[jax.Array]:
        """Stacks of `<x, y / n>`, one number for each group; `n` are stacks of norms."""
        return sum_leaves(lambda x, y, n: x * (y / n), [x, y], self.kinds, "l2", n)

    def reduce_rows(self, reduce: Callable[..., jax.Array], x: list[jax.Array]) -> list[jax.Array]:
        """`jnp.sum`, `jnp.min` or `jnp.max` over the rows of each group: stacks to stacks."""
        pairs = zip(x, self.kinds, strict=True)
        return [
            reduce(x, axis=tuple(axis + 1 for axis in kind.tensor.rows), keepdims=True)
            for x, kind in pairs
        ]

    def spread(self, radii: jax.Array) -> list[jax.Array]:
        """`[G]` to stacks, which broadcast against stacks of norms."""
        return spread(radii, self.kinds, self.w)

    def gather(self, stacks: list[jax.Array]) -> jax.Array:
        """Stacks of one number for each group to `[G]`: the inverse of `spread`."""
        return gather(stacks, self.kinds, self.radii_dtype)

    def clip(self, radii: jax.Array, sizes: list[jax.Array]) -> list[jax.Array]:
        """Radii `[G]`, between 1e-8 and the largest of their group's `sizes`, to stacks.

        It clips kind by kind, so that the projection of a leaf does not wait for other kinds.
        """
        pairs = zip(self.spread(radii), self.reduce_rows(jnp.max, sizes), strict=True)
        return [_radii.clip(*pair) for pair in pairs]

    def scale(self, c: list[jax.Array], ratios: list[jax.Array]) -> list[jax.Array]:
        """The updates that end at `W0 + ratio * c`, from stacks of ratios."""
        leaves = zip(self.w, self.w0, c, unstack(ratios, self.kinds), strict=True)
        return [scaled_update(*leaf) for leaf in leaves]

    def project(
        self, c: list[jax.Array], sizes: list[jax.Array], r: list[jax.Array]
    ) -> list[jax.Array]:
        """The updates that end at `W0 + min(1, r / (sizes + 1e-8)) * c`."""
        pairs = zip(r, sizes, strict=True)
        return self.scale(c, [shrinkage(radius, size + EPSILON) for radius, size in pairs])

    def base_step(
        self,
        base: optax.GradientTransformationExtraArgs,
        finite: jax.Array,
        base_state: optax.OptState,
        extra_args: dict[str, Any],
    ) -> tuple[optax.Updates, list[jax.Array], optax.OptState]:
        """The base optimizer's step on the gradient, or on zeros if the gradient is not `finite`.

        Returns:
            Updates of the whole tree; the updates `u` of the constrained leaves, without NaN and
            infinity; and the state of the base optimizer. If the gradient is not finite, updates
            of excluded leaves and `u` are 0.
        """
        gradients = zero_unless(finite, self.updates)
        try:
            updates, base_state = base.update(gradients, base_state, self.params, **extra_args)
        except Exception:
            expected = jax.eval_shape(base.init, self.params)
            check_optimizer_state(expected, base_state, "base_optimizer")
            raise
        layout = self.spec.layout
        u = finite_or_zero(finite, layout.constrained(updates))
        others = zero_unless(finite, layout.unconstrained(updates))
        return layout.replace(updates, u, others), u, base_state


def make_problem(
    options: Options,
    updates: optax.Updates,
    state: Any,
    params: optax.Params | None,
    extra_args: dict[str, Any],
) -> Problem:
    """Checks the arguments of `update`, before any state changes.

    Raises:
        ValueError: parameters are missing; trees are not of the same model; the state was made
            with other options; the anchor is missing or does not fit.
        TypeError: the state was not made by this library.
    """
    caller = options.caller
    if params is None:
        raise ValueError(
            f"`{caller}` measures how far the parameters have moved, so it needs them: call "
            "`update(updates, state, params)`."
        )
    spec = options.spec(params)
    check_same_leaves(updates, params, "gradients", caller)
    if jax.tree.structure(updates) != jax.tree.structure(params):
        raise ValueError(
            f"`{caller}` got gradients and parameters with the same leaves in different "
            f"containers (at the root {type(updates).__name__} and {type(params).__name__}): "
            "pass `jax.grad` the tree that you pass to `update`."
        )
    if not hasattr(state, "spec"):
        raise TypeError(
            f"`{caller}` got a state of type {type(state).__name__}, which its `init` does not "
            "make: if it comes from a checkpoint, restore into the structure of `init(params)`."
        )
    check_same_spec(state.spec, spec, caller)
    check_fingerprint(state, caller)
    if hasattr(state, "radii"):
        check_numbers(state.radii, f"`{caller}` got a state that has the radii")
    w0 = resolve_anchor(spec, state.anchor, extra_args.get("anchor"), params)
    g, w = ([jnp.asarray(x) for x in spec.layout.constrained(tree)] for tree in (updates, params))
    return Problem(spec, updates, params, g, w, w0)


def check_same_leaves(other: Any, params: Any, what: str, caller: str) -> None:
    """`other`, called `what`, must have the leaves of `params`, in the same shapes."""
    ours, theirs = by_name(params), by_name(other)
    for name in [*ours, *theirs]:
        if name not in ours or name not in theirs:
            lacking, tree = (what, theirs) if name in ours else ("parameters", ours)
            raise ValueError(
                f"`{caller}` got {what} and parameters that differ: {name!r} is missing from the "
                f"{lacking} (closest there: {closest(name, tree)}). Pass trees of the same model."
            )
        if jnp.shape(ours[name]) != jnp.shape(theirs[name]):
            raise ValueError(
                f"`{caller}` got {what} and parameters that differ at {name!r}: their shapes "
                f"are {jnp.shape(theirs[name])} and {jnp.shape(ours[name])}. Pass trees of "
                "the same model."
            )
