"""The command line that the further scenarios share."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.robustness import CACHE, OUTPUT, ROOT


def parse(
    program: str | None, name: str, arguments: Sequence[str] | None, *, study: bool = False
) -> argparse.Namespace:
    """Options `fast`, `output` and `cache`.

    Args:
        program: its docstring.
        name: of the scenario, as its CSV has it.
        arguments: of the command line; `None`: the process's own.
        study: whether there is an option for the CSV in which settings were chosen.
    """
    default = OUTPUT.with_name(f"robustness_{name}.csv")
    parser = argparse.ArgumentParser(description=(program or "").split("\n\n")[0])
    parser.add_argument("--fast", action="store_true", help="a rehearsal; the numbers mean nothing")
    parser.add_argument("--output", type=Path, help=f"default {default.relative_to(ROOT)}")
    parser.add_argument("--cache", type=Path, default=CACHE, help="of pre-trained networks")
    if study:
        parser.add_argument("--study", type=Path, default=OUTPUT, help="where settings were chosen")
    options = parser.parse_args(arguments)
    rehearsal = ROOT / "results" / default.name
    options.output = options.output or (rehearsal if options.fast else default)
    return options
