"""The walk over a jaxpr that finds how each parameter is used.

It follows the parameters from equation to equation. Where one meets data, the operation decides
what each axis is for, and the walk records a `Use`. Data are all inputs that are not parameters,
and all that is computed from them. Constants scale, shift or mask.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jax.extend.core import Literal

from tpgm_jax._infer_axes.moves import (
    MOVES,
    Value,
    View,
    axes_in,
    data,
    fit_shape,
    is_stacked,
    parameters,
    varies,
)


class Use(NamedTuple):
    """One use of a parameter.

    Attributes:
        kind: the operation.
        rows: axes that index output units.
        layers: axes that index stacked layers.
        picked: pairs (axis, index): the use is of one slice.
        problem: why `rows` are unknown, or empty.
    """

    kind: str
    rows: tuple[int, ...]
    layers: tuple[int, ...]
    picked: tuple[tuple[int, int], ...] = ()
    problem: str = ""


class Walk:
    """A pass over a jaxpr, and the uses that it has found.

    Attributes:
        shapes: shapes of the parameters, by name.
        rules: by primitive, from the walk, an equation and its inputs to its outputs.
        uses: by parameter, in the order of the forward pass.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], rules: Mapping[str, "Rule"]):
        self.shapes = shapes
        self.rules = rules
        self.uses: dict[str, list[Use]] = {name: [] for name in shapes}

    def run(self, jaxpr: Any, inputs: Sequence[Value]) -> list[Value]:
        """The values that `jaxpr` returns."""
        jaxpr = open_jaxpr(jaxpr)
        # Inside `shard_map` the same arrays are shorter.
        env = {x: fit_shape(v, x.aval.shape) for x, v in zip(jaxpr.invars, inputs, strict=True)}

        def read(var: Any) -> Value:
            return () if isinstance(var, Literal) else env.get(var, ())

        for eqn in jaxpr.eqns:
            values = [read(x) for x in eqn.invars]
            if "transpose(" in str(eqn.source_info.name_stack):
                # A backward pass multiplies by the same weights the other way round.
                outputs = [data(x.aval.shape) for x in eqn.outvars]
            elif eqn.primitive.name in MOVES:
                outputs = [self.move(eqn, values[0])]
            elif eqn.primitive.name in self.rules:
                outputs = self.rules[eqn.primitive.name](self, eqn, values)
            else:
                outputs = self.unknown(eqn, values)
            for var, value in zip(eqn.outvars, outputs, strict=True):
                env[var] = fit_shape(value, var.aval.shape)
        return [read(x) for x in jaxpr.outvars]

    def use(self, value: Value, kind: str, roles: Sequence[str]) -> None:
        """Records a use of each parameter in `value`.

        Args:
            roles: what each axis of the array is for: "input", "row" or "layer".
        """
        for view in parameters(value):
            found, uses = self.describe(view, kind, roles), self.uses[str(view.name)]
            if not view.looked_up:
                uses.append(found)
                continue
            # `gather` has recorded it as an embedding. It is a stack of weights, such as experts,
            # if a slice has rows of its own.
            embedding = self.describe(view, "gather", ["input"] * len(roles))
            if embedding in uses and not found.problem and found.rows != embedding.rows:
                uses[uses.index(embedding)] = found

    def describe(self, view: View, kind: str, roles: Sequence[str]) -> Use:
        axes: dict[str, set[int]] = {"input": set(), "row": set(), "layer": set(view.layers)}
        for atoms, role in zip(view.dims, roles, strict=True):
            axes[role].update(axes_in(atoms))
        inputs, rows, layers = axes["input"], axes["row"], axes["layer"]
        if view.inner:
            # In a low-rank pair, the factor that meets the data has no other outputs.
            (inputs if rows else rows).update(view.inner)
        if view.looked_up:
            (layers if rows and inputs else rows).update(view.looked_up)
        both = inputs & rows | inputs & layers | rows & layers
        seen = inputs | rows | layers | {axis for axis, _ in view.picked}
        sizes = enumerate(self.shapes[str(view.name)])
        problem = ""
        if view.inner and not view.merged:
            problem = "it is multiplied by another parameter before it meets data"
        elif both:
            problem = f"`{kind}` uses parts of axis {min(both)} in different ways"
        elif any(n > 1 and axis not in seen for axis, n in sizes):
            problem = "it is reduced before it meets data"
        if not inputs:
            rows.clear()  # it scales outputs, and a row has inputs
        return Use(kind, tuple(sorted(rows)), tuple(sorted(layers)), view.picked, problem)

    def give_up(self, value: Value, kind: str, problem: str) -> None:
        """Records that the rows of the parameters in `value` are unknown."""
        for view in parameters(value):
            if not view.looked_up:
                self.uses[str(view.name)].append(Use(kind, (), view.layers, (), problem))

    def as_data(self, value: Value, shape: Sequence[int]) -> Value:
        """Records that the parameters in `value` are used entry by entry. Returns data."""
        (found,) = [view for view in value if view.name is None] or data(shape)
        roles = ["layer" if is_stacked(atoms) else "input" for atoms in found.dims]
        self.use(value, "elementwise", roles)
        return (found,) if varies((found,)) else data(shape)

    def move(self, eqn: Any, value: Value) -> Value:
        name = eqn.primitive.name
        moved = [(view, MOVES[name](eqn, view)) for view in value]
        lost = tuple(view for view, new in moved if new is None)
        old, shape = (x.aval.shape for x in (eqn.invars[0], eqn.outvars[0]))
        self.give_up(lost, name, f"`{name}` from {old} to {shape} mixes its axes")
        kept = tuple(new for _, new in moved if new is not None)
        return parameters(kept) + data(shape) if lost else kept

    def unknown(self, eqn: Any, values: Sequence[Value]) -> list[Value]:
        name = eqn.primitive.name
        # Operations without results print or check.
        for value in values if eqn.outvars else ():
            self.give_up(value, name, f"it goes through `{name}` before it meets data")
        return [data(x.aval.shape) if any(values) else () for x in eqn.outvars]


def open_jaxpr(jaxpr: Any) -> Any:
    """A jaxpr without its constants."""
    return getattr(jaxpr, "jaxpr", jaxpr)


Rule = Callable[[Walk, Any, list[Value]], list[Value]]
