"""The cost of a training step of the papers' networks with FTP and with TPGM.

The step is the program's own: forward and backward pass, batch statistics, optimizer; jitted and
donated. All methods of a network run in turn in one process, so that drifts of the machine's speed
affect all alike: compare the ratios. Images are random; `papers_loader` measures the loader.

    make bench-papers ARGS='--model clip-vit-b16 --batch 64 --precision bfloat16'
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from benchmarks.recording import machine, write
from examples.papers import methods, models, recipes, training
from examples.papers.sets import DOMAINNET_CLASSES
from examples.pod import sharding

# For each network its base optimizer, and the number of classes.
SETTINGS = {
    "clip-resnet50": ("sgd", DOMAINNET_CLASSES),
    "resnet50": ("sgd", DOMAINNET_CLASSES),
    "clip-vit-b16": ("adam", 1000),
}
METHODS = ("finetune", "ftp", "tpgm")
COLUMNS = [
    *("model", "optimizer", "method", "batch", "precision"),
    *("milliseconds", "fastest", "slowest", "ratio", "images_per_second"),
    *("compile_seconds", "state_gigabytes", "temporary_gigabytes", "accessed_gigabytes"),
    *("machine", "jax"),
]


def random_batch(seed: int, batch: int, classes: int, mesh: jax.sharding.Mesh) -> training.Batch:
    rng = np.random.default_rng(seed)
    arrays = {
        "image": rng.standard_normal((batch, models.SIZE, models.SIZE, 3), np.float32),
        "label": rng.integers(classes, size=batch).astype(np.int32),
        "mask": np.ones(batch, bool),
    }
    return training.on_devices(arrays, mesh)


def measure(name: str, batch: int, precision: str, rounds: int) -> list[dict[str, Any]]:
    """A row for each method, with its time relative to plain fine-tuning in the same round."""
    optimizer, classes = SETTINGS[name]
    mesh = sharding.mesh()
    network = models.network(name, classes, precision)
    batches = [random_batch(i, batch, classes, mesh) for i in range(2)]
    compiled, states, seconds = {}, {}, {}
    for method in METHODS:
        recipe = recipes.domainnet(method, name, optimizer)
        tx = methods.optimizer(recipe, 1000, new_head=True)
        program = training.compiled(network, tx, mesh, "data")
        held_out = batches[1] if methods.learns_in_training(recipe) else None
        state = program.start(*models.arrays(network.make(0)))
        start = time.perf_counter()
        step = program.step.lower(state, batches[0], held_out).compile()
        seconds[method] = time.perf_counter() - start
        tqdm.write(f"{name}, {method}: compiled in {seconds[method]:.1f} s")
        for x in batches:  # twice, because FTP's first step is special
            state, _ = step(state, x, held_out)
        compiled[method] = step, held_out
        states[method] = jax.block_until_ready(state)
    times: dict[str, list[float]] = {method: [] for method in METHODS}
    for i in tqdm(range(rounds), name, unit="round"):
        for method, (step, held_out) in compiled.items():
            start = time.perf_counter()
            states[method], _ = step(states[method], batches[i % 2], held_out)
            jax.block_until_ready(states[method])
            times[method].append(time.perf_counter() - start)
    rows = []
    for method, measured in times.items():
        step, _ = compiled[method]
        memory, cost = step.memory_analysis(), step.cost_analysis() or {}
        middle = statistics.median(measured)
        ratios = [a / b for a, b in zip(measured, times["finetune"], strict=True)]
        size = sum(x.nbytes for x in jax.tree.leaves(states[method].opt_state))
        values = [name, optimizer, method, batch, precision]
        values += [1e3 * middle, 1e3 * min(measured), 1e3 * max(measured)]
        values += [statistics.median(ratios), batch / middle, seconds[method], size / 1e9]
        values += [memory.temp_size_in_bytes / 1e9, cost.get("bytes accessed", np.nan) / 1e9]
        rows.append(dict(zip(COLUMNS, [*values, machine(), jax.__version__], strict=True)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", nargs="*", choices=SETTINGS, default=[*SETTINGS])
    parser.add_argument("--batch", type=int, default=4, help="images in a step")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="float32")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each method")
    parser.add_argument("--output", type=Path, default=Path("results/papers.csv"))
    options = parser.parse_args()
    rows = []
    for name in options.model:
        new = measure(name, options.batch, options.precision, options.rounds)
        rows += [{k: f"{v:.3g}" if isinstance(v, float) else v for k, v in x.items()} for x in new]
        write(rows, COLUMNS, options.output)
    for row in rows:
        print("  ".join(f"{name} {row[name]}" for name in COLUMNS[:-2]))
    print(f"\n{machine()}, jax {jax.__version__}; also in {options.output}")


if __name__ == "__main__":
    main()
