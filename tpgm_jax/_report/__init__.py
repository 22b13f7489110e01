"""What was learned, group by group, for people and for loggers."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import jax
import optax
from jax.core import Tracer

from tpgm_jax._axes import AxesSpec
from tpgm_jax._checks import check_norm
from tpgm_jax._names import by_name, in_order
from tpgm_jax._report import table
from tpgm_jax._report.distances import Measured, Part, measured
from tpgm_jax._report.parts import parts_of
from tpgm_jax._state import ours

if TYPE_CHECKING:
    from rich.table import Table


class Group(NamedTuple):
    """What one radius constrains: a tensor, or one layer of a tensor that stacks several.

    Attributes:
        name: path of the tensor, as `tpgm_jax.radii` gives it.
        layer: which of the stacked layers; `None` if the tensor is not stacked.
        rows: how many rows share the radius; 1 under the l2 norm, of the whole tensor.
        norm: "mars" or "l2", the unit of what follows.
        radius: how far a row may be from its anchor; `None` if its state holds no radii.
        distance: how far the farthest row is, the largest `N(W - W0)`.
        saturated: the share of rows that are as far as they may be, in [0, 1]; `None` without
            a radius.
        tolerance: how far beyond its radius a row may be found, as weights are rounded; `None`
            without a radius.
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
        """The name, and behind a slash the layer."""
        return self.name if self.layer is None else f"{self.name}/{self.layer}"

    @property
    def beyond(self) -> bool:
        """Whether a row is farther from its anchor than radius and rounding allow."""
        if self.radius is None or self.tolerance is None:
            return False
        return 0 < self.radius < self.distance - self.tolerance


@dataclass(frozen=True, repr=False)
class Report:
    """What `tpgm_jax.report` found. Prints as a table; `rich.print` makes it one of rich's.

    Attributes:
        groups: one `Group` for each radius, in the order of the parameters, layer by layer;
            `block_2` comes before `block_10`.
        excluded: names of the parameters that are not constrained.
    """

    groups: tuple[Group, ...]
    excluded: tuple[str, ...]

    def scalars(self, prefix: str = "") -> dict[str, float]:
        """Numbers by tag, for a logger.

        Any logger will do that takes numbers by name:

            wandb.log(report.scalars(), step=step)
            clu.metric_writers.create_default_writer(folder).write_scalars(step, report.scalars())
            for tag, value in report.scalars().items():
                tensorboard_writer.add_scalar(tag, value, step)

        Args:
            prefix: put in front of every tag, as it is.

        Returns:
            `radius/NAME`, `distance/NAME` and `saturated/NAME` for each group, where a layer of a
            stacked tensor is called `NAME/LAYER`; `distance/NAME` alone without radii.
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
    opt_state: optax.OptState,
    params: optax.Params,
    *,
    norm: str | None = None,
    axes: AxesSpec | None = None,
    anchor: optax.Params | str | None = None,
) -> Report:
    """How far each tensor may go from its anchor, how far it went, and how often it was held.

    Writing `W` for a tensor, `W0` for its anchor, `N` for the norm of a row ("mars") or of the
    tensor ("l2") and `r` for the radius, each group of rows that share a radius has

        distance  = max over rows of N(W - W0)
        saturated = share of rows with N(W - W0) >= r - tolerance

    where the tolerance is what rounding in the dtype of `W` may take from a row that was projected
    to its radius: `eps / 2 * N(W)`, and some `eps * r`. A radius below that, which weights in half
    precision often have, can not be told from 0, and all rows count as saturated.

    For logging, outside `jax.jit`: it compiles a program for each shape, and brings a few numbers
    for each group to the host, all at once. The training step computes nothing for it. Where the
    parameters lie on the devices of several processes, all of them have to call it.

    Args:
        opt_state: any state with one of ours somewhere in it. Where several act on a tensor, the
            one that has a radius for it counts.
        params: the parameters that belong to it: those after the same `update`.
        norm: that of the transformation, which no state tells. The default is the methods' own:
            "mars", and "l2" for `spd` and `add_anchor_decay`. Where parts of the model have
            different norms, report on their states one by one: `opt_state.inner_states["body"]`.
        axes: those of the transformation. May be left out if they only say which axes stack
            layers and these can be told by their sizes.
        anchor: for transformations built with `anchor="argument"`, the same tree; for those with
            `anchor="zero"`, "zero". Other states hold their anchor.

    Returns:
        A `Report`.

    Raises:
        ValueError: there is no state of ours in `opt_state`, or it is of another model, or of
            several models at once; `axes` that do not fit it or can not be told; an anchor that
            is missing, or is in the state already.

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
        distance: that of the farthest row from its anchor, in the L1 norm of a row
        saturated: rows that are as far as the radius lets them
        1 not constrained: head
        >>> report.scalars()["saturated/kernel"]
        0.5
    """
    if norm is not None:
        check_norm(norm)
    states, known = ours(opt_state), by_name(params)
    if not states:
        raise ValueError(
            "`opt_state` holds no state of this library, so there is nothing to report: pass "
            "what `init` or `update` of the whole optimizer returned."
        )
    if any(isinstance(x, Tracer) for x in jax.tree.leaves((states, params))):
        raise ValueError(
            "`report` brings numbers to the host, so it can not run while a function is traced: "
            "call it outside `jax.jit`, on what the step returned."
        )
    pairs = parts_of(states, known, norm, axes, anchor)
    parts, arrays = zip(*pairs, strict=True)
    found: dict[str, list[Group]] = {}
    for part, numbers in zip(parts, measured(parts, arrays), strict=True):
        found |= _groups(part, numbers)
    names = in_order(known)
    return Report(
        groups=tuple(group for name in names for group in found.get(name, ())),
        excluded=tuple(name for name in names if name not in found),
    )


def _groups(part: Part, numbers: Measured) -> dict[str, list[Group]]:
    """The groups of each tensor, by its name."""
    found: dict[str, list[Group]] = {}
    columns = iter(zip(*(x.tolist() for x in numbers), strict=True))
    for tensor in part.layout.tensors:
        rows = math.prod(tensor.shape[axis] for axis in tensor.rows) if part.norm == "mars" else 1
        found[tensor.name] = groups = []
        for layer, row in zip(range(tensor.groups), columns, strict=False):
            radius, distance, saturated, tolerance = row
            if not part.learned:
                radius = saturated = tolerance = None
            which = layer if tensor.layers else None
            groups.append(
                Group(tensor.name, which, rows, part.norm, radius, distance, saturated, tolerance)
            )
    return found
