"""Steps with NaN or infinity are skipped.

A NaN in the gradient of one tensor makes the whole step worthless, and would stay in every moment
that it enters. In a skipped step parameters, radii, their optimizer and the displacement
stay, and the base optimizer gets zeros.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp


def all_finite(arrays: Iterable[jax.Array]) -> jax.Array:
    """Whether every number is finite, `()`. Integers are."""
    # NaN and infinity times 0 are NaN, and everything else sums to 0. A sum needs no temporaries,
    # but a reduction of bools stores all of them.
    checks = [jnp.isfinite(jnp.sum(x * 0)) for x in arrays if _is_inexact(x)]
    return jnp.all(jnp.stack(checks)) if checks else jnp.array(True)


def stays_finite(new: Any, old: Any) -> jax.Array:
    """Whether everything that is finite in the tree `old` is finite in `new`, `()`.

    The state of an optimizer may start with an infinity, such as the lowest loss so far.
    """
    pairs = zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
    checks = [jnp.all(jnp.isfinite(x) | ~jnp.isfinite(y)) for x, y in pairs if _is_inexact(x)]
    return jnp.all(jnp.stack(checks)) if checks else jnp.array(True)


def select(condition: jax.Array, new: Any, old: Any) -> Any:
    """`new` if the condition holds, else `old`: two trees."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), new, old)


def zero_unless(condition: jax.Array, tree: Any) -> Any:
    """`tree` if the condition holds, else zeros. Integers stay as they are."""
    return jax.tree.map(lambda x: jnp.where(condition, x, 0.0) if _is_inexact(x) else x, tree)


def finite_or_zero(condition: jax.Array, updates: Iterable[jax.Array]) -> list[jax.Array]:
    """The base optimizer's updates if the condition holds, with 0 for entries that are not finite.

    If gradients are finite but a base update is not, only that entry is set to 0. Skipping the
    whole step would need another pass over gradients and moments.
    """
    return [jnp.where(condition & jnp.isfinite(x), x, 0) for x in updates]


def _is_inexact(array: Any) -> bool:
    # Gradients of integers have dtype `float0`, which no operation accepts. Treat them as finite.
    return jnp.issubdtype(jnp.result_type(array), jnp.inexact)
