"""What a whole training step of MiniLM costs with each method, and what compiling it costs.

All methods run in turn in one process, so that drifts of the machine's speed affect all alike:
compare the ratios. Compiling is measured in seconds of all cores.
"""

import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import tpgm_jax
from benchmarks.recording import machine, write
from benchmarks.sentiment.runs import Bench
from examples.sentiment.methods import adamw
from examples.sentiment.texts import Sentences
from examples.sentiment.training import BATCH, HEAD, Trainer

METHODS = {
    "adamw": adamw,
    "ftp": lambda rate: tpgm_jax.ftp(adamw(rate), exclude=HEAD),
    "ftp, compact": lambda rate: tpgm_jax.ftp(adamw(rate), memory="compact", exclude=HEAD),
    "tpgm": lambda rate: tpgm_jax.tpgm(adamw(rate), exclude=HEAD),
    "spd": lambda rate: tpgm_jax.spd(adamw(rate), exclude=HEAD),
}
# Tokens of a sentence, and timed steps of each method.
LENGTHS = {32: 7, 128: 3}
RATE = 1e-4
COLUMNS = ("length", "method", "milliseconds", "fastest", "slowest", "ratio", "compile_cpu_seconds",
           "peak_copies", "state_copies", "machine", "jax")  # fmt: skip


class Compiled(NamedTuple):
    """A compiled step, its parameters and state, and its times."""

    step: Any
    carry: Any
    compile_seconds: float
    times: list[float]


def batch(length: int, seed: int) -> Sentences:
    """Random tokens without padding."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1000, 30000, (BATCH, length), np.int32)
    return Sentences(
        tokens, np.ones(tokens.shape, bool), rng.integers(2, size=BATCH, dtype=np.int32)
    )


def prepare(graph: Any, anchor: Any, make: Any, batches: list[Sentences]) -> Compiled:
    """Compiles the step and runs it twice, because FTP's first step is special."""
    trainer = Trainer(graph, make)
    carry = jax.tree.map(jnp.copy, anchor), trainer.optimizer(RATE).init(anchor)
    started = time.process_time()
    step = trainer.step.lower(*carry, RATE, batches[0], batches[1]).compile()
    seconds = time.process_time() - started
    for i in range(2):
        carry = step(*carry, RATE, batches[i], batches[1 - i])
    return Compiled(step, jax.block_until_ready(carry), seconds, [])


def measure(bench: Bench, length: int, rounds: int) -> list[dict[str, Any]]:
    batches = [batch(length, seed) for seed in range(2)]
    anchor = bench.anchor("probed", 0)
    size = sum(x.nbytes for x in jax.tree.leaves(anchor))
    measured = {name: prepare(bench.graph, anchor, make, batches) for name, make in METHODS.items()}
    for i in tqdm(range(rounds), desc=f"{length} tokens", unit="round"):
        for name, one in measured.items():
            started = time.perf_counter()
            carry = one.step(*one.carry, RATE, batches[i % 2], batches[1 - i % 2])
            jax.block_until_ready(carry)
            one.times.append(time.perf_counter() - started)
            measured[name] = one._replace(carry=carry)
    base = measured["adamw"].times
    rows = []
    for name, one in measured.items():
        ratios = [a / b for a, b in zip(one.times, base, strict=True)]
        peak = one.step.memory_analysis().peak_memory_in_bytes
        state = sum(x.nbytes for x in jax.tree.leaves(one.carry[1]))
        values = [length, name]
        values += [1e3 * x for x in (statistics.median(one.times), min(one.times), max(one.times))]
        values += [statistics.median(ratios), one.compile_seconds, peak / size, state / size]
        rows.append(dict(zip(COLUMNS, [*values, machine(), jax.__version__], strict=True)))
    return rows


def main(bench: Bench, path: Path) -> None:
    """Measures, prints and writes."""
    rows = [row for length, rounds in LENGTHS.items() for row in measure(bench, length, rounds)]
    rows = [{k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    write(rows, COLUMNS, path)
    for row in rows:
        print("  ".join(f"{row[name]!s:>12}" for name in COLUMNS[:-2]))
