"""Which axes index rows, read from names and shapes: Flax's modules, and tensors called `weight`.

leaf                     modules                     rows
kernel                   Flax, Keras                 the axes of the module's bias, or the last
embedding                Flax                        the first
bias, scale              Flax                        none: one row
weight, *_weight         PyTorch, Equinox            the first
c_attn/weight and such   GPT-2's Conv1D              the last
anything else                                        the last, a guess
"""

import re
from collections.abc import Mapping, Sequence

Shapes = Mapping[str, tuple[int, ...]]

_WEIGHT = re.compile(r"(?:.*[./])?\w*weight")
_CONV1D = re.compile(r"(?:.*[./])?(?:c_attn|q_attn|c_fc|c_proj)[./]weight")
_LAST = ("kernel", "lora_a", "lora_b")  # leaves of Flax whose rows are on the last axis


def rows_by_name(shapes: Shapes, layers: Shapes) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """The row axes of all leaves, and the names of the leaves for which they are a guess.

    Args:
        shapes: shapes of all leaves, by name.
        layers: axes of all leaves that index stacked layers, by name.
    """
    conv1d = conv1d_names(shapes)
    rows: dict[str, tuple[int, ...]] = {}
    guesses: list[str] = []
    for name, shape in shapes.items():
        axes = [axis for axis in range(len(shape)) if axis not in layers[name]]
        if len(axes) < 2:
            rows[name] = ()
        elif _WEIGHT.fullmatch(name):
            rows[name] = (axes[-1] if name in conv1d else axes[0],)
        else:
            rows[name], known = _flax_rows(name, axes, shapes, layers)
            guesses += [] if known else [name]
    return rows, guesses


def conv1d_names(shapes: Shapes) -> set[str]:
    """Names of the weights of GPT-2's `Conv1D`, which have outputs last.

    Code that uses its names for `torch.nn.Linear` (nanoGPT) has outputs first, and its `c_attn`,
    which has more outputs than inputs, shows this.
    """
    names = {name for name, shape in shapes.items() if len(shape) == 2 and _CONV1D.fullmatch(name)}
    fused = [shapes[name] for name in names if re.search(r"c_attn[./]weight$", name)]
    return set() if any(shape[0] > shape[1] for shape in fused) else names


def _flax_rows(
    name: str, axes: list[int], shapes: Shapes, layers: Shapes
) -> tuple[tuple[int, ...], bool]:
    """The row axes, and whether Flax has a module with such a leaf."""
    module, _, leaf = name.rpartition("/")
    # Biases and norm scales are one row in any rank: the biases of attention are 2-D.
    if leaf in ("bias", "scale"):
        return (), True
    if leaf == "embedding":
        return tuple(axes[:1]), True
    known = leaf in _LAST
    if leaf == "kernel":
        bias = f"{module}/bias" if module else "bias"
        if bias in shapes:
            units = [n for axis, n in enumerate(shapes[bias]) if axis not in layers[bias]]
            rows = _last_axes_of_sizes(units, axes, shapes[name])
            # A row needs inputs. If none are left, the bias has a layer axis that `axes` omits.
            if rows and len(rows) < len(axes):
                return rows, True
        parent = module.rpartition("/")[2]
        if parent in ("query", "key", "value") and len(axes) == 3:
            return tuple(axes[-2:]), True
        # Without a bias, a kernel with three axes may be a convolution in one dimension, or a dense
        # layer with two axes of inputs, such as `out` of attention, or with two axes of outputs.
        known = len(axes) != 3 or parent == "out"
    return tuple(axes[-1:]), known


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
