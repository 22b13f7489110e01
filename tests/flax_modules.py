"""Real Flax modules, linen and NNX, and the rows of each of their parameters.

`LINEN` and `NNX` build the same modules, by name. `ROWS` gives the rows of each parameter as slices
written by hand, and `AXES` the `axes` that a user has to declare.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from tpgm_jax import Axes

LAYERS, HEADS = 3, 3  # equal, so that sizes do not identify axes

# Maps a tensor to its groups. A group is a list of rows, and a row is an array of weights.
Rows = Callable[[np.ndarray], list[list[np.ndarray]]]


def whole(d):
    """One group of one row."""
    return [[d]]


def each(*axes) -> Rows:
    """One group, with one row for each index into `axes`, which are negative."""

    def rows(d):
        at = [dict(zip(axes, i, strict=True)) for i in np.ndindex(*(d.shape[a] for a in axes))]
        return [[d[tuple(i.get(axis, slice(None)) for axis in range(-d.ndim, 0))] for i in at]]

    return rows


def stack_rows(axis, table: dict[str, Rows]) -> dict[str, Rows]:
    """The rows of a stack along `axis`: each slice has its own groups."""

    def over(rows):
        return lambda d: [g for i in range(d.shape[axis]) for g in rows(np.take(d, i, axis))]

    return {name: over(rows) for name, rows in table.items()}


DENSE = {"kernel": each(-1), "bias": whole}
NORM = {"scale": whole, "bias": whole}
PROJECTIONS = {f"{name}/kernel": each(-2, -1) for name in ("query", "key", "value")}
ATTENTION_KERNELS = {**PROJECTIONS, "out/kernel": each(-1)}
ATTENTION = ATTENTION_KERNELS | {
    name.replace("kernel", "bias"): whole for name in ATTENTION_KERNELS
}
LAYER = {
    **{f"dense/{name}": rows for name, rows in DENSE.items()},
    **{f"norm/{name}": rows for name, rows in NORM.items()},
    **{f"self/{name}": rows for name, rows in ATTENTION_KERNELS.items()},
    **{f"cross/{name}": rows for name, rows in ATTENTION.items()},
}


class LinenLayer(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        attention = partial(nn.MultiHeadDotProductAttention, num_heads=HEADS)
        x = nn.LayerNorm(name="norm")(nn.Dense(6, name="dense")(x))
        x = attention(use_bias=False, name="self")(x, x)
        return attention(name="cross")(x, x), None


class NNXLayer(nnx.Module):
    def __init__(self, *, rngs):
        attention = partial(nnx.MultiHeadAttention, HEADS, 6, rngs=rngs, decode=False)
        self.dense, self.norm = nnx.Linear(6, 6, rngs=rngs), nnx.LayerNorm(6, rngs=rngs)
        self.self, self.cross = attention(use_bias=False), attention()


def scan(module: Any, axis):
    """`LAYERS` copies of a linen module in sequence, stacked along `axis` of each parameter."""
    lift: Any = nn.scan
    return lift(module, variable_axes={"params": axis}, split_rngs={"params": True}, length=LAYERS)


def vmap(module: Any, axis):
    """`LAYERS` copies of a linen module in parallel, stacked along `axis` of each parameter."""
    lift: Any = nn.vmap
    return lift(module, {"params": axis}, {"params": True}, in_axes=None, axis_size=LAYERS)


def nnx_vmap(build, axis):
    """`LAYERS` copies of an NNX module, stacked along `axis` of each parameter."""

    def stack(*, rngs):
        return nnx.vmap(lambda rngs: build(rngs=rngs), out_axes=axis)(rngs.split(LAYERS))

    return stack


SQUARE, IMAGE, WORDS, TOKENS = (6, 6), (1, 5, 5, 4), (2, 7, 6), (2,)
LINEN: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "dense": (nn.Dense(5), (2, 4)),
    "dense without bias": (nn.Dense(5, use_bias=False), (2, 4)),
    "many outputs": (nn.DenseGeneral((4, 4)), (2, 4)),
    "many inputs": (nn.DenseGeneral(3, axis=(-2, -1)), (2, 4, 3)),
    "batched": (nn.DenseGeneral(5, batch_dims=(0,)), (3, 2, 4)),
    "outputs declared": (nn.DenseGeneral((4, 3), use_bias=False), (2, 4)),
    "conv": (nn.Conv(8, (3, 3)), IMAGE),
    "conv in 1d": (nn.Conv(8, (3,), use_bias=False), (1, 5, 4)),
    "conv grouped": (nn.Conv(8, (3, 3), feature_group_count=2), IMAGE),
    "conv depthwise": (nn.Conv(4, (3, 3), feature_group_count=4), IMAGE),
    "conv depthwise without bias": (
        nn.Conv(8, (3, 3), feature_group_count=4, use_bias=False),
        IMAGE,
    ),
    "transpose": (nn.ConvTranspose(8, (3, 3)), IMAGE),
    "transpose of a conv": (nn.ConvTranspose(8, (3, 3), transpose_kernel=True), IMAGE),
    "transpose declared": (
        nn.ConvTranspose(8, (3, 3), transpose_kernel=True, use_bias=False),
        IMAGE,
    ),
    "embed": (nn.Embed(7, 6), TOKENS),
    "attention": (nn.MultiHeadDotProductAttention(HEADS, normalize_qk=True), WORDS),
    "attention without bias": (nn.MultiHeadDotProductAttention(HEADS, use_bias=False), WORDS),
    "attention of equal sizes": (nn.MultiHeadDotProductAttention(4, qkv_features=16), (2, 7, 4)),
    "layer norm": (nn.LayerNorm(), WORDS),
    "layer norm of two axes": (
        nn.LayerNorm(reduction_axes=(-2, -1), feature_axes=(-2, -1)),
        WORDS,
    ),
    "group norm": (nn.GroupNorm(2), WORDS),
    "batch norm": (nn.BatchNorm(use_running_average=False), WORDS),
    "layers": (scan(LinenLayer, 0)(), WORDS),
    "layers along 1": (scan(LinenLayer, 1)(), WORDS),
    "vmapped": (vmap(nn.Dense, 0)(6), SQUARE),
    "vmapped along 1": (vmap(nn.Dense, 1)(6), SQUARE),
    "vmapped conv": (vmap(nn.Conv, 0)(8, (3, 3), feature_group_count=2), IMAGE),
    "vmapped embed": (vmap(nn.Embed, 0)(7, 6), TOKENS),
    "stacks in a stack": (vmap(vmap(nn.Dense, 0), 1)(6), SQUARE),
    "undeclared": (vmap(nn.Dense, 0)(6), SQUARE),
    "undeclared without bias": (vmap(nn.Dense, 0)(6, use_bias=False), SQUARE),
}
square = partial(nnx.Linear, 6, 6)
NNX: dict[str, Callable[..., nnx.Module]] = {
    "dense": partial(nnx.Linear, 4, 5),
    "dense without bias": partial(nnx.Linear, 4, 5, use_bias=False),
    "many outputs": partial(nnx.LinearGeneral, 4, (4, 4)),
    "many inputs": partial(nnx.LinearGeneral, (4, 3), 3, axis=(-2, -1)),
    "batched": partial(nnx.LinearGeneral, 4, 5, batch_axis={0: 3}),
    "outputs declared": partial(nnx.LinearGeneral, 4, (4, 3), use_bias=False),
    "conv": partial(nnx.Conv, 4, 8, (3, 3)),
    "conv in 1d": partial(nnx.Conv, 4, 8, (3,), use_bias=False),
    "conv grouped": partial(nnx.Conv, 4, 8, (3, 3), feature_group_count=2),
    "conv depthwise": partial(nnx.Conv, 4, 4, (3, 3), feature_group_count=4),
    "conv depthwise without bias": partial(
        nnx.Conv, 4, 8, (3, 3), feature_group_count=4, use_bias=False
    ),
    "transpose": partial(nnx.ConvTranspose, 4, 8, (3, 3)),
    "transpose of a conv": partial(nnx.ConvTranspose, 4, 8, (3, 3), transpose_kernel=True),
    "transpose declared": partial(
        nnx.ConvTranspose, 4, 8, (3, 3), transpose_kernel=True, use_bias=False
    ),
    "embed": partial(nnx.Embed, 7, 6),
    "attention": partial(nnx.MultiHeadAttention, HEADS, 6, decode=False, normalize_qk=True),
    "attention without bias": partial(
        nnx.MultiHeadAttention, HEADS, 6, decode=False, use_bias=False
    ),
    "attention of equal sizes": partial(nnx.MultiHeadAttention, 4, 4, 16, decode=False),
    "layer norm": partial(nnx.LayerNorm, 6),
    "group norm": partial(nnx.GroupNorm, 6, 2),
    "batch norm": partial(nnx.BatchNorm, 6),
    "layers": nnx_vmap(NNXLayer, 0),
    "layers along 1": nnx_vmap(NNXLayer, 1),
    "vmapped": nnx_vmap(square, 0),
    "vmapped along 1": nnx_vmap(square, 1),
    "vmapped conv": nnx_vmap(partial(nnx.Conv, 4, 8, (3, 3), feature_group_count=2), 0),
    "vmapped embed": nnx_vmap(partial(nnx.Embed, 7, 6), 0),
    "stacks in a stack": nnx_vmap(nnx_vmap(square, 0), 1),
    "undeclared": nnx_vmap(square, 0),
    "undeclared without bias": nnx_vmap(partial(square, use_bias=False), 0),
}
ROWS: dict[str, dict[str, Rows]] = {
    "dense": DENSE,
    "dense without bias": {"kernel": each(-1)},
    "many outputs": {"kernel": each(-2, -1), "bias": whole},
    "many inputs": DENSE,
    "batched": {"kernel": each(-3, -1), "bias": whole},
    "outputs declared": {"kernel": each(-2, -1)},
    "conv": DENSE,
    "conv in 1d": {"kernel": each(-1)},
    "conv grouped": DENSE,
    "conv depthwise": DENSE,
    "conv depthwise without bias": {"kernel": each(-1)},
    "transpose": DENSE,
    "transpose of a conv": {"kernel": each(-2), "bias": whole},
    "transpose declared": {"kernel": each(-2)},
    "embed": {"embedding": each(-2)},
    "attention": {**ATTENTION, "query_ln/scale": whole, "key_ln/scale": whole},
    "attention without bias": ATTENTION_KERNELS,
    "attention of equal sizes": ATTENTION,
    "layer norm": NORM,
    "layer norm of two axes": NORM,
    "group norm": NORM,
    "batch norm": NORM,
    "layers": stack_rows(0, LAYER),
    "layers along 1": stack_rows(1, LAYER),
    "vmapped": stack_rows(0, DENSE),
    "vmapped along 1": stack_rows(1, DENSE),
    "vmapped conv": stack_rows(0, DENSE),
    "vmapped embed": stack_rows(0, {"embedding": each(-2)}),
    # The outer stack is along axis 1, so axis 0 of the inner stack stays axis 0.
    "stacks in a stack": stack_rows(0, stack_rows(0, DENSE)),
    # One radius for all layers. With a bias, its shape shows that each layer has its own outputs.
    # Without one, only the last axis is known to be outputs.
    "undeclared": {"kernel": each(-3, -1), "bias": whole},
    "undeclared without bias": {"kernel": each(-1)},
}
AXES = {
    "outputs declared": Axes(rows=(1, -1)),
    "transpose declared": Axes(rows=-2),
    "layers": Axes(layers=0),
    "layers along 1": Axes(layers=1),
    "vmapped": Axes(layers=0),
    "vmapped along 1": Axes(layers=1),
    "vmapped conv": Axes(layers=0),
    "vmapped embed": Axes(layers=0),
    "stacks in a stack": Axes(layers=(0, 1)),
}


def linen_shapes(name: str) -> Any:
    """The parameters of a linen module, as shapes."""
    module, shape = LINEN[name]
    inputs = jnp.zeros(shape, jnp.int32 if shape is TOKENS else jnp.float32)
    return jax.eval_shape(module.init, jax.random.key(0), inputs)["params"]


def nnx_shapes(name: str) -> Any:
    """The parameters of an NNX module, as variables of shapes."""
    return nnx.state(nnx.eval_shape(lambda: NNX[name](rngs=nnx.Rngs(0))), nnx.Param)
