"""Runs one case of a benchmark in a separate process, which frees its memory and may fail alone."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def run_apart(
    module: str, case: str, text: Path | None, environment: Mapping[str, str], given: Any = None
) -> Any:
    """The last line of `python -m module --one case`, read as JSON.

    Args:
        module: the benchmark.
        case: the case.
        text: a folder for the texts of the programs, or `None`.
        environment: variables to add.
        given: for the process's standard input, as JSON.
    """
    command = [sys.executable, "-m", module, "--one", case]
    command += ["--text", str(text)] if text else []
    done = subprocess.run(
        command,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{case} did not compile:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])
