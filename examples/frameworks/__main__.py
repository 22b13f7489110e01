"""Runs the scripts of this folder, each set in an environment of its own, and writes a log.

    make frameworks                       all of them
    make frameworks ARGS='haiku keras'    some of them; the log keeps the lines of the others

An environment is made with `uv`, or with `venv` and `pip` if there is no `uv`. Every case names
the Python that it needs; `python3.12` and `python3.13` must be on the path.
"""

import argparse
import datetime
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".venv-frameworks"
LOG = ROOT / "docs" / "frameworks" / "log.md"
MODULE = "examples.frameworks"


class Case(NamedTuple):
    """An environment, and the scripts that run in it.

    Attributes:
        python: version of Python.
        packages: packages to install beside this library.
        scripts: modules of this folder.
    """

    python: str
    packages: tuple[str, ...]
    scripts: tuple[str, ...]


CASES = {
    "tunix": Case("3.12", ("google-tunix>=0.1.7",), ("tunix_full", "tunix_lora")),
    "kauldron": Case("3.12", ("kauldron>=1.4.4",), ("kauldron_trainer",)),
    "gemma": Case("3.12", ("gemma>=4.0.1", "sentencepiece<0.2.2"), ("gemma_kauldron",)),
    "maxtext": Case("3.12", ("maxtext[tpu]>=0.2.5",), ("maxtext_hook",)),
    # Its models need PyTorch and Pillow, and it does not install them.
    "easydel": Case("3.12", ("easydel[torch]>=0.3.0", "pillow"), ("easydel_trainer",)),
    "keras": Case("3.12", ("keras>=3.15", "orbax-checkpoint"), ("keras_compile", "keras_loop")),
    "haiku": Case("3.12", ("dm-haiku>=0.0.17", "orbax-checkpoint"), ("haiku_ftp",)),
    "equinox": Case("3.12", ("equinox>=0.13.8", "equimo>=2.7"), ("equinox_vit",)),
    "penzai": Case("3.12", ("penzai>=0.2.5", "orbax-checkpoint"), ("penzai_ftp",)),
    "flax-3.12": Case("3.12", ("flax>=0.12.12",), ("flax_newest",)),
    "flax-3.13": Case("3.13", ("flax>=0.12.12",), ("flax_newest",)),
}

HEAD = """# Log of the frameworks

`make frameworks` writes this page: each script in an environment of its own, on the CPU. A failure
shows the last line of its output.

| case | script | outcome | seconds | date | Python | packages |
|---|---|---|---|---|---|---|
"""


class Result(NamedTuple):
    """One line of the log."""

    case: str
    script: str
    outcome: str
    seconds: float
    date: str
    python: str
    packages: str

    def line(self) -> str:
        cells = [f"{x:.0f}" if isinstance(x, float) else x.replace("|", "\\|") for x in self]
        return f"| {' | '.join(cells)} |"


def run(command: list[str], **options) -> subprocess.CompletedProcess[str]:
    print("+", *command, flush=True)
    return subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def last_line(output: str) -> str:
    """The reason of a failure: uv's cause if there is one, or the last line that is not empty."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    causes = [i for i, line in enumerate(lines) if line.startswith("cause:")]
    return " ".join(lines[causes[0] :] if causes else lines[-1:])


def install(name: str, case: Case) -> subprocess.CompletedProcess[str]:
    """Makes the environment of a case."""
    folder, uv = ENVIRONMENTS / name, shutil.which("uv")
    packages = ["--editable", ".", *case.packages]
    if uv:
        made = run([uv, "venv", "--clear", "--quiet", "--python", case.python, str(folder)])
        command = [uv, "pip", "install", "--quiet", "--python", python_of(name), *packages]
    else:
        made = run([f"python{case.python}", "-m", "venv", "--clear", str(folder)])
        command = [python_of(name), "-m", "pip", "install", "--quiet", *packages]
    return run(command) if made.returncode == 0 else made


def python_of(name: str) -> str:
    return str(ENVIRONMENTS / name / "bin" / "python")


def versions(name: str, case: Case) -> str:
    """Versions of what the case names, and of the packages that this library stands on."""
    wanted = [re.split("[<>[]", package)[0] for package in case.packages]
    wanted = list(dict.fromkeys([*wanted, "flax", "jax", "optax"]))
    code = (
        "import importlib.metadata as m, sys\n"
        "have = {d.name.lower().replace('_', '-'): d.version for d in m.distributions()}\n"
        "print(', '.join(f'{x} {have[x]}' for x in sys.argv[1:] if x in have))"
    )
    return run([python_of(name), "-c", code, *wanted]).stdout.strip()


def run_case(name: str) -> list[Result]:
    """Results of all scripts of a case."""
    case, date, start = CASES[name], f"{datetime.date.today()}", time.monotonic()
    installed = install(name, case)
    if installed.returncode:
        reason = f"not installed: {last_line(installed.stdout)}"
        seconds, packages = time.monotonic() - start, ", ".join(case.packages)
        print(installed.stdout)
        return [Result(name, "", reason, seconds, date, case.python, packages)]
    results = []
    for script in case.scripts:
        start = time.monotonic()
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        done = run([python_of(name), "-m", f"{MODULE}.{script}"], env=environment)
        outcome = "ok" if done.returncode == 0 else f"failed: {last_line(done.stdout)}"
        seconds = time.monotonic() - start
        if done.returncode:
            print(done.stdout)
        print(name, script, outcome, f"{seconds:.0f} s", flush=True)
        results.append(
            Result(name, script, outcome, seconds, date, case.python, versions(name, case))
        )
    return results


def write_log(results: dict[str, list[Result]]) -> None:
    """Replaces the lines of the cases that ran, and keeps the lines of the other cases."""
    lines = LOG.read_text().splitlines() if LOG.exists() else []
    old = {name: [x for x in lines if x.startswith(f"| {name} |")] for name in CASES}
    new = {name: [result.line() for result in results.get(name, ())] for name in CASES}
    text = "\n".join(line for name in CASES for line in new[name] or old[name])
    LOG.write_text(f"{HEAD}{text}\n")


def main() -> int:
    """Runs cases, and returns 0 if every script of them ran through."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="case", help=" ".join(CASES))
    names = parser.parse_args().cases or list(CASES)
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"no case {unknown}: choose from {list(CASES)}")
    results = {}
    for name in names:
        results[name] = run_case(name)
        write_log(results)
    return any(result.outcome != "ok" for some in results.values() for result in some)


if __name__ == "__main__":
    sys.exit(main())
