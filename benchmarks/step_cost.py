"""The cost that FTP and TPGM add to an optimizer step, and to a whole training step.

The optimizer step takes gradients and returns parameters and state. The training step also has
the forward and backward passes. Both are jitted and donated. All methods run in turn in one
process, so that drifts of the machine's speed affect all alike: compare the ratios. Gradients
differ between steps, because with one repeated gradient the step could settle in a special case.

    make bench ARGS='--preset vit_b16 --scope optimizer --rounds 15'
"""

import argparse
import csv
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

import tpgm_jax
from benchmarks.models import MODELS
from benchmarks.recording import machine, write
from benchmarks.trees import AXES, PRESETS, random_like

COLUMNS: list[str] = [
    "scope",
    "preset",
    "method",
    "milliseconds",
    "fastest",
    "slowest",
    "ratio",
    "trace_seconds",
    "compile_seconds",
    "temporary_copies",
    "state_copies",
    "bytes_accessed_copies",
    "gigabytes_per_second",
    "copy_gigabytes_per_second",
    "machine",
    "jax",
]

# The least memory traffic of a two-pass step, in arrays as large as the parameters, each read or
# written once per pass. AdamW reads gradient, parameter and two moments and writes the last three.
ARRAYS = {
    "adamw": 7,
    "ftp(adamw)": 13,
    "ftp(adamw), compact": 12,
    "adamw, project_to_anchor": 12,
    "sgd": 5,
    "ftp(sgd)": 11,
}


class Measured(NamedTuple):
    """A compiled step, its parameters and state, and its times."""

    step: Any
    carry: Any
    trace_seconds: float
    compile_seconds: float
    times: list[float]


def methods(scope: str, axes: Any) -> dict[str, optax.GradientTransformation]:
    adamw, sgd = optax.adamw(1e-4), optax.sgd(1e-2, momentum=0.9)
    found: dict[str, optax.GradientTransformation] = {
        "adamw": adamw,
        "ftp(adamw)": tpgm_jax.ftp(adamw, axes=axes),
        "ftp(adamw), compact": tpgm_jax.ftp(adamw, memory="compact", axes=axes),
        "adamw, project_to_anchor": optax.chain(adamw, tpgm_jax.project_to_anchor(0.1, axes=axes)),
        "sgd": sgd,
        "ftp(sgd)": tpgm_jax.ftp(sgd, axes=axes),
    }
    if scope == "training":
        # TPGM needs a held-out loss, which only the training step has.
        found["tpgm(adamw)"] = tpgm_jax.tpgm(adamw, axes=axes)
        found["tpgm(adamw), every 5th"] = tpgm_jax.tpgm(adamw, axes=axes, every=5)
    return found


def optimizer_step(tx: optax.GradientTransformation, preset: str) -> Callable[..., Any]:
    del preset

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def training_step(tx: optax.GradientTransformation, preset: str) -> Callable[..., Any]:
    loss, tx = MODELS[preset].loss, optax.with_extra_args_support(tx)

    def step(params, state, batches):
        batch, held_out = batches
        grads = jax.grad(loss)(params, *batch)
        updates, state = tx.update(
            grads, state, params, held_out_loss=lambda params: loss(params, *held_out)
        )
        return optax.apply_updates(params, updates), state

    return step


def inputs(scope: str, preset: str) -> list[Any]:
    """The inputs of two alternating steps: gradients, or a batch and a held-out batch."""
    if scope == "optimizer":
        return [random_like(PRESETS[preset](), seed=1 + i, scale=1e-3) for i in range(2)]
    batch = MODELS[preset].batch
    return [(batch(i), batch(2 + i)) for i in range(2)]


def prepare(step: Callable[..., Any], tx: Any, preset: str, given: list[Any]) -> Measured:
    """Compiles the step and runs it twice, because FTP's first step is special."""
    params = random_like(PRESETS[preset](), seed=0, scale=0.02)
    carry = (params, tx.init(params))
    start = time.perf_counter()
    traced = jax.jit(step, donate_argnums=(0, 1)).trace(*carry, given[0])
    trace_seconds = time.perf_counter() - start
    compiled = traced.lower().compile()
    compile_seconds = time.perf_counter() - start  # tracing included
    for x in given:
        carry = compiled(*carry, x)
    return Measured(compiled, jax.block_until_ready(carry), trace_seconds, compile_seconds, [])


def copy_seconds(size: int, repeats: int = 9) -> float:
    """Median seconds to read and write `size` bytes in place, without new pages."""
    copy = jax.jit(lambda x: x + 1, donate_argnums=0)
    array, times = jax.block_until_ready(copy(jnp.ones(size // 4, jnp.float32))), []
    for _ in range(repeats):
        start = time.perf_counter()
        array = jax.block_until_ready(copy(array))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(scope: str, preset: str, rounds: int, only: list[str] | None) -> list[dict[str, Any]]:
    make_step = {"optimizer": optimizer_step, "training": training_step}[scope]
    given = inputs(scope, preset)
    size = 4 * sum(math.prod(shape) for shape in PRESETS[preset]().values())
    seconds_per_copy = copy_seconds(size)
    measured = {}
    for name, tx in methods(scope, AXES.get(preset)).items():
        if not only or name in only:
            measured[name] = prepare(make_step(tx, preset), tx, preset, given)
            tqdm.write(f"  {name}: compiled in {measured[name].compile_seconds:.1f} s")

    for i in tqdm(range(rounds), desc=f"{preset}, {scope}", unit="round"):
        for name, one in measured.items():
            # With "every 5th" one step in five costs more, so a round has five steps.
            steps, carry = 5 if "5th" in name else 1, one.carry
            start = time.perf_counter()
            for j in range(steps):
                carry = one.step(*carry, given[(i + j) % 2])
            jax.block_until_ready(carry)
            one.times.append((time.perf_counter() - start) / steps)
            measured[name] = one._replace(carry=carry)
    return [row(scope, preset, name, measured, size, seconds_per_copy) for name in measured]


def row(
    scope: str,
    preset: str,
    name: str,
    measured: dict[str, Measured],
    size: int,
    seconds_per_copy: float,
) -> dict[str, Any]:
    one, base = measured[name], measured.get("sgd" if "sgd" in name else "adamw")
    pairs = zip(one.times, (base or one).times, strict=True)
    memory, cost = one.step.memory_analysis(), one.step.cost_analysis() or {}
    middle = statistics.median(one.times)
    speed = float("nan")
    if scope == "optimizer":
        speed = ARRAYS[name] * size / middle / 1e9
    values = [scope, preset, name, 1e3 * middle, 1e3 * min(one.times), 1e3 * max(one.times)]
    values += [statistics.median(a / b for a, b in pairs), one.trace_seconds, one.compile_seconds]
    values += [memory.temp_size_in_bytes / size]
    values += [sum(x.nbytes for x in jax.tree.leaves(one.carry[1])) / size]
    values += [float(cost.get("bytes accessed", float("nan"))) / size]
    values += [speed, 2 * size / seconds_per_copy / 1e9, machine(), jax.__version__]
    return dict(zip(COLUMNS, values, strict=True))


def rounded(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def merge(rows: list[dict[str, Any]], path: Path) -> None:
    """Replaces the rows of the same scope, preset and method, and keeps all others."""
    kept = []
    if path.exists():
        with path.open(newline="") as file:
            fresh = {(r["scope"], r["preset"], r["method"]) for r in rows}
            kept = [
                r
                for r in csv.DictReader(file)
                if (r["scope"], r["preset"], r["method"]) not in fresh
            ]
    fresh_rows = [{k: rounded(v) for k, v in r.items()} for r in rows]
    write([*kept, *fresh_rows], COLUMNS, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--preset", nargs="*", choices=PRESETS, default=list(PRESETS))
    scopes = ["optimizer", "training"]
    parser.add_argument("--scope", nargs="*", choices=scopes, default=scopes)
    parser.add_argument("--method", nargs="*", help="only these, such as adamw 'ftp(adamw)'")
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each method")
    parser.add_argument("--output", type=Path, default=Path("results/step_cost.csv"))
    options = parser.parse_args()
    rows = []
    for scope in options.scope:
        for preset in options.preset:
            new = measure(scope, preset, options.rounds, options.method)
            merge(new, options.output)
            rows += new
    shown = [c for c in COLUMNS if c not in ("machine", "jax")]
    print("  ".join(c.replace("_", " ") for c in shown))
    for r in rows:
        print("  ".join(rounded(r[c]).rjust(len(c)) for c in shown))
    print(f"\n{machine()}, jax {jax.__version__}; also in {options.output}")


if __name__ == "__main__":
    main()
