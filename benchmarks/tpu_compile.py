"""The cost of FTP in TPU programs for decoders of billions of parameters, compiled without a TPU.

`libtpu` can compile for absent devices. This compiles the optimizer step alone and the whole
training step (scanned and rematerialised layers, bfloat16 over float32 parameters), with parameters
and state donated, and counts bytes on each device and collectives. Every case is compiled in a
separate process, and its row is written when it is done, so that a second run compiles only the
missing cases.

    make bench-tpu ARGS='--case v5e.*8B.*training'
"""

import argparse
import csv
import importlib.metadata
import importlib.util
import json
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from tqdm import tqdm

import tpgm_jax
from benchmarks import pod
from benchmarks.apart import run_apart
from benchmarks.hlo import KINDS, collectives
from benchmarks.pod import Placement
from benchmarks.recording import machine, write

SETTINGS = {
    "v5e:16x16": [
        *((size, Placement(64, 4)) for size in ("1B", "4B", "8B")),
        ("1B", Placement(64, 4, alike=True)),
        ("1B", Placement(256, 1)),
    ],
    "v6e:4x4": [("0.3B", Placement(4, 4))],
    "v5p:2x2x2": [("0.3B", Placement(4, 2))],
}
SCOPES = ("optimizer", "training", "training, loss awaited")
ADAMW, COMPACT = optax.adamw(1e-4), {"axes": pod.AXES, "memory": "compact"}
METHODS: dict[str, optax.GradientTransformation] = {
    "adamw": ADAMW,
    "ftp(adamw)": tpgm_jax.ftp(ADAMW, axes=pod.AXES),
    "ftp(adamw), compact": tpgm_jax.ftp(ADAMW, **COMPACT),
    "ftp(adamw), compact, anchor handed in": tpgm_jax.ftp(ADAMW, **COMPACT, anchor="argument"),
    "ftp(adamw), l2": tpgm_jax.ftp(ADAMW, norm="l2", axes=pod.AXES),
}
# Parameter-sized copies among the arguments, in addition to AdamW's: anchor and displacement; the
# anchor in the state; the anchor as a separate argument.
COPIES = dict(zip(METHODS, (0, 2, 1, 1, 2), strict=True))
# The others are compiled for the largest model alone.
EVERYWHERE = ("adamw", "ftp(adamw)", "ftp(adamw), compact")

WHICH = ["topology", "mesh", "model", "scope", "method"]
BYTES = ["argument", "output", "alias", "temporary", "peak", "parameter", "bookkeeping"]
COLUMNS = [*WHICH, "parameters", *(f"{x}_bytes" for x in BYTES)]
for _kind in KINDS:
    COLUMNS += [f"{_kind}s", f"{_kind}_bytes"]
VERSIONS = ["jax", "libtpu", "optax"]
COLUMNS += ["gathers", "accessed_bytes", "compile_seconds", "machine", *VERSIONS]

# Kinds that copy the numbers of another device.
GATHERS = ("all-gather", "all-to-all", "collective-permute")


class Case(NamedTuple):
    """A program to compile."""

    topology: str
    size: str
    placement: Placement
    scope: str
    method: str

    def __str__(self) -> str:
        return "/".join(self.which.values())

    @property
    def which(self) -> dict[str, str]:
        """The columns that identify a row."""
        values = (self.topology, str(self.placement), self.size, self.scope, self.method)
        return dict(zip(WHICH, values, strict=True))


# A TPU machine has a metadata server to query, and this one has none.
QUERY_NOTHING = {"TPU_SKIP_MDS_QUERY": "1"}

CASES = [
    Case(topology, size, placement, scope, method)
    for topology, models in SETTINGS.items()
    for size, placement in models
    for scope in SCOPES
    for method in (METHODS if size == "8B" else EVERYWHERE)
]


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in VERSIONS}


def measure(case: Case, text: Path | None) -> dict[str, Any]:
    """Compiles a program and returns its row. Writes the program's text to the folder `text`."""
    mesh = pod.mesh_of(case.topology, case.placement)
    tx = optax.with_extra_args_support(METHODS[case.method])
    handed = "handed in" in case.method
    made = pod.program(tx, case.scope, case.size, case.placement, mesh, handed)
    start = time.perf_counter()
    step = jax.jit(made.step, donate_argnums=(0, 1))
    compiled = step.lower(*made.arguments, **made.keywords).compile()
    seconds = time.perf_counter() - start
    memory, program = memory_of(compiled), compiled.as_text() or ""
    if text is not None:
        text.mkdir(parents=True, exist_ok=True)
        (text / f"{re.sub(r'[^a-z0-9]+', '_', str(case).lower())}.txt").write_text(program)
    found, row = collectives(program), dict[str, Any](case.which)
    row |= {"parameters": sum(x.size for x in jax.tree.leaves(made.arguments[0]))}
    row |= {"argument_bytes": memory.argument_size_in_bytes}
    row |= {"output_bytes": memory.output_size_in_bytes, "alias_bytes": memory.alias_size_in_bytes}
    row |= {"temporary_bytes": memory.temp_size_in_bytes, "peak_bytes": memory.peak_memory_in_bytes}
    row |= {"parameter_bytes": laid_out(made.arguments[0])}
    row |= {"bookkeeping_bytes": laid_out(made.bookkeeping)}
    for kind in KINDS:
        ones = [x for x in found if x.kind == kind]
        row |= {f"{kind}s": len(ones), f"{kind}_bytes": sum(x.bytes * x.runs for x in ones)}
    counted = Counter(x.bytes for x in found if x.kind in GATHERS)
    row["gathers"] = " ".join(f"{n}x{size}" for size, n in sorted(counted.items()))
    # XLA's own count of the memory traffic. It does not multiply the body of a loop by its runs.
    row["accessed_bytes"] = int((compiled.cost_analysis() or {}).get("bytes accessed", 0))
    row["compile_seconds"] = round(seconds, 1)
    return row | {"machine": machine()} | versions()


def laid_out(tree: Any) -> int:
    """Bytes of `tree` on one device as arguments of a program, with padding."""
    return memory_of(jax.jit(lambda x: x).lower(tree).compile()).argument_size_in_bytes


def memory_of(compiled: jax.stages.Compiled) -> Any:
    return compiled.memory_analysis()


def judged(row: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Compares a row with AdamW's row, in the quantities that have targets.

    Returns:
        "collectives": additional collectives. "gathers": additional gathers as large as parameters.
        "temporaries" and "peak": additional memory, in parameter shards. "unexplained": additional
        bytes of the arguments that are neither expected copies of the parameters nor bookkeeping.
        "traffic": the ratio of XLA's counts of memory traffic; 0 for rows from before it was read.
    """

    def more(column: str) -> int:
        return int(row[column]) - int(base[column])

    def sizes(one: Mapping[str, Any]) -> Counter[int]:
        pairs = (x.split("x") for x in one["gathers"].split())
        return Counter({int(size): int(n) for n, size in pairs})

    # Gathers count from the size of one device's part of a layer's smallest kernel, in bfloat16.
    # Compilers also exchange borders of a few KB if an array does not divide into their tiles.
    width, _ = pod.SIZES[row["model"]]
    chips = math.prod(int(n) for n in row["mesh"].partition(" ")[0].split("x"))
    extra = (sizes(row) - sizes(base)).items()
    shard = int(row["parameter_bytes"])
    copies = COPIES[row["method"]] * shard
    return {
        "collectives": sum(more(f"{kind}s") for kind in KINDS),
        "gathers": sum(n for size, n in extra if size >= 2 * width**2 // chips),
        "temporaries": more("temporary_bytes") / shard,
        "peak": more("peak_bytes") / shard,
        "unexplained": more("argument_bytes") - copies - more("bookkeeping_bytes"),
        "traffic": int(row["accessed_bytes"] or 0) / int(base["accessed_bytes"] or 1),
    }


def missed(found: Mapping[str, Any]) -> list[str]:
    """The targets that a judged row does not meet."""
    limits = {"collectives": 4, "gathers": 0, "temporaries": 0.25}
    return [x for x, limit in limits.items() if found[x] > limit] + (
        ["arguments"] if found["unexplained"] else []
    )


def table(rows: Mapping[Case, Mapping[str, Any]]) -> str:
    """The additions to AdamW, case by case."""
    lines = []
    for case, row in rows.items():
        base = rows.get(case._replace(method="adamw"))
        if case.method == "adamw" or base is None:
            continue
        found = judged(row, base)
        shown = [f"{x} {y:.2f}" if isinstance(y, float) else f"{x} {y}" for x, y in found.items()]
        verdict = "MISSED: " + ", ".join(missed(found)) if missed(found) else "met"
        lines.append(f"{case}\n    more {'; '.join(shown)}: {verdict}")
    return "\n".join(lines)


def known(path: Path) -> dict[Case, dict[str, Any]]:
    """The rows on disk, in the order of the cases."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = {tuple(row[x] for x in WHICH): row for row in csv.DictReader(file)}
    keys = {case: tuple(case.which.values()) for case in CASES}
    return {case: rows[key] for case, key in keys.items() if key in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--case", default="", help="a regular expression; see --list")
    parser.add_argument("--list", action="store_true", help="show the cases, and compile nothing")
    parser.add_argument("--again", action="store_true", help="also compile the cases in the table")
    parser.add_argument("--text", type=Path, help="a folder for the texts of the programs")
    parser.add_argument("--output", type=Path, default=Path("results/tpu_compile.csv"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        case = next(x for x in CASES if str(x) == options.one)
        print(json.dumps(measure(case, options.text)))
        return
    cases = [x for x in CASES if re.search(options.case, str(x))]
    if options.list:
        print(*cases, sep="\n")
        return
    if importlib.util.find_spec("libtpu") is None:
        sys.exit(
            "There is no `libtpu` here, which compiles for TPUs: `make bench-tpu` installs it, as "
            "does `pip install --no-deps 'libtpu==0.0.42.*'` (Linux on x86_64, 200 MB)."
        )
    rows, failed = known(options.output), []
    now = versions()
    for case in tqdm(cases, unit="program"):
        row = rows.get(case)
        if row and not options.again and all(row[x] == now[x] for x in VERSIONS):
            continue
        tqdm.write(str(case))
        try:
            rows[case] = run_apart("benchmarks.tpu_compile", str(case), options.text, QUERY_NOTHING)
        except RuntimeError as error:
            tqdm.write(str(error))
            failed.append(case)
            continue
        write([rows[x] for x in CASES if x in rows], COLUMNS, options.output)
    print(table({x: rows[x] for x in cases if x in rows}))
    sys.exit(f"{len(failed)} did not compile: {[*map(str, failed)]}" if failed else 0)


if __name__ == "__main__":
    main()
