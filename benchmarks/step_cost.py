"""What an optimizer step costs with FTP, against the optimizer on its own.

The jitted, donated step alone: gradients in, parameters and state out. All methods run in
one process, in turn, so that a machine whose speed drifts is fair to each; the ratios
are what to read. Gradients differ from step to step, as a repeated one would let
saturated branches settle.

    python benchmarks/step_cost.py --preset vit_b16 --rounds 15
"""

import argparse
import csv
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from trees import AXES, PRESETS, random_like

import tpgm_jax

COLUMNS: list[str] = [
    "preset",
    "method",
    "milliseconds",
    "fastest",
    "slowest",
    "ratio",
    "compile_seconds",
    "temporary_copies",
    "state_copies",
    "bytes_accessed_copies",
    "share_of_copy_bandwidth",
    "machine",
    "jax",
]


class Measured(NamedTuple):
    """A compiled step and what it carries from call to call."""

    step: Any
    carry: Any
    compile_seconds: float
    times: list[float]


def methods(axes: Any) -> dict[str, optax.GradientTransformation]:
    adamw, sgd = optax.adamw(1e-4), optax.sgd(1e-2, momentum=0.9)
    return {
        "adamw": adamw,
        "ftp(adamw)": tpgm_jax.ftp(adamw, axes=axes),
        "adamw, project_to_anchor": optax.chain(adamw, tpgm_jax.project_to_anchor(0.1, axes=axes)),
        "sgd": sgd,
        "ftp(sgd)": tpgm_jax.ftp(sgd, axes=axes),
    }


def prepare(tx: optax.GradientTransformation, shapes: Any, grads: Any) -> Measured:
    """Compiles the step, and takes it twice: the first step of FTP is a special one."""

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = random_like(shapes, seed=0, scale=0.02)
    carry = (params, tx.init(params))
    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*carry, grads[0]).compile()
    seconds = time.perf_counter() - start
    for i in range(2):
        carry = compiled(*carry, grads[i])
    return Measured(compiled, jax.block_until_ready(carry), seconds, [])


def copy_seconds(array: jax.Array, repeats: int = 9) -> float:
    """Median time to read an array and write it again, in place: no fresh pages."""
    copy = jax.jit(lambda x: x + 1, donate_argnums=0)
    array, times = jax.block_until_ready(copy(array)), []
    for _ in range(repeats):
        start = time.perf_counter()
        array = jax.block_until_ready(copy(array))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(preset: str, rounds: int, only: list[str] | None) -> list[dict[str, Any]]:
    shapes = PRESETS[preset]()
    grads = [random_like(shapes, seed=1 + i, scale=1e-3) for i in range(2)]
    size = sum(x.nbytes for x in jax.tree.leaves(grads[0]))
    chosen = {k: v for k, v in methods(AXES.get(preset)).items() if not only or k in only}
    measured = {}
    for name, tx in chosen.items():
        measured[name] = prepare(tx, shapes, grads)
        print(f"  {name}: compiled in {measured[name].compile_seconds:.1f} s", flush=True)

    for i in range(rounds):
        for name, one in measured.items():
            start = time.perf_counter()
            carry = jax.block_until_ready(one.step(*one.carry, grads[i % 2]))
            one.times.append(time.perf_counter() - start)
            measured[name] = one._replace(carry=carry)

    seconds_per_copy = copy_seconds(jnp.ones(size // 4, jnp.float32))
    device = jax.devices()[0].device_kind
    machine = f"{platform.machine()}, {os.cpu_count()} cores" if device == "cpu" else device
    rows = []
    for name, one in measured.items():
        base = "sgd" if "sgd" in name else "adamw"
        pairs = zip(one.times, measured.get(base, one).times, strict=True)
        memory, cost = one.step.memory_analysis(), one.step.cost_analysis()
        accessed = float((cost or {}).get("bytes accessed", float("nan"))) / size
        state = sum(x.nbytes for x in jax.tree.leaves(one.carry[1])) / size
        middle = statistics.median(one.times)
        # AdamW reads gradient, parameter and both moments and writes the last three: the
        # fewest arrays that each method has to move, read or written once a pass.
        fewest = {"adamw": 7, "sgd": 5, "ftp(adamw)": 13, "ftp(sgd)": 11}.get(name, 12)
        row = [preset, name, 1e3 * middle, 1e3 * min(one.times), 1e3 * max(one.times)]
        row += [statistics.median(a / b for a, b in pairs), one.compile_seconds]
        row += [memory.temp_size_in_bytes / size, state, accessed]
        row += [fewest / 2 * seconds_per_copy / middle, machine, jax.__version__]
        rows.append(dict(zip(COLUMNS, row, strict=True)))
    return rows


def rounded(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """Writes beside and renames, so that a kill leaves the old results whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    with beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({k: rounded(v) for k, v in row.items()} for row in rows)
    beside.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--preset", nargs="*", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--method", nargs="*", help="only these, such as adamw 'ftp(adamw)'")
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each method")
    parser.add_argument("--output", type=Path, default=Path("results/step_cost.csv"))
    options = parser.parse_args()
    rows = []
    for preset in options.preset:
        print(preset, flush=True)
        rows += measure(preset, options.rounds, options.method)
        write(rows, options.output)
    shown = [c for c in COLUMNS if c not in ("machine", "jax")]
    print("\n" + "  ".join(f"{c.replace('_', ' ')}" for c in shown))
    for row in rows:
        print("  ".join(rounded(row[c]).rjust(len(c)) for c in shown))
    print(f"\n{rows[0]['machine']}, jax {jax.__version__}; also in {options.output}")


if __name__ == "__main__":
    main()
