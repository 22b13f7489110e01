"""Working through the plan: processes that train, and one that keeps the rows."""

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.study.cells import COLUMNS, Cell
from benchmarks.study.plan import Job, Scope, expected, jobs, seconds
from benchmarks.study.pretraining import Sizes
from benchmarks.study.records import Records, cell
from benchmarks.study.runs import RADII_COLUMNS, Outcome, perform


@dataclass(frozen=True)
class Resources:
    """How the work is spread.

    Attributes:
        workers: processes, each with one core's worth of work at a time. 0: this process.
        stack: runs trained together, as one program.
        cache: folder of the pre-trained networks.
    """

    workers: int
    stack: int
    cache: Path


def work(output: Path, scope: Scope, sizes: Sizes, resources: Resources) -> None:
    """Runs what is missing of the study, and appends it to `output`."""
    records = Records(output, COLUMNS)
    radii = Records(output.with_name(f"{output.stem}_radii.csv"), RADII_COLUMNS)
    done = {cell(row): float(row["validation"]) for row in records.rows}
    total = sum(seconds(job, sizes.steps) for job in expected(done, scope))
    pool = _pool(resources)
    pending: dict[Future[Outcome], list[Job]] = {}
    layout = "{l_bar}{bar}| {elapsed} < {remaining}{postfix}"
    try:
        with tqdm(total=total, desc="study", bar_format=layout) as bar:
            while True:
                busy = {job.trained for group in pending.values() for job in group}
                free = max(resources.workers, 1) - len(pending)
                ready = [job for job in jobs(done, scope) if job.trained not in busy]
                for group in groups(ready, resources.stack)[:free]:
                    task = (group, sizes, resources.cache)
                    pending[pool.submit(perform, *task)] = group
                if not pending:
                    break
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    outcome = future.result()
                    group = pending.pop(future)
                    radii.append(outcome.radii)
                    records.append(outcome.rows)
                    done |= {cell_of(row): row["validation"] for row in outcome.rows}
                    bar.set_postfix_str(_says(group, len(records.rows)))
                    bar.update(min(sum(seconds(j, sizes.steps) for j in group), bar.total - bar.n))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        records.close()
        radii.close()


def groups(ready: Sequence[Job], stack: int) -> list[list[Job]]:
    """Jobs that one program can train together, at most `stack` of them; in order."""
    by_program: dict[Any, list[list[Job]]] = {}
    made = []
    for job in ready:
        same = by_program.setdefault(job.trained[:3], [])
        if not same or len(same[-1]) == stack:
            same.append([])
            made.append(same[-1])
        same[-1].append(job)
    return made


def cell_of(row: dict[str, Any]) -> Cell:
    return Cell(*(row[key] for key in Cell._fields))


def _says(group: list[Job], rows: int) -> str:
    run = group[0].trained
    return f" {rows} rows; {run.model} {run.head} {run.method} {run.learning_rate:g}"


def _pool(resources: Resources) -> Any:
    if resources.workers == 0:
        return _Here()
    return ProcessPoolExecutor(
        resources.workers, get_context("spawn"), _start_worker, (os.getpid(),)
    )


def _start_worker(parent: int) -> None:
    """Ends with its parent, even if that is killed and can tell nobody."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Here:
    """A pool of no processes."""

    def submit(self, function: Any, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*args))
        return future

    def shutdown(self, **_: Any) -> None:
        pass
