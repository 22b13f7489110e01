"""Reports what was learned, group by group, for people and for loggers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import optax
from jax.core import Tracer

from tpgm_jax._core.anchor import match_leaves
from tpgm_jax._core.names import by_name, natural_order
from tpgm_jax._core.spec import Spec
from tpgm_jax._inspect import table
from tpgm_jax._inspect.distances import Arrays, Distances, measure
from tpgm_jax._inspect.states import checked_states

if TYPE_CHECKING:
    from rich.table import Table


class Group(NamedTuple):
    """What one radius constrains: a tensor, or one layer of a tensor that stacks several.

    Attributes:
        name: path of the tensor, as in `tpgm_jax.radii`.
        layer: index of the stacked layer; `None` if the tensor is not stacked.
        rows: how many rows share the radius; 1 under the l2 norm, which is of the whole tensor.
        norm: "mars" or "l2", the unit of the numbers below.
        radius: how far a row may be from its anchor; `None` if the state holds no radii.
        distance: how far the farthest row is, the largest `N(W - W0)`.
        saturated: the share of rows that are at their radius, in [0, 1]; `None` without a radius.
        tolerance: how far a row may be beyond its radius because of rounding; `None` without a
            radius.
    """

    name: str
    layer: int | None
    rows: int
    norm: str
    radius: float | None
    distance: float
    saturated: float | None
    tolerance: float | None

    @property
    def label(self) -> str:
        """The name, followed by a slash and the layer if there is one."""
        return self.name if self.layer is None else f"{self.name}/{self.layer}"

    @property
    def beyond(self) -> bool:
        """Whether a row is farther from its anchor than radius and rounding allow."""
        if self.radius is None or self.tolerance is None:
            return False
        return 0 < self.radius < self.distance - self.tolerance


@dataclass(frozen=True, repr=False)
class Report:
    """Result of `tpgm_jax.report`. Prints as a table, and as a table of rich by `rich.print`.

    Attributes:
        groups: one `Group` for each radius, in the order of the parameters, layer by layer;
            `block_2` comes before `block_10`.
        excluded: names of the parameters that are not constrained.
    """

    groups: tuple[Group, ...]
    excluded: tuple[str, ...]

    def scalars(self, prefix: str = "") -> dict[str, float]:
        """Numbers by tag, for a logger.

        For any logger that takes numbers by name:

            wandb.log(report.scalars(), step=step)
            clu.metric_writers.create_default_writer(folder).write_scalars(step, report.scalars())
            for tag, value in report.scalars().items():
                tensorboard_writer.add_scalar(tag, value, step)

        Args:
            prefix: put in front of every tag, unchanged.

        Returns:
            `radius/NAME`, `distance/NAME` and `saturated/NAME` for each group; only
            `distance/NAME` without radii. A layer of a stacked tensor is called `NAME/LAYER`.
        """
        return {
            f"{prefix}{kind}/{group.label}".removesuffix("/"): value
            for kind in ("radius", "distance", "saturated")
            for group in self.groups
            if (value := getattr(group, kind)) is not None
        }

    def __repr__(self) -> str:
        return table.plain(self.groups, self.excluded)

    def __rich__(self) -> "Table":
        return table.rich(self.groups, self.excluded)


def report(
    opt_state: optax.OptState, params: optax.Params, *, anchor: optax.Params | None = None
) -> Report:
    """How far each tensor may go from its anchor, how far it went, and how often it was held back.

    Writing `W` for a tensor, `W0` for its anchor, `N` for the norm of a row ("mars") or of the
    tensor ("l2") and `r` for the radius, each group of rows that share a radius has

        distance  = max over rows of N(W - W0)
        saturated = share of rows with N(W - W0) >= r - tolerance

    where the tolerance is how far rounding in the dtype of `W` may move a row that was projected
    to its radius: `eps / 2 * N(W)`, and some `eps * r`. A radius below that, which is common in
    half precision, cannot be distinguished from 0, and all rows count as saturated.

    For logging, outside `jax.jit`: it compiles a program for each shape, and copies a few numbers
    for each group to the host, all at once. The training step computes nothing for it. If the
    parameters are on the devices of several processes, all of them have to call it.

    Args:
        opt_state: any state with one of this library's states somewhere in it. If several act on a
            tensor, the one that has a radius for it counts.
        params: the parameters that belong to it, after the same `update`.
        anchor: the pre-trained parameters, only for transformations built with
            `anchor="argument"`, because their states store none.

    Returns:
        A `Report`.

    Raises:
        ValueError: there is no state of this library in `opt_state`; it belongs to another model,
            or to several models at once; its arrays come from a checkpoint made with other
            options; `anchor` is missing, or is not used.

    Examples:
        The first output unit pulls ten times as hard as the second, and is held at the radius:

        >>> import jax.numpy as jnp, optax, tpgm_jax
        >>> params = {"kernel": jnp.ones((3, 2)), "head": jnp.ones(2)}
        >>> grads = {"kernel": jnp.array([[1.0, 0.1]] * 3), "head": jnp.ones(2)}
        >>> tx = tpgm_jax.ftp(optax.sgd(1e-2), exclude="head")
        >>> opt_state = tx.init(params)
        >>> for _ in range(8):
        ...     updates, opt_state = tx.update(grads, opt_state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> report = tpgm_jax.report(opt_state, params)
        >>> print(report)
        group   rows  radius  distance  saturated
        kernel     2  0.0636    0.0636        50%
        <BLANKLINE>
        distance: of the farthest row from its anchor, in the L1 norm of a row
        saturated: rows at their radius
        1 not constrained: head
        >>> report.scalars()["saturated/kernel"]
        0.5
    """
    if any(isinstance(x, Tracer) for x in jax.tree.leaves((opt_state, params))):
        raise ValueError(
            "`report` copies numbers to the host, so it cannot run while a function is traced: "
            "call it outside `jax.jit`, on the results of the step."
        )
    states = checked_states(opt_state, params, "report")
    if anchor is not None and all(x.spec.anchor_source != "argument" for x in states):
        raise ValueError(
            "`report` got an `anchor`, which it does not use, because `opt_state` determines its "
            "own: leave it out, or replace the state's with `tpgm_jax.set_anchor`."
        )
    # States with radii come last, so that they count.
    states.sort(key=lambda state: hasattr(state, "radii"))
    by_path = by_name(params)
    arrays = [_arrays(state, by_path, anchor) for state in states]
    groups: dict[str, list[Group]] = {}
    for state, distances in zip(arrays, measure(arrays), strict=True):
        groups |= _groups(state.spec, state.radii is not None, distances)
    names = natural_order(by_path)
    return Report(
        groups=tuple(group for name in names for group in groups.get(name, ())),
        excluded=tuple(name for name in names if name not in groups),
    )


def _arrays(state: Any, params: dict[str, Any], anchor: optax.Params | None) -> Arrays:
    """The arrays of one of our states that are measured.

    Args:
        state: the state.
        params: the whole model, by name.
        anchor: what the user gave.
    """
    spec = state.spec
    if spec.anchor_source == "init":
        w0 = spec.layout.constrained(state.anchor)
    elif spec.anchor_source == "zero":
        w0 = [None] * len(spec.layout.tensors)
    elif anchor is None:
        raise ValueError(
            "`report` needs the keyword `anchor`, the pre-trained parameters, because the "
            "transformation was built with `anchor='argument'`: call `report(opt_state, params, "
            "anchor=pretrained)`."
        )
    else:
        w0 = match_leaves(anchor, spec.layout, "the `anchor` of `report`")
    # Through `leaves`, because `nnx.Optimizer` wraps each array of a state in a variable.
    radii = jax.tree.leaves(state.radii)[0] if hasattr(state, "radii") else None
    return Arrays(spec, radii, [params[tensor.name] for tensor in spec.layout.tensors], w0)


def _groups(spec: Spec, learned: bool, distances: Distances) -> dict[str, list[Group]]:
    """The groups of each tensor, by its name."""
    groups: dict[str, list[Group]] = {}
    columns = iter(zip(*(x.tolist() for x in distances), strict=True))
    for tensor in spec.layout.tensors:
        groups[tensor.name] = []
        for layer, row in zip(range(tensor.groups), columns, strict=False):
            radius, distance, saturated, tolerance = row
            if not learned:
                radius = saturated = tolerance = None
            index, rows = layer if tensor.layers else None, tensor.row_count(spec.norm)
            groups[tensor.name].append(
                Group(tensor.name, index, rows, spec.norm, radius, distance, saturated, tolerance)
            )
    return groups
