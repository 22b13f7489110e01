"""Numbers that are not finite: a step over them leaves what was learned as it was.

A NaN in one tensor's gradient makes the whole step worthless, and would stay in every moment
that it enters. Such a step is skipped: the base optimizer sees zeros, the parameters that are
constrained stay, and so do radii, their optimizer and the displacement.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp


def all_finite(arrays: Iterable[jax.Array]) -> jax.Array:
    """Whether every number is finite, `()`; integers are."""
    # NaN and infinity times 0 are NaN, and the rest add up to 0: a sum is a pass without
    # temporaries, where a reduction of bools keeps them all.
    checks = [jnp.isfinite(jnp.sum(x * 0)) for x in arrays if _inexact(x)]
    return jnp.all(jnp.stack(checks)) if checks else jnp.array(True)


def stays_finite(new: Any, old: Any) -> jax.Array:
    """Whether what is finite in the tree `old` is finite in `new`, `()`.

    An optimizer's state may start with an infinity, as that of a lowest loss so far.
    """
    pairs = zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
    checks = [jnp.all(jnp.isfinite(x) | ~jnp.isfinite(y)) for x, y in pairs if _inexact(x)]
    return jnp.all(jnp.stack(checks)) if checks else jnp.array(True)


def where(finite: jax.Array, new: Any, old: Any) -> Any:
    """`new` if the step is `finite`, else `old`: a tree, or a number in its stead."""
    if isinstance(old, int | float):
        return jax.tree.map(lambda x: jnp.where(finite, x, old) if _inexact(x) else x, new)
    return jax.tree.map(lambda x, y: jnp.where(finite, x, y), new, old)


def finite_or_zero(finite: jax.Array, updates: Iterable[jax.Array]) -> list[jax.Array]:
    """The base optimizer's updates if the step is `finite`, with 0 for what of them is not.

    A weight whose update is not finite, though all gradients are, stays where it is. To skip the
    whole step for it would take a pass of its own over what the optimizer reads.
    """
    return [jnp.where(finite & jnp.isfinite(x), x, 0) for x in updates]


def _inexact(array: Any) -> bool:
    # Not so the `float0` of a derivative in an integer, which no operation takes.
    return jnp.issubdtype(jnp.result_type(array), jnp.inexact)
