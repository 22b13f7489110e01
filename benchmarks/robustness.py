"""Every method on the same data, three models, in and out of distribution: one row per run.

    python -m benchmarks.robustness --plan          what would be run, and how long that takes
    python -m benchmarks.robustness                 runs it; resumes from existing rows
    python -m benchmarks.robustness --model mlp --method ftp --learning-rate 1e-2 --seed 0
                                                    one cell, printed beside the recorded row

`docs/study.md` describes the runs and their reasons.
"""

import argparse
import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import jax

from benchmarks.study import cells, plan
from benchmarks.study.cells import COLUMNS, KEYS, Cell
from benchmarks.study.methods import DERIVED, METHODS
from benchmarks.study.plan import Job
from benchmarks.study.pretraining import FAST, Sizes
from benchmarks.study.queue import Resources, work
from benchmarks.study.records import cell, read, text
from benchmarks.study.runs import perform

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "benchmarks" / "results" / "robustness.csv"
FAST_OUTPUT = ROOT / "results" / "robustness_fast.csv"
CACHE = ROOT / "results" / "cache"


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    sizes = FAST if options.fast else Sizes()
    scope = plan.FAST if options.fast else plan.Scope()
    jax.config.update("jax_disable_most_optimizations", options.fast)  # else it only compiles
    output = options.output or (FAST_OUTPUT if options.fast else OUTPUT)
    if options.method:
        print_cells(options, sizes, output)
    elif options.plan:
        print_plan(output, scope, sizes)
    else:
        work(output, scope, sizes, Resources(options.workers, options.stack, options.cache))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.robustness", description=(__doc__ or "").split("\n\n")[0]
    )
    on_cpu = jax.default_backend() == "cpu"
    parser.add_argument("--plan", action="store_true", help="print what is missing, run nothing")
    parser.add_argument("--fast", action="store_true", help="a rehearsal; the numbers mean nothing")
    parser.add_argument("--output", type=Path, help="the CSV (default benchmarks/results)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="of pre-trained networks")
    parser.add_argument("--workers", type=int, default=2 if on_cpu else 0, help="processes")
    parser.add_argument("--stack", type=int, default=1 if on_cpu else 25, help="runs at once")
    one = parser.add_argument_group(
        "single cells", "all combinations of these, run afresh and printed, not written"
    )
    one.add_argument("--method", nargs="+", choices=["zero_shot", *METHODS, *DERIVED])
    one.add_argument("--model", nargs="+", choices=cells.MODELS, default=["mlp"])
    one.add_argument("--head", nargs="+", choices=cells.HEADS, default=["reused"])
    one.add_argument("--learning-rate", nargs="+", type=float, default=[1e-2])
    one.add_argument("--setting", nargs="+", default=[""], help="as in the CSV: weight=0.01")
    one.add_argument("--pretrain-seed", nargs="+", type=int, default=[0])
    one.add_argument(
        "--all-columns", action="store_true", help="print the sets too that nothing is chosen by"
    )
    one.add_argument("--seed", nargs="+", type=int, default=[0])
    return parser.parse_args(arguments)


def picked(options: argparse.Namespace) -> list[Cell]:
    """The cells that the options select."""
    made = [Cell(*x) for x in itertools.product(*(getattr(options, key) for key in KEYS))]
    untrained = {"learning_rate": 0.0, "setting": "", "seed": 0}
    made = [x._replace(**untrained) if x.method == "zero_shot" else x for x in made]
    return list(dict.fromkeys(made))


def print_cells(options: argparse.Namespace, sizes: Sizes, output: Path) -> None:
    """Runs cells and prints each as a row, followed by the row in `output` if there is one."""
    recorded = {cell(row): row for row in read(output, COLUMNS)} if output.exists() else {}
    columns = [x for x in COLUMNS if options.all_columns or x not in cells.HIDDEN]
    print(",".join(columns))
    for one in picked(options):
        (row,) = perform([Job(plan.trained(one), (one,))], sizes, options.cache).rows
        print(",".join(text(row[column]) for column in columns))
        if one in recorded:
            print(",".join(recorded[one][column] for column in columns), "(recorded)")


def print_plan(output: Path, scope: plan.Scope, sizes: Sizes) -> None:
    """Prints the missing runs by head, model and method, and an estimate of their seconds."""
    rows = read(output, COLUMNS) if output.exists() else []
    done = {cell(row): float(row["validation"]) for row in rows}
    counts: Counter[tuple[str, ...]] = Counter()
    costs: dict[tuple[str, ...], float] = defaultdict(float)
    for job in plan.expected(done, scope):
        what = "tuning" if job.trained.seed in scope.tuning_seeds else "final"
        key = (job.trained.head, what, job.trained.method, job.trained.model)
        counts[key] += 1
        costs[key] += plan.seconds(job, sizes.steps)
    print(f"{len(rows)} rows in {output}; missing:")
    print(f"{'head':8}{'for':8}{'method':16}{'model':6}{'trainings':>10}{'core seconds':>14}")
    for key in counts:
        head, what, method, model = key
        print(f"{head:8}{what:8}{method:16}{model:6}{counts[key]:10}{costs[key]:14.0f}")
    hours = sum(costs.values()) / 3600
    print(f"{sum(counts.values())} trainings, about {hours:.1f} hours of one core")


if __name__ == "__main__":
    main()
