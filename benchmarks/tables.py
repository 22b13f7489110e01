"""Markdown tables, and the interval of a mean."""

from collections.abc import Iterable

import numpy as np
from scipy import stats


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def half_interval(x: np.ndarray) -> float:
    """Half of the 95 % interval of a mean, by Student's t."""
    return float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5)
