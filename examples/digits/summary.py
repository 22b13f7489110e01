"""Means and spreads of accuracies."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from examples.digits.shifts import CORRUPTION, SHIFTS, STYLE

# The columns of tables and figures: a heading, and the sets that are averaged.
GROUPS: dict[str, tuple[str, ...]] = {
    "validation": ("validation",),
    "handwritten": ("test",),
    "style": tuple(STYLE),
    "corruption": tuple(CORRUPTION),
    "all shifts": tuple(SHIFTS),
}


def percent(accuracy: Mapping[str, Any], group: str) -> np.ndarray:
    """Mean accuracy over the sets of a group, `[repeats]`, in per cent."""
    return 100 * np.mean([np.atleast_1d(accuracy[name]) for name in GROUPS[group]], axis=0)


def spread(values: np.ndarray) -> float | None:
    """Standard deviation over the repeats; `None` for a single repeat."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
