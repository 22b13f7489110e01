"""FSDP: every matrix divided over all devices, and what the optimizer keeps of it alike."""

from typing import Any

import jax
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P


def mesh() -> jax.sharding.Mesh:
    """All devices of all processes, in a row."""
    # With automatic axes the compiler moves arrays as it needs them: it gathers a layer's weights
    # before their use and scatters their gradients.
    return jax.make_mesh((jax.device_count(),), ("fsdp",), axis_types=(AxisType.Auto,))


def of_params(params: optax.Params, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> Any:
    """Where each parameter lies: divided along its longest axis that the devices divide.

    Never along the axis of layers, as a layer must be whole when `scan` comes to it. Vectors
    are copied to every device; so are matrices that can not be divided.
    """

    def lay(path, leaf):
        stacked = 1 if path[0].key == "layers" else 0
        axes = range(stacked, leaf.ndim)
        divisible = [axis for axis in axes if leaf.shape[axis] % mesh.size == 0]
        spec: list[str | None] = [None] * leaf.ndim
        if len(axes) > 1 and divisible:
            spec[max(divisible, key=lambda axis: leaf.shape[axis])] = "fsdp"
        return NamedSharding(mesh, P(*spec))

    return jax.tree_util.tree_map_with_path(lay, params)


def of_state(tx: optax.GradientTransformation, params: optax.Params, shardings: Any) -> Any:
    """Where the optimizer's state lies: moments, anchor, displacement as the parameters.

    Radii and counts are copied to every device.

    Args:
        tx: the optimizer.
        params: as arrays or `jax.ShapeDtypeStruct`s.
        shardings: of the parameters.
    """
    (mesh,) = {x.mesh for x in jax.tree.leaves(shardings)}

    def placeholder(x):
        return isinstance(x, optax.MaskedNode)

    # The state has placeholders for parameters that it does not store, such as excluded ones.
    return optax.tree.map_params(
        tx,
        lambda leaf, sharding: leaf if placeholder(leaf) else sharding,
        jax.eval_shape(tx.init, params),
        shardings,
        transform_non_params=lambda _: NamedSharding(mesh, P()),
        is_leaf=placeholder,
    )
