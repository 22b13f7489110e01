"""Reports what was learned, group by group, for people and for loggers."""

from __future__ import annotations  # so that `help` shows names, and not what they expand to

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.core import Tracer

from tpgm_jax._core.anchor import match_leaves
from tpgm_jax._core.names import by_name, natural_order
from tpgm_jax._core.radii import SMALLEST
from tpgm_jax._inspect import table
from tpgm_jax._inspect.measure import Numbers, measure
from tpgm_jax._inspect.states import checked_states


class Group(NamedTuple):
    """What one radius constrains: a tensor, or one layer of a tensor that stacks several.

    Attributes:
        name: path of the tensor, as in `tpgm_jax.radii`.
        layer: index of the stacked layer; `None` if the tensor is not stacked.
        rows: how many rows share the radius; 1 under the l2 norm, which is of the whole tensor.
        norm: "mars" or "l2", the unit of radius and distance.
        distance: how far the farthest row is from its anchor, the largest `N(W - W0)`.
        beyond: whether this is farther than the radius and rounding allow.
        radius: how far a row may be from its anchor; `None` if the state holds no radii, like the
            three numbers that follow.
        relative: the radius in units of the anchor's size, as with `unit="anchor"`; `None` too if
            the anchor is zero.
        pulled_back: of the rows that moved, the share that the last step pulled back, in [0, 1].
        overshoot: how far the farthest row would have gone in the last step, divided by the radius.
            Above 1 the radius constrains the tensor.
    """

    name: str
    layer: int | None
    rows: int
    norm: str
    distance: float
    beyond: bool = False
    radius: float | None = None
    relative: float | None = None
    pulled_back: float | None = None
    overshoot: float | None = None

    @property
    def label(self) -> str:
        """The name, followed by a slash and the layer if there is one."""
        return self.name if self.layer is None else f"{self.name}/{self.layer}"


@dataclass(frozen=True, repr=False)
class Report:
    """Result of `tpgm_jax.report`. Prints as a table.

    Attributes:
        groups: one `Group` for each radius, in the order of the parameters, layer by layer;
            `block_2` comes before `block_10`.
        excluded: names of the parameters that are not constrained.
        notes: what looks wrong, in sentences.
    """

    groups: tuple[Group, ...]
    excluded: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def scalars(self, prefix: str = "") -> dict[str, float]:
        """Numbers by tag, for any logger that takes numbers by name.

            wandb.log(report.scalars(), step=step)
            clu.metric_writers.create_default_writer(folder).write_scalars(step, report.scalars())
            for tag, value in report.scalars().items():
                tensorboard_writer.add_scalar(tag, value, step)

        Args:
            prefix: put in front of every tag, unchanged.

        Returns:
            `radius/NAME`, `relative/NAME`, `distance/NAME`, `pulled_back/NAME` and
            `overshoot/NAME` for each group, and `constrained`, the share of groups in which the
            last step pulled back a row; only `distance/NAME` without radii. A layer of a stacked
            tensor is called `NAME/LAYER`.
        """
        numbers = {
            f"{prefix}{kind}/{group.label}".removesuffix("/"): value
            for kind in ("radius", "relative", "distance", "pulled_back", "overshoot")
            for group in self.groups
            if (value := getattr(group, kind)) is not None
        }
        shares = [group.pulled_back > 0 for group in self.groups if group.pulled_back is not None]
        if shares:
            numbers[f"{prefix}constrained"] = sum(shares) / len(shares)
        return numbers

    def __repr__(self) -> str:
        return table.report_table(self.groups, self.excluded, self.notes)


def report(
    opt_state: optax.OptState, params: optax.Params, *, anchor: optax.Params | None = None
) -> Report:
    """How far each tensor may move from its anchor, how far it is, and whether it is constrained.

    Writing `W` for a tensor, `W0` for its anchor, `c` for the displacement before the projection of
    the last step, `N` for the norm of a row ("mars") or of the tensor ("l2"), `r` for the radius
    and `U` for the size of the anchor, each group of rows that share a radius has

        distance    = max over rows of N(W - W0)
        relative    = r / U
        pulled_back = (rows with N(c) > r) / (rows with N(c) > 0)
        overshoot   = max over rows of N(c) / r

    The distance equals the radius in nearly every group, because no radius is larger than the norm
    of its farthest row. If `pulled_back` is 0, the group is not constrained, and the base optimizer
    moves freely. A skipped step pulls no row back, so if the last step was skipped,
    `pulled_back` is 0 everywhere.

    For logging, outside `jax.jit`: it compiles a small program for each shape, and copies a few
    numbers for each group to the host, all at once. If the parameters are on the devices of
    several processes, all of them have to call it.

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
        The first output unit pulls ten times as hard as the second, and is pulled back:

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
        group   rows  radius  of anchor  distance  pulled back  overshoot
        kernel     2  0.0636       2.1%    0.0636          50%       1.32
        <BLANKLINE>
        constrains 1 of 1 tensors
        1 not constrained: head
        distance: of the farthest row from its anchor, in the L1 norm of a row
        >>> report.scalars()["pulled_back/kernel"]
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
    groups: dict[str, list[Group]] = {}
    w = [[by_path[tensor.name] for tensor in state.spec.layout.tensors] for state in states]
    w0 = [_anchor_leaves(state, anchor) for state in states]
    measured = measure(states, w, w0)
    for state, leaves, numbers in zip(states, w, measured, strict=True):
        groups |= {tensor.name: [] for tensor in state.spec.layout.tensors}
        for group in _groups(state.spec, leaves, numbers):
            groups[group.name].append(group)
    names = natural_order(by_path)
    ordered = tuple(group for name in names for group in groups.get(name, ()))
    notes = [note for x, y in zip(states, measured, strict=True) for note in _notes(x, y)]
    return Report(ordered, tuple(name for name in names if name not in groups), tuple(notes))


def _anchor_leaves(state: Any, anchor: optax.Params | None) -> list[Any]:
    """The anchors of the constrained leaves of one of our states; `None` for zeros."""
    layout = state.spec.layout
    if state.spec.anchor_source == "init":
        return layout.constrained(state.anchor)
    if state.spec.anchor_source == "zero":
        return [None] * len(layout.tensors)
    if anchor is None:
        raise ValueError(
            "`report` needs the keyword `anchor`, the pre-trained parameters, because the "
            "transformation was built with `anchor='argument'`: call `report(opt_state, params, "
            "anchor=pretrained)`."
        )
    return match_leaves(anchor, layout, "the `anchor` of `report`")


def _groups(spec: Any, params: list[Any], numbers: Numbers) -> Iterator[Group]:
    """The groups of one state."""
    place = 0
    for tensor, w in zip(spec.layout.tensors, params, strict=True):
        eps = float(jax.numpy.finfo(jax.numpy.result_type(w)).eps)
        for layer in range(tensor.groups):
            values: Any = [y if y is None else y[place].item() for y in numbers]
            x: Any = Numbers(*values)
            # A row at its radius may be beyond it by the rounding of the weights and of the norm.
            beyond = x.radius is not None and x.radius > 0
            if beyond:
                allowed = (1.001 + 2 * eps) * max(x.radius, x.floor) + eps * x.size + SMALLEST
                beyond = x.distance > allowed
            index, rows = layer if tensor.layers else None, tensor.row_count(spec.norm)
            yield Group(tensor.name, index, rows, spec.norm, x.distance, beyond, *x[4:])
            place += 1


def _notes(state: Any, numbers: Numbers) -> Iterator[str]:
    """What looks wrong in a state."""
    (step,) = jax.tree.leaves(state.step)
    skipped = sum(map(int, jax.tree.leaves(getattr(state, "skipped", 0))))
    if skipped:
        yield (
            f"{skipped} steps were skipped and {int(step)} made, because gradients were not finite "
            "(or a radius step overflowed). If it continues, look for the cause; inside "
            "`optax.MultiSteps`, pass `should_skip_update_fn=optax.skip_not_finite`"
        )
    tensors = [tensor for tensor in state.spec.layout.tensors for _ in range(tensor.groups)]
    # Norms are clamped to the largest float.
    infinite = ~(numbers.size < np.finfo(np.float32).max)
    if infinite.any():
        names = list(dict.fromkeys(x.name for x, bad in zip(tensors, infinite, strict=True) if bad))
        yield f"{table.name_some(names)}: holds numbers that are not finite"
    if step > 1 and len(numbers.distance) and not np.any(numbers.distance):
        yield (
            "no tensor has moved from its anchor. Was the anchor replaced by the current "
            "parameters, or are they passed as `anchor`?"
        )
    if numbers.pulled_back is None or state.spec.anchor_source == "zero":
        return
    # The mean of |W0| over the numbers of each group, or the root of the mean of W0^2.
    sizes = np.array([np.prod(tensor.shape) / tensor.groups for tensor in tensors])
    kernels = np.array([bool(tensor.rows) for tensor in tensors], bool)
    means = (numbers.anchor_sum / sizes) ** (1 if state.spec.norm == "mars" else 0.5)
    typical = np.mean(means[kernels]) if kernels.any() else 0.0
    small = kernels & (means < 1e-2 * typical) & (numbers.pulled_back == 1)
    if small.any():
        names = dict.fromkeys(x.name for x, new in zip(tensors, small, strict=True) if new)
        yield (
            f"{table.name_some(list(names))}: starts near zero, and every row is pulled back. If "
            "it is a new head, `exclude` it"
        )
