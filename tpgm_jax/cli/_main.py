"""From arguments to an exit code."""

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax

from tpgm_jax._axes import Tensor
from tpgm_jax._checks import check_fraction, check_positive
from tpgm_jax.cli import _compare, _project
from tpgm_jax.cli._arguments import parser
from tpgm_jax.cli._checkpoint import Checkpoint, Entry
from tpgm_jax.cli._errors import CommandError
from tpgm_jax.cli._open import SUFFIXES, checkpoint
from tpgm_jax.cli._output import check_output, replacing
from tpgm_jax.cli._plot import check_plot, plot
from tpgm_jax.cli._progress import progress
from tpgm_jax.cli._rows import excluded, parsed_axes, tensors
from tpgm_jax.cli._table import table
from tpgm_jax.cli._text import printable

BAD, INTERRUPTED, GONE = 2, 128 + signal.SIGINT, 128 + signal.SIGPIPE


def run(argv: Sequence[str] | None = None) -> int:
    """Obeys the command line, and returns its exit code."""
    try:
        args = parser().parse_args(argv)
    except SystemExit as end:  # after --help, or what argparse says of bad usage
        return end.code if isinstance(end.code, int) else BAD
    # Another program may have the accelerator, and there is nothing here to speed up.
    jax.config.update("jax_platforms", "cpu")
    try:
        # Checkpoints may be float64, and nobody else's arrays are touched by it.
        with _terminated(), jax.enable_x64(True):
            code = compare(args) if args.command == "compare" else project(args)
            sys.stdout.flush()
            return code
    except CommandError as error:
        return _complain(str(error))
    except MemoryError:
        return _complain("the memory does not suffice for the largest tensor.")
    except BrokenPipeError:
        # What is left in the buffer has nowhere to go, and would raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return GONE
    except OSError as error:
        return _complain(f"{error.filename or 'the output'}: {error.strerror or error}.")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def compare(args: argparse.Namespace) -> int:
    """`tpgm-jax compare`: 0 if both have the same structure, else 1."""
    target, kind = None, ""
    if args.plot is not None:
        kind = args.plot.suffix
        check_plot(args.plot)
        target = check_output(args.plot, [args.pretrained, args.finetuned], force=True)
    with _both(args) as (pretrained, finetuned):
        names, found = _paired(args, pretrained, finetuned)
        check = _compare.measurable(found, pretrained.entries)
        parts = _tensors(args, finetuned, check)
        with progress(_size(finetuned), args.quiet) as told:
            result = _compare.compare(pretrained, finetuned, found, parts, names, told)
    if target is not None:
        with replacing(target) as temporary:
            plot(result.measured, temporary, kind)
    if args.json:
        _print_json(result.as_json(args.pretrained, args.finetuned))
    else:
        _print(table(result, sys.stdout.isatty()))
    return 0 if found.same else 1


def project(args: argparse.Namespace) -> int:
    """`tpgm-jax project`."""
    radius: Any = args.radius  # one of them is `None`
    alpha: Any = args.alpha
    try:
        if alpha is not None:
            check_fraction(alpha, "--alpha")
        else:
            check_positive(radius, "--radius")
    except ValueError as error:
        raise CommandError(str(error)) from error
    if alpha is not None and (args.norm or args.unit or args.rows or args.axes):
        raise CommandError(
            "--alpha moves every number by the same fraction, so that --norm, --unit, --rows and "
            "--axes say nothing: leave them out."
        )
    target = check_output(args.out, [args.pretrained, args.finetuned], args.force)
    with _both(args) as (pretrained, finetuned):
        _check_suffix(args.out, finetuned)
        names, found = _paired(args, pretrained, finetuned)
        _project.check_structure(found)
        if alpha is not None:
            common, move = set(found.common), _project.interpolation(alpha)

            def movable(entry: Entry) -> bool:
                return entry.inexact and entry.name in common
        else:
            parts = _tensors(args, finetuned, _compare.measurable(found, pretrained.entries))
            norm, unit = args.norm or "mars", args.unit or "norm"
            move = _project.projection(radius, norm, unit, parts, pretrained, finetuned)

            def movable(entry: Entry) -> bool:
                return entry.name in parts

        with progress(_size(finetuned), args.quiet) as told, replacing(target) as temporary:
            report = _project.project(
                pretrained, finetuned, found, movable, move, names, temporary, args.out, told
            )
    if args.json:
        _print_json(report.as_json())
    else:
        _print(report.as_text("interpolated" if args.radius is None else "projected"))
    return 0


@contextmanager
def _both(args: argparse.Namespace) -> Iterator[tuple[Checkpoint, Checkpoint]]:
    with ExitStack() as stack:
        paths = (args.pretrained, args.finetuned)
        pretrained, finetuned = (stack.enter_context(checkpoint(path)) for path in paths)
        yield pretrained, finetuned


def _paired(
    args: argparse.Namespace, pretrained: Checkpoint, finetuned: Checkpoint
) -> tuple[set[str], _compare.Structure]:
    every = list(dict.fromkeys([*finetuned.entries, *pretrained.entries]))
    names = excluded(args.exclude, every)
    return names, _compare.structure(pretrained.entries, finetuned.entries, names)


def _tensors(args: argparse.Namespace, finetuned: Checkpoint, check: Any) -> dict[str, Tensor]:
    axes = [parsed_axes(text) for text in args.axes]
    return tensors(finetuned.entries, check, args.rows or "auto", axes)


def _check_suffix(out: Path, finetuned: Checkpoint) -> None:
    suffix = f".{finetuned.kind}"
    if out.suffix in SUFFIXES and out.suffix != suffix:
        raise CommandError(
            f"{out} ends in {out.suffix}, but the output is of the format of FINETUNED, "
            f"{finetuned.kind}: name it otherwise."
        )


def _size(found: Checkpoint) -> int:
    return sum(entry.size for entry in found.entries.values())


def _print_json(found: dict[str, Any]) -> None:
    _print(json.dumps(found, indent=2, allow_nan=False) + "\n")


def _print(text: str) -> None:
    # A terminal of few letters gets the others as escapes.
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def _complain(message: str) -> int:
    print(f"tpgm-jax: error: {printable(message, limit=2000)}", file=sys.stderr)
    return BAD


@contextmanager
def _terminated() -> Iterator[None]:
    """Lets a plain `kill` unwind, so that temporary files go."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, frame):
        del frame
        raise SystemExit(128 + number)

    old = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)
