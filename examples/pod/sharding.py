"""FSDP: every matrix is divided over all devices, and its optimizer state likewise."""

from typing import Any

import jax
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P


def mesh() -> jax.sharding.Mesh:
    """All devices of all processes, in a row."""
    # With automatic axes the compiler inserts the communication: it gathers a layer's weights
    # before their use and scatters their gradients.
    return jax.make_mesh((jax.device_count(),), ("fsdp",), axis_types=(AxisType.Auto,))


def of_params(params: optax.Params, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> Any:
    """Divides each parameter along the longest axis that is divisible by the number of devices.

    The axis of layers is never divided, because `scan` needs whole layers. Vectors and matrices
    without a divisible axis are copied to every device.
    """

    def place(path, leaf):
        stacked = 1 if path[0].key == "layers" else 0
        axes = range(stacked, leaf.ndim)
        divisible = [axis for axis in axes if leaf.shape[axis] % mesh.size == 0]
        spec: list[str | None] = [None] * leaf.ndim
        if len(axes) > 1 and divisible:
            spec[max(divisible, key=lambda axis: leaf.shape[axis])] = "fsdp"
        return NamedSharding(mesh, P(*spec))

    return jax.tree_util.tree_map_with_path(place, params)


def of_state(tx: optax.GradientTransformation, params: optax.Params, shardings: Any) -> Any:
    """Shardings of the optimizer's state: moments, anchor and displacement like the parameters.

    Radii and counts are copied to every device.

    Args:
        tx: the optimizer.
        params: the parameters; arrays or `jax.ShapeDtypeStruct`s.
        shardings: shardings of the parameters.
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
