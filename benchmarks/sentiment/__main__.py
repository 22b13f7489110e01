"""Methods on MiniLM, fine-tuned on one domain of texts: one row a run in a CSV.

    python -m benchmarks.sentiment              runs the missing trainings; keeps existing rows
    python -m benchmarks.sentiment --runs 1     stops after one training
    python -m benchmarks.sentiment --plan       missing trainings, and how long they take
    python -m benchmarks.sentiment --report     tables of the existing rows
    python -m benchmarks.sentiment --cost       the cost of a step on this model

`docs/sentiment.md` describes the runs and their reasons.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jax
from tqdm import tqdm

from benchmarks.recording import append, read, text
from benchmarks.sentiment import cost
from benchmarks.sentiment.cells import COLUMNS, KEYS, Job, jobs
from benchmarks.sentiment.report import report
from benchmarks.sentiment.runs import Bench, bench
from examples.sentiment.demo import OUTPUT as DEMO
from examples.sentiment.training import STEPS

OUTPUT = Path(__file__).parents[1] / "results" / "sentiment.csv"
CACHE = DEMO / "cache"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sentiment", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--plan", action="store_true", help="print missing trainings, run nothing")
    parser.add_argument("--report", action="store_true", help="print tables of the CSV")
    parser.add_argument("--cost", action="store_true", help="measure steps instead")
    parser.add_argument("--runs", type=int, help="stop after this many trainings")
    parser.add_argument("--method", nargs="+", help="only these")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the CSV")
    parser.add_argument("--cache", type=Path, default=CACHE, help="of the model and the texts")
    options = parser.parse_args(arguments)
    if options.report:
        print(report(read(options.output, COLUMNS)))
    elif options.plan:
        print_plan(options.output)
    elif options.cost:
        cost.main(bench("movie", options.cache), OUTPUT.with_name("sentiment_cost.csv"))
    else:
        # A program is compiled once for all processes that run pieces of the study.
        jax.config.update("jax_compilation_cache_dir", str(options.cache / "compiled"))
        work(options)


def missing(rows: Sequence[dict[str, str]]) -> list[Job]:
    """Trainings that lack a row, each with the rows that it lacks."""
    done = {tuple(row[key] for key in KEYS) for row in rows}
    found = []
    for job in jobs():
        cells = tuple(x for x in job.rows if tuple(map(text, x)) not in done)
        if cells:
            found.append(Job(job.trained, cells))
    return found


def work(options: argparse.Namespace) -> None:
    todo = [
        job
        for job in missing(read(options.output, COLUMNS))
        if not options.method or job.trained.method in options.method
    ][: options.runs]
    benches: dict[str, Bench] = {}
    layout = "{l_bar}{bar}| {elapsed}, {remaining} left{postfix}"
    with tqdm(total=STEPS * len(todo), desc="sentiment", bar_format=layout) as bar:
        for job in todo:
            run = job.trained
            bar.set_postfix_str(
                f"{run.source} {run.head} {run.method} {run.setting} {run.learning_rate:g}"
            )
            if run.source not in benches:
                benches[run.source] = bench(run.source, options.cache)
            for row in benches[run.source].perform(job, lambda: bar.update()):
                append([row], COLUMNS, options.output)


def print_plan(output: Path) -> None:
    """Prints the missing trainings, and an estimate from the seconds of those there are."""
    rows = read(output, COLUMNS)
    todo = missing(rows)
    counts = Counter((x.trained.source, x.trained.head, x.trained.method) for x in todo)
    for (source, head, method), count in counts.items():
        print(f"{source:7} {head:7} {method:11} {count:4} trainings")
    seconds = [float(row["seconds"]) for row in rows if float(row["seconds"])]
    each = sum(seconds) / len(seconds) if seconds else 60.0
    print(f"{len(rows)} rows done, {len(todo)} trainings missing: {each * len(todo) / 3600:.1f} h")


if __name__ == "__main__":
    main()
