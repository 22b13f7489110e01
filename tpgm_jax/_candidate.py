"""The projection of a whole tree: every constrained leaf to its own ball, at once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from tpgm_jax import _radii
from tpgm_jax._axes import Layout
from tpgm_jax._projection import EPSILON, displacement, norms, projected_update


class Candidate(NamedTuple):
    """Where the base optimizer would go, `W + u`, as seen from the anchor.

    Attributes:
        layout: which leaves are constrained, and how.
        updates: the base optimizer's updates, the whole tree.
        w: the constrained leaves of the parameters.
        w0: those of the anchor.
        d: their displacements, `(W - W0) + u`.
        norms: `N(d)`, one for each row or each group.
    """

    layout: Layout
    updates: optax.Updates
    w: list[jax.Array]
    w0: list[jax.Array]
    d: list[jax.Array]
    norms: list[jax.Array]

    def smallest(self, dtype: jnp.dtype) -> jax.Array:
        """The smallest norm among each group's rows, `[G]`."""
        pairs = zip(self.norms, self.layout.tensors, strict=True)
        return _radii.gather([t.smallest(n) for n, t in pairs], self.layout, dtype)

    def largest(self, dtype: jnp.dtype) -> jax.Array:
        """The largest norm among each group's rows, `[G]`."""
        pairs = zip(self.norms, self.layout.tensors, strict=True)
        return _radii.gather([t.largest(n) for n, t in pairs], self.layout, dtype)

    def clip(self, radii: jax.Array) -> list[jax.Array]:
        """Radii `[G]`, between 1e-8 and their group's largest norm, by leaf.

        Leaf by leaf, so that no leaf's projection waits for the norms of the others.
        """
        r = _radii.spread(radii, self.layout, self.w)
        leaves = zip(r, self.norms, self.layout.tensors, strict=True)
        return [_radii.clip(x, t.largest(n)) for x, n, t in leaves]

    def project(self, r: list[jax.Array]) -> optax.Updates:
        """The updates that end at `W0 + min(1, r / n) * d`, with a radius for each leaf."""
        n = [x + EPSILON for x in self.norms]
        leaves = zip(self.w, self.w0, self.d, n, r, strict=True)
        return self.layout.replace(self.updates, [projected_update(*leaf) for leaf in leaves])


def candidate(
    updates: optax.Updates,
    params: optax.Params,
    anchor: optax.Params,
    layout: Layout,
    norm: str,
    d: list[jax.Array] | None = None,
) -> Candidate:
    """Measures how far `params + updates` would lie from the anchor.

    Args:
        updates: the base optimizer's.
        params: the parameters.
        anchor: of which the leaves that are not constrained are not read.
        layout: of the leaves.
        norm: "mars" or "l2".
        d: the displacements of the constrained leaves, where they are not `(W - W0) + u`.
    """
    u, w, w0 = (layout.select(tree) for tree in (updates, params, anchor))
    if d is None:
        start = [displacement(*leaf) for leaf in zip(w, w0, strict=True)]
        d = [x + y.astype(x.dtype) for x, y in zip(start, u, strict=True)]
    size = [norms(*leaf, norm) for leaf in zip(d, layout.tensors, strict=True)]
    return Candidate(layout, updates, w, w0, d, size)
