"""Draws pictures of recorded numbers, for light and dark pages.

PYTHONPATH=. python docs/figures/recorded.py
"""

import csv
import json
import sys
from pathlib import Path

from draw import save

from benchmarks import scaling
from examples.digits.data import load
from examples.digits.demo import samples
from examples.digits.figure import figure

ROOT = Path(__file__).parents[2]


def main(folder: Path = ROOT / "docs") -> None:
    results = json.loads((ROOT / "docs/demo/results.json").read_text())
    seed = results["settings"]["seed"]
    save(lambda _: figure(results, samples(load(seed), seed)), folder / "demo", "figure")
    with (ROOT / "benchmarks/results/scaling.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    save(lambda _: scaling.figure(rows), folder / "benchmarks", "scaling")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
