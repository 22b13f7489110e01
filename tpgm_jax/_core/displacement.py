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
import optax

from tpgm_jax._core.axes import Tensor
from tpgm_jax._core.ball import EPSILON, norms, wide_dtype
from tpgm_jax._core.placement import to_device, to_memory_of
from tpgm_jax._core.problem import Problem
from tpgm_jax._core.stacks import reshard_like, stack, unstack


class Previous(NamedTuple):
    """The previous projection.

    Attributes:
        c: the displacement of each constrained leaf; "compact": up to a positive factor for each
            row.
        n: stacks of the norms of `c`, positive.
        d: `W - W0` of each leaf; "compact": without the effect of floors.
        floor: stacks of the smallest norms of rows; "full": 0.
    """

    c: list[jax.Array]
    n: list[jax.Array]
    d: list[jax.Array]
    floor: list[jax.Array]


def stored_displacement(
    problem: Problem, stored: optax.Params, row_norms: Sequence[jax.Array]
) -> Previous:
    """The previous projection, from the displacement and its norms in the state."""
    leaves = [jnp.asarray(to_device(x)) for x in problem.spec.layout.constrained(stored)]
    c = [x.astype(wide_dtype(x)) for x in leaves]
    n = [x + EPSILON for x in row_norms]
    floors = problem.spread(jnp.zeros(problem.spec.layout.groups, problem.radii_dtype))
    return Previous(c, n, problem.displacements(), floors)


def recover_displacement(problem: Problem, radii: list[jax.Array], first: jax.Array) -> Previous:
    """The previous projection, from the parameters.

    Args:
        problem: this step's parameters and anchor.
        radii: stacks of the radii of the previous projection.
        first: whether there was no previous projection.
    """
    c, spec = problem.displacements(), problem.spec
    # The slope of a row that has not moved is 0, so any divisor will do.
    n = [jnp.where(size > 0, size, 1.0) for size in problem.norms(c)]
    leaves = zip(problem.w, problem.w0, spec.layout.tensors, strict=True)
    floors = stack([row_floors(*leaf, spec.norm) for leaf in leaves], problem.kinds)
    ratios = []
    for size, floor, r in zip(n, floors, radii, strict=True):
        lifted = ~first & (r < floor)
        ratios.append(jnp.where(lifted, jnp.minimum(1.0, r / size), 1.0))
    d = [ratio * x for ratio, x in zip(unstack(ratios, problem.kinds), c, strict=True)]
    return Previous(c, n, d, floors)


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


def row_floors(w: jax.Array, w0: jax.Array, tensor: Tensor, norm: str) -> jax.Array:
    """The smallest norms of the rows of a leaf, shaped like its norms."""
    eps = float(jnp.finfo(w.dtype).eps)
    # 2^-15 of a row's own size in float32. Half precision has no bits to spare.
    margin = eps if jnp.finfo(w.dtype).bits < 32 else 256 * eps
    n = norms(w0.astype(wide_dtype(w)), tensor, norm)
    # A row with an infinity has the largest norm, and no floor. (To leave the infinity out of the
    # sum instead makes XLA store a copy of the anchor.)
    return jnp.where(n < jnp.finfo(n.dtype).max, n, 0) * margin
