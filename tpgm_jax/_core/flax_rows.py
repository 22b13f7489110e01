"""Which axes index rows in the modules of Flax (linen and NNX)."""

from collections.abc import Mapping, Sequence


def flax_rows(
    name: str, shapes: Mapping[str, tuple[int, ...]], layers: Mapping[str, tuple[int, ...]]
) -> tuple[int, ...]:
    """Row axes of the leaf `name`, from its name and from the shape of its module's bias.

    Args:
        name: path of the leaf.
        shapes: shapes of all leaves, by name.
        layers: axes of all leaves that index stacked layers, by name.
    """
    axes = [axis for axis in range(len(shapes[name])) if axis not in layers[name]]
    module, _, leaf = name.rpartition("/")
    # Biases and norm scales are one row in any rank: the biases of attention are 2-D.
    if len(axes) < 2 or leaf in ("bias", "scale"):
        return ()
    if leaf == "embedding":
        return tuple(axes[:1])
    if leaf == "kernel":
        bias = f"{module}/bias" if module else "bias"
        if bias in shapes:
            units = [n for axis, n in enumerate(shapes[bias]) if axis not in layers[bias]]
            rows = _last_axes_of_sizes(units, axes, shapes[name])
            # A row needs inputs. If none are left, the bias has a layer axis that `axes` omits.
            if rows and len(rows) < len(axes):
                return rows
        if module.rpartition("/")[2] in ("query", "key", "value") and len(axes) == 3:
            return tuple(axes[-2:])
    return tuple(axes[-1:])


def _last_axes_of_sizes(
    sizes: Sequence[int], axes: Sequence[int], shape: tuple[int, ...]
) -> tuple[int, ...]:
    """The last of `axes` that have these sizes in this order, or `()`.

    A module adds its bias to its outputs, so the shape of the bias separates output axes from
    input axes: `(heads, head_dim)` of `(in, heads, head_dim)`.
    """
    chosen: list[int] = []
    left = list(axes)
    for size in reversed(sizes):
        while left and shape[left[-1]] != size:
            left.pop()
        if not left:
            return ()
        chosen.append(left.pop())
    return tuple(sorted(chosen))
