"""The numbers that tables and figures show."""

from collections.abc import Mapping
from typing import Any

from examples.sentiment.texts import DOMAINS


def others(values: Mapping[str, float], source: str = "movie") -> float:
    """The mean over the domains that nothing was trained on."""
    return sum(values[x] for x in DOMAINS if x != source) / (len(DOMAINS) - 1)


def choose(entries: list[dict[str, Any]]) -> None:
    """Marks the entry with the best accuracy in validation; of equals, the smallest rate."""
    best = max(range(len(entries)), key=lambda i: entries[i]["accuracy"]["validation"])
    for i, entry in enumerate(entries):
        entry["chosen"] = i == best
