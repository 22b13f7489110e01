"""Which axis of a tensor called `weight` indexes its output units.

Flax never uses this name. PyTorch and Equinox do, with outputs first.
"""

import re
from collections.abc import Mapping

_WEIGHT = re.compile(r"(?:.*[./])?\w*weight")


def weight_rows(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The row axis of each tensor called `weight` that has two axes or more.

    Args:
        shapes: shapes of all tensors of a checkpoint, by name.
    """
    weights = {x: s for x, s in shapes.items() if len(s) > 1 and _WEIGHT.fullmatch(x)}
    return dict.fromkeys(weights, 0)
