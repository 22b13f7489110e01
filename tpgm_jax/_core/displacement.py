"""The displacement `c` of the previous step, from the state or recovered from the parameters.

FTP's hyper-gradient needs the direction of `c`, row by row. "full" memory stores `c` in the state.
"compact" memory recovers the direction: the projection only rescales rows, so `W - W0` has the
direction of `c`. But the rounding of `W` destroys the direction of a row within a tiny radius of
its anchor. With "compact" memory, rows therefore stay at least

    floor = M * eps * N(W0)

from the anchor, in the units of the radii, with `eps` of the dtype of `W`, and `M` large enough to
keep eight bits of the direction. The next step first scales such a row back to its radius, so
floors never affect the radii. A row that is already below its floor is left there: nothing
records by how much to undo the move.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tpgm_jax._core.anchor import initial_anchor_leaves
from tpgm_jax._core.ball import EPSILON, wide_dtype
from tpgm_jax._core.names import Nothing
from tpgm_jax._core.placement import to_device, to_memory_of
from tpgm_jax._core.problem import Problem
from tpgm_jax._core.spec import Spec
from tpgm_jax._core.stacks import reshard_like, unstack


class Previous(NamedTuple):
    """The previous projection.

    Attributes:
        c: the displacement of each constrained leaf; "compact": up to a positive factor for each
            row.
        n: stacks of the norms of `c`, positive.
        d: `W - W0` of each leaf; "compact": without the effect of floors.
    """

    c: list[jax.Array]
    n: list[jax.Array]
    d: list[jax.Array]


def stored_displacement(
    problem: Problem, stored: optax.Params, row_norms: Sequence[jax.Array]
) -> Previous:
    """The previous projection, from the displacement and its norms in the state."""
    leaves = map(to_device, problem.spec.layout.constrained(stored))
    c = [x.astype(wide_dtype(x)) for x in leaves]
    n = [x + EPSILON for x in row_norms]
    return Previous(c, n, problem.differences())


def recover_displacement(
    problem: Problem,
    radii: list[jax.Array],
    row_norms: Sequence[jax.Array],
    floors: list[jax.Array],
) -> Previous:
    """The previous projection, from the parameters.

    It ended at `W - W0 = (s / n) c` with `s = min(n, max(r, floor))`, so `c / n = (W - W0) / s`.
    Without the floor it would have ended at `min(1, r / s) (W - W0)`.

    `s` comes from the state. To sum `|W - W0|` again would take another pass over parameters and
    anchor, and XLA would write their difference to memory on the way.

    Args:
        problem: this step's parameters and anchor.
        radii: stacks of the radii of the previous projection.
        row_norms: stacks of its `N(c)`; 0 if there was none.
        floors: stacks of the smallest norms of rows.
    """
    c, sizes, ratios = problem.differences(), [], []
    for n, r, floor in zip(row_norms, radii, floors, strict=True):
        s = jnp.minimum(n, jnp.maximum(r, floor))
        # The slope of a row that has not moved is 0, so any divisor will do.
        sizes.append(jnp.where(s > 0, s, 1.0))
        ratios.append(jnp.where(r < s, r / sizes[-1], 1.0))
    d = [ratio * x for ratio, x in zip(unstack(ratios, problem.kinds), c, strict=True)]
    return Previous(c, sizes, d)


def norms_after_skip(problem: Problem, row_norms: Any, radii: jax.Array) -> Any:
    """Stacks of norms for the displacement `W - W0` that a skipped step stores.

    The last projection made `W - W0 = min(1, r / n) c`, so `c / n = (W - W0) / min(n, r)`. Its own
    norm would be too small by `EPSILON`, half of the divisor at the radius of the first step.
    """
    # Stored norms lack the `EPSILON` of `n`. They are negative at a first radius below `EPSILON`;
    # the bound keeps the divisor from rounding to 0.
    if not problem.kinds:
        return row_norms
    floors = [jnp.maximum(r, 1e-4 * EPSILON) - EPSILON for r in problem.spread(radii)]
    pairs = zip(row_norms, floors, strict=True)
    return tuple(reshard_like(jnp.minimum(n, floor), n) for n, floor in pairs)


def store_displacement(problem: Problem, stored: optax.Params, c: list[jax.Array]) -> optax.Params:
    """The tree `stored` of the state with the values `c`, in its dtypes and its memory."""
    old = problem.spec.layout.constrained(stored)
    new = [to_memory_of(y, x.astype(y.dtype)) for x, y in zip(c, old, strict=True)]
    return problem.spec.layout.replace(stored, new)


def initial_anchor_norms(fields: dict[str, Any], params: optax.Params) -> Any:
    """The field `anchor_norms` of a new state, from the stored anchor or else from `params`."""
    spec: Spec = fields["spec"]
    if spec.memory == "full":
        return Nothing()
    return anchor_norms(spec, initial_anchor_leaves(fields, params))


def anchor_norms(spec: Spec, anchor: list[Any]) -> Any:
    """Stacks of `N(W0)`, from which floors follow.

    Args:
        spec: with the layout, the norm and the source of the anchor.
        anchor: the constrained leaves.
    """
    # `optax.tree.map_params` needs a prefix of other states from a tree without leaves.
    if not spec.layout.leaves:
        return jnp.zeros(0)

    def compute(leaves: list[Any]) -> tuple[jax.Array, ...]:
        w0 = [jnp.asarray(x) for x in leaves]
        w0 = [jnp.zeros_like(x) for x in w0] if spec.anchor_source == "zero" else w0
        problem = Problem(spec, w0, w0, w0, w0, w0)
        return tuple(problem.norms([x.astype(wide_dtype(x)) for x in w0]))

    abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in anchor)
    return jax.eval_shape(compute, anchor) if abstract else compute(anchor)


def row_floors(problem: Problem, norms: Sequence[jax.Array]) -> list[jax.Array]:
    """Stacks of the smallest norms of rows, from stacks of `N(W0)`."""
    floors = []
    for n, kind in zip(norms, problem.kinds, strict=bool(problem.kinds)):
        leaves = [problem.w[i] for i in kind.members]
        n = limit_floor(n).astype(wide_dtype(leaves[0]))
        # One leaf of a kind may be float32, and another bfloat16.
        margins = np.array([floor_margin(x.dtype) for x in leaves], n.dtype)
        floors.append(n * margins.reshape(-1, *[1] * (n.ndim - 1)))
    return floors


def limit_floor(n: jax.Array) -> jax.Array:
    """`n`, or 0 for a row with an infinity, which has the largest norm and no floor."""
    return jnp.where(n < jnp.finfo(n.dtype).max, n, 0)


def floor_margin(dtype: jnp.dtype) -> float:
    """The smallest norm of a row, divided by its norm in the anchor."""
    eps = float(jnp.finfo(dtype).eps)
    # 2^-15 of a row's own size in float32. Half precision has no bits to spare.
    return eps if jnp.finfo(dtype).bits < 32 else 256 * eps
