"""Decoders of billions of parameters, as shapes on the mesh of a TPU pod.

Nothing is allocated: parameters, state and batches are `jax.ShapeDtypeStruct`s with shardings over
devices that need not exist.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.experimental import mesh_utils, topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import tpgm_jax
from benchmarks import models, trees

# Width and number of layers. The names give the number of parameters in billions; the table has
# exact numbers.
SIZES = {"0.3B": (1024, 24), "1B": (2048, 19), "4B": (3072, 34), "8B": (4096, 39)}
LENGTH = 2048
AXES = {"layers/.*": tpgm_jax.Axes(layers=0)}


class Placement(NamedTuple):
    """The layout of a model on a mesh.

    Attributes:
        fsdp: number of devices that share the parameters and the batch.
        tensor: number of devices that share each block's heads and hidden units.
        alike: shard all kernels `(inputs, outputs)` as (fsdp, tensor), and no biases. Otherwise
            kernels that write to the residual stream have the transposed layout, so that devices
            exchange activations once per branch, and biases of sharded outputs are sharded too:
            the layout of Megatron.
    """

    fsdp: int
    tensor: int
    alike: bool = False

    def __str__(self) -> str:
        return f"{self.fsdp}x{self.tensor}{' alike' if self.alike else ''}"

    def spec(self, name: str) -> P:
        """The layout of a parameter of the scanned decoder."""
        path = name.split("/")
        if path[0] == "tokens":
            return P("tensor", "fsdp")
        if path[0] != "layers":
            return P(None)
        back = path[-2] in ("out", "down") and not self.alike
        if path[-1] == "kernel":
            return P(None, "tensor", "fsdp") if back else P(None, "fsdp", "tensor")
        split = path[-1] == "bias" and path[-2] in ("qkv", "up") and not self.alike
        return P(None, "tensor") if split else P(None, None)


class Program(NamedTuple):
    """A step, its arguments, and the leaves of the state that are not shaped like parameters."""

    step: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    bookkeeping: list[jax.ShapeDtypeStruct]


def mesh_of(topology: str, placement: Placement) -> jax.sharding.Mesh:
    """A mesh of the devices of a TPU with this topology."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    shape = placement.fsdp, placement.tensor
    # Four of the 16 devices of a physical axis are a tensor-parallel group.
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return jax.sharding.Mesh(grid, ("fsdp", "tensor"))


def parameters(size: str, placement: Placement, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Shapes of the decoder's parameters, in float32."""
    return {
        name: struct(shape, jnp.float32, mesh, placement.spec(name))
        for name, shape in trees.scanned_decoder(*SIZES[size]).items()
    }


def struct(shape: Any, dtype: Any, mesh: jax.sharding.Mesh, spec: P) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


def state_of(tx: Any, params: Any, mesh: jax.sharding.Mesh) -> Any:
    """The optimizer's state. Arrays shaped like a parameter have its sharding, others are whole."""

    def is_placeholder(leaf: Any) -> bool:
        return isinstance(leaf, optax.MaskedNode)

    def like(leaf: Any, param: Any) -> Any:
        if is_placeholder(leaf):
            return leaf
        spec = param.sharding.spec if leaf.shape == param.shape else P()
        return struct(leaf.shape, leaf.dtype, mesh, spec)

    def everywhere(part: Any) -> Any:
        # `map_params` passes the tuple of row norms as a whole.
        return jax.tree.map(lambda leaf: struct(leaf.shape, leaf.dtype, mesh, P()), part)

    state = jax.eval_shape(tx.init, params)
    return optax.tree.map_params(
        tx, like, state, params, transform_non_params=everywhere, is_leaf=is_placeholder
    )


def program(
    tx: Any,
    scope: str,
    size: str,
    placement: Placement,
    mesh: jax.sharding.Mesh,
    handed: bool = False,
    length: int = LENGTH,
) -> Program:
    """The optimizer step alone, or the whole training step.

    Args:
        tx: any optax transformation.
        scope: "optimizer": takes gradients; "training": takes a batch, one sequence for each
            device along "fsdp", and computes in bfloat16; "training, loss awaited": the same,
            but the optimizer starts only when the loss is computed.
        size: one of `SIZES`.
        placement: layout of the parameters.
        mesh: the devices.
        handed: pass the anchor to `update`.
        length: tokens in a sequence.
    """
    params = parameters(size, placement, mesh)
    state = state_of(tx, params, mesh)
    tokens = struct((placement.fsdp, length), jnp.int32, mesh, P("fsdp"))
    by_example = NamedSharding(mesh, P("fsdp"))

    def place(x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, by_example)

    def loss(params, tokens, targets):
        return models.decoder_loss(params, tokens, targets, jnp.bfloat16, place)

    def optimizer_step(params, state, grads, **extra):
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    def training_step(params, state, batch, **extra):
        value, grads = jax.value_and_grad(loss)(params, *batch)
        if scope != "training":
            # Only the caller needs the loss, so XLA would delay its last sums over devices to
            # merge them with the optimizer's, and would keep all logits until then.
            value, grads = jax.lax.optimization_barrier((value, grads))
        return *optimizer_step(params, state, grads, **extra), value

    shapes = {x.shape for x in params.values()}
    bookkeeping = [x for x in jax.tree.leaves(state) if x.shape not in shapes]
    keywords = {"anchor": params} if handed else {}
    if scope == "optimizer":
        return Program(optimizer_step, (params, state, params), keywords, bookkeeping)
    return Program(training_step, (params, state, (tokens, tokens)), keywords, bookkeeping)
