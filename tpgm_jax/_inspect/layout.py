"""How the tensors of a tree divide into groups and rows, before any training."""

from __future__ import annotations  # so that `help` shows names, and not what they expand to

from typing import Any, NamedTuple

from tpgm_jax._core.axes import AxesSpec, Tensor, read_layout
from tpgm_jax._core.layout_text import layout_text
from tpgm_jax._core.names import Exclude


class LayoutTable(NamedTuple):
    """Rows, layers and groups of each parameter, from `layout`. It prints as a table.

    Attributes:
        leaves: an entry for each leaf, in the order of `jax.tree.leaves`, with its `name`,
            `shape`, and the axes that index its `rows`, its `layers` and its `inputs`; `groups`,
            the number of its radii; `constrained`, false if it has none.
        guessed: names of the tensors whose rows are a guess, so that `init` warns.
    """

    leaves: tuple[Tensor, ...]
    guessed: tuple[str, ...]

    def __repr__(self) -> str:
        return layout_text(self.leaves, self.guessed)


def layout(
    params: Any, *, exclude: Exclude | None = None, axes: AxesSpec | None = None
) -> LayoutTable:
    """Shows which axes index rows and layers, and which tensors are excluded.

    A row is all the weights that feed one output unit; with `norm="mars"` each has a distance of
    its own. A tensor has one radius, or one for each layer that it stacks.

    Args:
        params: the tree that `init` gets; arrays or shapes (`jax.ShapeDtypeStruct`).
        exclude: as for the method, see `ftp`.
        axes: as for the method.

    Returns:
        A table. Look at the column `rows`: for a dense layer it must name the axis of the outputs,
        for an embedding the axis of the tokens. `-`: the tensor is one row.

    Raises:
        ValueError, TypeError: as `init` raises them for these arguments.

    Examples:
        >>> import jax, jax.numpy as jnp, tpgm_jax
        >>> shapes = {
        ...     "embedder": {"input_embedding": (9, 4)},  # no module of Flax has this leaf
        ...     "dense": {"kernel": (4, 6), "bias": (6,)},
        ...     "head": {"kernel": (6, 2)},
        ... }
        >>> params = jax.tree.map(jnp.zeros, shapes, is_leaf=lambda x: isinstance(x, tuple))
        >>> tpgm_jax.layout(params, exclude="head/.*")
        parameter                  shape  rows  inputs  layers  radii
        dense/bias                  (6,)     -    (0,)       -      1
        dense/kernel              (4, 6)  (1,)    (0,)       -      1
        embedder/input_embedding  (9, 4)  (1,)    (0,)       -      1  rows are a guess
        head/kernel               (6, 2)     -       -       -      0          excluded
        >>> by_token = {"embedder/.*": tpgm_jax.Axes(rows=0)}
        >>> tpgm_jax.layout(params, exclude="head/.*", axes=by_token).guessed
        ()
    """
    read, guessed = read_layout(params, exclude, axes)
    return LayoutTable(read.leaves, tuple(tensor.name for tensor in guessed))
