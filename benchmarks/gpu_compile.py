"""Kernels and memory traffic of optimizer steps on a GPU, compiled without a GPU.

The plugin for CUDA compiles for a described GPU and needs neither a GPU nor a driver. This compiles
the optimizer step alone and the whole training step, with parameters and state donated, and counts
kernels and bytes in the program (`kernels.py` has the rules). It counts traffic: no time of a step
is known. Every case is compiled in a separate process, and its row is written when it is done. A
second run compiles only cases that are missing or whose program changed, and prints all tables.

    make bench-gpu ARGS='--case h100/vit_b16/optimizer/ftp'
"""

import argparse
import csv
import hashlib
import importlib.metadata
import json
import re
import sys
import time
from collections.abc import Callable, Collection, Mapping
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

import tpgm_jax
from benchmarks import gpus, kernels, models, trees
from benchmarks.apart import run_apart
from benchmarks.recording import machine, write

BASES = {"adamw": optax.adamw(1e-4), "sgd": optax.sgd(1e-2, momentum=0.9)}
WRAPPERS: dict[str, Callable[[Any, Any], Any]] = {
    "{}": lambda base, axes: base,
    "ftp({})": lambda base, axes: tpgm_jax.ftp(base, axes=axes),
    "ftp({}), compact": lambda base, axes: tpgm_jax.ftp(base, memory="compact", axes=axes),
    "ftp({}), l2": lambda base, axes: tpgm_jax.ftp(base, norm="l2", axes=axes),
    "tpgm({})": lambda base, axes: tpgm_jax.tpgm(base, axes=axes),
    "spd({})": lambda base, axes: tpgm_jax.spd(base, axes=axes),
    "{}, project_to_anchor": lambda base, axes: optax.chain(
        base, tpgm_jax.project_to_anchor(0.1, axes=axes)
    ),
}
METHODS = {name.format(base): (base, name) for base in BASES for name in WRAPPERS}
SCOPES = ("optimizer", "training")
MODELS = ("vit_b16", "scanned_decoder")

WHICH = ["gpu", "tree", "scope", "method"]
VERSIONS = ["jax", "jax-cuda12-plugin", "optax"]
COLUMNS = [*WHICH, "parameters", "kernels", "read_bytes", "written_bytes", "temporary_bytes"]
COLUMNS += ["compile_cpu_seconds", "program", "machine", *VERSIONS]


class Case(NamedTuple):
    """A program to compile."""

    gpu: str
    tree: str
    scope: str
    method: str

    def __str__(self) -> str:
        return "/".join(self)


def methods_for(gpu: str, scope: str, tree: str) -> list[str]:
    """All methods for the ViT's optimizer step on an H100, fewer elsewhere."""
    if scope == "training":
        return ["adamw", "ftp(adamw)", "ftp(adamw), compact", "tpgm(adamw)"]
    if gpu == "h100" and tree == "vit_b16":
        return list(METHODS)
    if gpu == "h100" and not tree.startswith("small_leaves"):
        return [name for name, (base, _) in METHODS.items() if base == "adamw"]
    return ["adamw", "ftp(adamw)", "ftp(adamw), compact", "adamw, project_to_anchor"]


CASES = [
    Case(gpu, tree, scope, method)
    for gpu in gpus.DEVICES
    for scope in SCOPES
    for tree in (MODELS if scope == "training" else trees.PRESETS)
    for method in methods_for(gpu, scope, tree)
]


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in VERSIONS}


@jax.custom_vjp
def linear(params: Any, slopes: Any) -> jax.Array:
    """A loss with the given gradient. Its value, always 0, costs nothing."""
    del params, slopes
    return jnp.zeros(())


linear.defvjp(
    lambda params, slopes: (jnp.zeros(()), slopes),
    lambda slopes, g: (jax.tree.map(lambda x: g * x, slopes), None),
)


def step_of(case: Case, tx: optax.GradientTransformationExtraArgs) -> Callable[..., Any]:
    """`(params, state, given)` to the new parameters and state.

    In the optimizer's scope, `given` is the gradient and the gradient of the held-out loss, so that
    TPGM's radius step counts without passes through a model. In the training scope it is two
    batches. Results are in the order of the donated arguments, because XLA pairs arguments with
    results of equal shape in this order; in another order it would add copies.
    """

    def optimizer_step(params: Any, state: Any, given: Any) -> Any:
        grads, slopes = given
        held_out = {"held_out_loss": lambda params: linear(params, slopes)}
        updates, state = tx.update(grads, state, params, **held_out)
        return optax.apply_updates(params, updates), state

    def training_step(params: Any, state: Any, given: Any) -> Any:
        batch, held_out_batch = given
        loss = models.MODELS[case.tree].loss
        grads = jax.grad(loss)(params, *batch)
        held_out = {"held_out_loss": lambda params: loss(params, *held_out_batch)}
        updates, state = tx.update(grads, state, params, **held_out)
        return optax.apply_updates(params, updates), state

    return {"optimizer": optimizer_step, "training": training_step}[case.scope]


def lower(case: Case) -> jax.stages.Lowered:
    sharding = gpus.sharding_on(case.gpu)

    def placed(tree: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    base, wrapper = METHODS[case.method]
    made = WRAPPERS[wrapper](BASES[base], trees.AXES.get(case.tree))
    tx = optax.with_extra_args_support(made)
    shapes = trees.PRESETS[case.tree]()
    params = placed({k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in shapes.items()})
    state = placed(jax.eval_shape(tx.init, params))
    given = params
    if case.scope == "training":
        given = placed(jax.eval_shape(lambda: models.MODELS[case.tree].batch(0)))
    step = jax.jit(step_of(case, tx), donate_argnums=(0, 1))
    return step.trace(params, state, (given, given)).lower()


def measure(case: Case, known: Mapping[str, Any], text: Path | None) -> dict[str, Any]:
    """Compiles a program and returns its row, or `known` if it is the row of the same program.

    Writes the program's text to the folder `text`.
    """
    start = time.process_time()
    lowered = lower(case)
    row: dict[str, Any] = {**dict(zip(WHICH, case, strict=True)), **versions()}
    row["program"] = hashlib.sha256(lowered.as_text().encode()).hexdigest()[:16]
    if all(known.get(x) == row[x] for x in row):
        return dict(known)
    # Matrix products go to cuBLAS: to choose tiles for XLA's own kernels takes a GPU.
    compiled = lowered.compile(compiler_options={"xla_gpu_enable_triton_gemm": False})
    seconds, program = time.process_time() - start, compiled.as_text() or ""
    if text is not None:
        text.mkdir(parents=True, exist_ok=True)
        (text / f"{re.sub(r'[^a-z0-9]+', '_', str(case))}.txt").write_text(program)
    found, memory = kernels.kernels(program), memory_of(compiled)
    row["parameters"] = sum(prod(shape) for shape in trees.PRESETS[case.tree]().values())
    row["kernels"] = sum(x.runs for x in found)
    row["read_bytes"] = sum(x.runs * x.read for x in found)
    row["written_bytes"] = sum(x.runs * x.written for x in found)
    row["temporary_bytes"] = memory.temp_size_in_bytes
    return row | {"compile_cpu_seconds": round(seconds, 1), "machine": machine()}


def memory_of(compiled: jax.stages.Compiled) -> Any:
    return compiled.memory_analysis()


def table(rows: Mapping[Case, Mapping[str, Any]], shown: Collection[Case]) -> str:
    """Markdown, one table for each GPU and scope.

    Traffic and temporaries are in copies of the parameters, and the ratio is the traffic to the
    traffic of the base optimizer alone.
    """
    lines = []
    present = [case for case in CASES if case in shown and case in rows]
    for (gpu, scope), cases in groupby(present, key=lambda case: (case.gpu, case.scope)):
        lines += [f"\n{gpu.upper()}, {scope} step:\n"]
        lines += ["| tree | method | kernels | traffic | ratio | temporaries | compile CPU s |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for case in cases:
            row, base = rows[case], rows.get(case._replace(method=METHODS[case.method][0]))
            size = 4 * int(row["parameters"])
            ratio = f"{moved(row) / moved(base):.2f}" if base else ""
            cells = [f"`{case.tree}`", case.method, row["kernels"], f"{moved(row) / size:.2f}"]
            cells += [ratio, f"{int(row['temporary_bytes']) / size:.2f}"]
            cells += [f"{float(row['compile_cpu_seconds']):.0f}"]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def moved(row: Mapping[str, Any]) -> int:
    return int(row["read_bytes"]) + int(row["written_bytes"])


def known_rows(path: Path) -> dict[Case, dict[str, Any]]:
    """The rows on disk, in the order of the cases."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = {Case(*(row[x] for x in WHICH)): row for row in csv.DictReader(file)}
    return {case: rows[case] for case in CASES if case in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--case", default="", help="a regular expression; see --list")
    parser.add_argument("--list", action="store_true", help="show the cases, and compile nothing")
    parser.add_argument("--table", action="store_true", help="print the tables, compile nothing")
    parser.add_argument("--again", action="store_true", help="compile unchanged programs as well")
    parser.add_argument("--text", type=Path, help="a folder for the texts of the programs")
    parser.add_argument("--output", type=Path, default=Path("results/gpu_compile.csv"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        case = Case(*options.one.split("/"))
        print(json.dumps(measure(case, json.load(sys.stdin), options.text)))
        return
    cases = [x for x in CASES if re.search(options.case, str(x))]
    if options.list:
        print(*cases, sep="\n")
        return
    rows, failed = known_rows(options.output), []
    if not options.table:
        check_plugin()
        for case in tqdm(cases, unit="program"):
            tqdm.write(str(case))
            try:
                known = {} if options.again else rows.get(case, {})
                rows[case] = run_apart(
                    "benchmarks.gpu_compile",
                    str(case),
                    options.text,
                    {"TF_CPP_MIN_LOG_LEVEL": "3"},
                    known,
                )
            except RuntimeError as error:
                tqdm.write(str(error))
                failed.append(case)
                continue
            write([rows[x] for x in CASES if x in rows], COLUMNS, options.output)
    print(table(rows, cases))
    sys.exit(f"{len(failed)} did not compile: {[*map(str, failed)]}" if failed else 0)


def check_plugin() -> None:
    try:
        importlib.metadata.version("jax-cuda12-plugin")
    except importlib.metadata.PackageNotFoundError:
        sys.exit(
            "`jax-cuda12-plugin`, which compiles for NVIDIA GPUs, is not installed. Run "
            "`make bench-gpu`, which installs it in an environment of its own, `.venv-gpu`."
        )


if __name__ == "__main__":
    main()
