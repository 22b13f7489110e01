"""Which axis of a tensor called `weight` indexes its output units.

Flax never uses this name. PyTorch and Equinox do, with outputs first. GPT-2's `Conv1D` is the
exception, with outputs last, under the names `c_attn`, `q_attn`, `c_fc` and `c_proj`. Code that
uses these names for `torch.nn.Linear` (nanoGPT) has outputs first, and its `c_attn`, which has more
outputs than inputs, shows this.
"""

import re
from collections.abc import Mapping

_WEIGHT = re.compile(r"(?:.*[./])?\w*weight")
_CONV1D = re.compile(r"(?:.*[./])?(?:c_attn|q_attn|c_fc|c_proj)[./]weight")


def weight_rows(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The row axis, 0 or -1, of each tensor called `weight` that has two axes or more.

    Args:
        shapes: shapes of all tensors of a checkpoint, by name.
    """
    weights = {x: s for x, s in shapes.items() if len(s) > 1 and _WEIGHT.fullmatch(x)}
    conv1d = {x for x, s in weights.items() if len(s) == 2 and _CONV1D.fullmatch(x)}
    fused = [weights[name] for name in conv1d if re.search(r"c_attn[./]weight$", name)]
    if any(shape[0] > shape[1] for shape in fused):
        conv1d = set()
    return {name: -1 if name in conv1d else 0 for name in weights}
