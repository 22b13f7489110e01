"""Means over the shifted sets, and over the repeats."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from examples.digits.shifts import CORRUPTION, SHIFTS, STYLE

# What tables and figures report: a heading, and the sets whose mean it is.
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
    """Standard deviation over the repeats; of one repeat there is none."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
