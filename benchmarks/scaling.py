"""How the cost of a step grows with parameters, with leaves and with devices.

Compares FTP around AdamW with AdamW: the jitted and donated optimizer step alone, both in turn in
one process. Along each axis the other two sizes are fixed. Devices are virtual ones that share the
CPU's cores, so the result shows the cost of sharding, not the gain of more machines.

    make bench-scaling ARGS='--axis leaves'
"""

import argparse
import csv
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from matplotlib.figure import Figure
from tqdm import tqdm

import tpgm_jax
from benchmarks.recording import machine, write
from benchmarks.trees import random_like

MAKE: dict[str, Callable[[], optax.GradientTransformation]] = {
    "adamw": lambda: optax.adamw(1e-4),
    "ftp(adamw)": lambda: tpgm_jax.ftp(optax.adamw(1e-4)),
}
COLUMNS = ["axis", "value", "method", "milliseconds", "compile_seconds", "machine", "jax"]
# Both methods together hold nine arrays as large as the parameters: 14 GB at the end.
PARAMETERS = [2**20, 2**22, 2**24, 2**26, 2**28, 3 * 2**27]
LEAVES = [10, 40, 160, 640, 2500, 5000]  # the last takes a quarter of an hour
DEVICES = [1, 2, 4, 8]


def cases(axis: str) -> Iterator[tuple[int, tuple[int, int, int]]]:
    """`value, (parameters, leaves, devices)` for each point of one axis."""
    if axis == "parameters":
        yield from ((n, (n, 32, 1)) for n in PARAMETERS)
    elif axis == "leaves":
        yield from ((n, (2**24, n, 1)) for n in LEAVES)
    else:
        yield from ((n, (2**26, 32, n)) for n in DEVICES)


def tree(parameters: int, leaves: int, devices: int, seed: int) -> Any:
    """Kernels with four times as many inputs as outputs, sharded along the outputs."""
    width = max(int((parameters / leaves / 4) ** 0.5) // 8 * 8, 8)
    shapes = {f"layer_{i:04}/kernel": (4 * width, width) for i in range(leaves)}
    arrays = random_like(shapes, seed, scale=1e-3)
    automatic = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((devices,), ("fsdp",), automatic, devices=jax.devices()[:devices])
    spec = jax.sharding.PartitionSpec(None, "fsdp" if devices > 1 else None)
    return jax.device_put(arrays, jax.sharding.NamedSharding(mesh, spec))


def measure(
    parameters: int, leaves: int, devices: int, rounds: int
) -> dict[str, tuple[float, float]]:
    """Milliseconds per step and seconds to compile, by method."""
    grads = tree(parameters, leaves, devices, seed=1)
    steps: dict[str, tuple[Any, ...]] = {}
    times: dict[str, list[float]] = {}
    for name, make in MAKE.items():
        tx = make()

        def step(params, state, grads, tx=tx):
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        params = tree(parameters, leaves, devices, seed=0)
        carry = (params, tx.init(params))
        start = time.perf_counter()
        compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*carry, grads).compile()
        steps[name] = (compiled, carry, time.perf_counter() - start)
        del params, carry
    for i in range(rounds + 2):
        for name, (step, carry, seconds) in steps.items():
            start = time.perf_counter()
            params, state = carry
            carry = jax.block_until_ready(step(params, state, grads))
            if i >= 2:  # the first two compile and warm up
                times.setdefault(name, []).append(1e3 * (time.perf_counter() - start))
            steps[name] = (step, carry, seconds)
    return {name: (statistics.median(times[name]), steps[name][2]) for name in MAKE}


def slope(rows: list[dict[str, Any]], method: str, column: str) -> float:
    """Slope of the logarithms, fitted to the upper half of the axis. 1 is proportional."""
    chosen = [r for r in rows if r["method"] == method]
    chosen = chosen[len(chosen) // 2 - 1 :]
    x, y = (np.log([float(r[c]) for r in chosen]) for c in ("value", column))
    return float(np.polyfit(x, y, 1)[0])


def figure(rows: list[dict[str, Any]]) -> Figure:
    panels = [
        ("parameters", "milliseconds", "parameters, in 32 leaves"),
        ("leaves", "milliseconds", "leaves, of 17 M parameters together"),
        ("leaves", "compile_seconds", "leaves, of 17 M parameters together"),
        ("devices", "milliseconds", "virtual devices on the same cores, 67 M parameters"),
    ]
    picture = Figure(figsize=(11, 7), layout="constrained")
    for axes, (axis, column, label) in zip(picture.subplots(2, 2).flat, panels, strict=True):
        along = [r for r in rows if r["axis"] == axis]
        for method, marker in zip(MAKE, "os", strict=True):
            points = [(float(r["value"]), float(r[column])) for r in along if r["method"] == method]
            if points:
                text = f"{method}, slope {slope(along, method, column):.2f}"
                axes.loglog(*np.transpose(points), marker=marker, label=text)
        axes.set_xlabel(label)
        axes.set_ylabel("time to compile, s" if "compile" in column else "time of a step, ms")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    picture.suptitle(f"{machine()}, float32, jax {jax.__version__}", fontsize=10)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    names = ["parameters", "leaves", "devices"]
    parser.add_argument("--axis", nargs="*", choices=names, default=names)
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each method")
    parser.add_argument("--output", type=Path, default=Path("results/scaling.csv"))
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", max(DEVICES))

    rows: list[dict[str, Any]] = []
    if options.output.exists():  # resume an interrupted run
        with options.output.open(newline="") as file:
            rows = list(csv.DictReader(file))
    done = {(r["axis"], int(r["value"])) for r in rows}
    todo = [(axis, case) for axis in options.axis for case in cases(axis)]
    for axis, (value, case) in tqdm([x for x in todo if (x[0], x[1][0]) not in done]):
        for method, (milliseconds, seconds) in measure(*case, options.rounds).items():
            numbers = [f"{milliseconds:.4g}", f"{seconds:.3g}", machine(), jax.__version__]
            rows.append(dict(zip(COLUMNS, [axis, value, method, *numbers], strict=True)))
        write(rows, COLUMNS, options.output)
    for r in rows:
        print("  ".join(str(r[c]).rjust(12) for c in COLUMNS[:5]))
    picture = options.output.with_suffix(".png")
    figure(rows).savefig(picture, dpi=120)
    print(f"{machine()}, jax {jax.__version__}; {options.output} and {picture}")


if __name__ == "__main__":
    main()
