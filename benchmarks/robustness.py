"""Runs cells of the study again: the rows of its recorded CSVs, from training to testing.

    python -m benchmarks.robustness model=mlp method=ftp learning_rate=0.01 seed=0
    python -m benchmarks.robustness --table continual model=mlp
    python -m benchmarks.robustness                         everything: five hours and more

Rows go to `--output`, and rows that are there already are not computed again, so a killed run
resumes. The chosen rows are then printed, each above the recorded one. `docs/study.md` describes
the study; `python -m benchmarks.study.report` makes its tables.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import joblib
from tqdm import tqdm

from benchmarks.recording import append, read
from benchmarks.study import continual, runs, segmentation
from benchmarks.study.methods import CANDIDATES, SOURCES
from benchmarks.study.pretraining import Setup

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

# For each table the function that carries out one training and returns its rows.
TABLES = {
    "study": runs.learn,
    "radii": runs.radii,
    "few_labels": runs.learn,
    "continual": continual.learn,
    "segmentation": segmentation.learn,
    "exploration": runs.learn,
}
TYPES = {"learning_rate": float, "pretrain_seed": int, "seed": int, "labels": int}

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.robustness", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("cells", nargs="*", metavar="COLUMN=VALUE", help="values as in the CSV")
    parser.add_argument("--table", choices=TABLES, default="study")
    parser.add_argument("--output", type=Path, help="the CSV for new rows (default results/)")
    parser.add_argument("--cache", type=Path, default=ROOT / "results" / "cache")
    parser.add_argument("--workers", type=int, default=2 if jax.default_backend() == "cpu" else 1)
    options = parser.parse_args(arguments)
    name = "robustness.csv" if options.table == "study" else f"robustness_{options.table}.csv"
    recorded = select(read(RESULTS / name), options.cells)
    output = options.output or ROOT / "results" / name
    rerun(options.table, recorded, output, Setup(options.cache), options.workers)
    if options.cells:
        compare(recorded, read(output))


def select(rows: list[Row], cells: Iterable[str]) -> list[Row]:
    """Rows with the given values, and only those that can be run again."""
    for column, _, value in (cell.partition("=") for cell in cells):
        rows = [row for row in rows if row.get(column) == value]
    rows = [row for row in rows if row.get("candidate", "ftp") in CANDIDATES]
    if not rows:
        raise SystemExit(
            "No recorded row that can be run again has these values. Write COLUMN=VALUE as in the "
            "CSV: learning_rate=0.01 seed=0."
        )
    return rows


def key(row: Row) -> Row:
    """The columns that identify a row. They come first."""
    last = list(row).index("tensor" if "tensor" in row else "seed")
    return {name: row[name] for name in list(row)[: last + 1]}


def training(row: Row) -> Row:
    """The training that a row rests on."""
    made = {name: x for name, x in key(row).items() if name not in ("taken", "tensor")}
    if made.get("method") in SOURCES:
        made |= {"method": SOURCES[made["method"]], "setting": ""}
    return made


def rerun(table: str, recorded: list[Row], output: Path, setup: Setup, workers: int) -> None:
    """Carries out the trainings whose rows `output` lacks, and appends the rows."""
    columns = list(recorded[0])
    done = {tuple(key(row).values()) for row in read(output, columns)}
    jobs: dict[Any, list[Row]] = {}
    for row in recorded:
        if tuple(key(row).values()) not in done:
            jobs.setdefault(tuple(training(row).items()), []).append(typed(key(row)))
    learn = joblib.delayed(TABLES[table])
    tasks = (learn(typed(dict(run)), wanted, setup) for run, wanted in jobs.items())
    made: Any = joblib.Parallel(workers, return_as="generator_unordered")(tasks)
    for rows in tqdm(made, desc=table, total=len(jobs)):
        append(rows, columns, output)


def typed(row: Row) -> Row:
    """The row with numbers in place of their text."""
    return {name: TYPES.get(name, str)(value) for name, value in row.items()}


def compare(recorded: list[Row], again: list[Row]) -> None:
    """Prints each row that was run again above the recorded one."""
    rows = {tuple(key(row).values()): row for row in again}
    print(",".join(recorded[0]))
    for row in recorded:
        print(",".join(rows[tuple(key(row).values())].values()))
        print(",".join(row.values()), "(recorded)")


if __name__ == "__main__":
    main()
