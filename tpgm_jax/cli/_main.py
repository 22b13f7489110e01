"""Runs the commands and returns exit codes."""

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax

from tpgm_jax._core.axes import Tensor
from tpgm_jax._core.checks import check_fraction, check_positive
from tpgm_jax.cli import _compare, _project
from tpgm_jax.cli._arguments import parser
from tpgm_jax.cli._checkpoint import Checkpoint, Entry
from tpgm_jax.cli._errors import CommandError
from tpgm_jax.cli._open import SUFFIXES, open_checkpoint
from tpgm_jax.cli._output import check_output, write_atomically
from tpgm_jax.cli._plot import check_plot, plot
from tpgm_jax.cli._progress import progress_bar
from tpgm_jax.cli._rows import excluded_names, parse_axes, tensors
from tpgm_jax.cli._table import table
from tpgm_jax.cli._text import printable

BAD, INTERRUPTED, BROKEN_PIPE = 2, 128 + signal.SIGINT, 128 + signal.SIGPIPE


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns its exit code."""
    try:
        args = parser().parse_args(argv)
    except SystemExit as end:  # after --help, or an error that argparse has printed
        return end.code if isinstance(end.code, int) else BAD
    # Another program may use the accelerator, and this program would gain little from it.
    jax.config.update("jax_platforms", "cpu")
    try:
        # Checkpoints may be float64.
        with _unwind_on_sigterm(), jax.enable_x64(True):
            code = compare(args) if args.command == "compare" else project(args)
            sys.stdout.flush()
            return code
    except CommandError as error:
        return _print_error(str(error))
    except MemoryError:
        return _print_error("the largest tensor does not fit into memory: use a machine with more.")
    except BrokenPipeError:
        # Discard the rest of the buffer, which would raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        return _print_error(f"{error.filename or 'the output'}: {error.strerror or error}.")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def compare(args: argparse.Namespace) -> int:
    """Runs `tpgm-jax compare`. Returns 0 if both have the same structure, else 1."""
    target, kind = None, ""
    if args.plot is not None:
        kind = args.plot.suffix
        check_plot(args.plot)
        target = check_output(args.plot, [args.pretrained, args.finetuned], force=True)
    with _open_both(args) as (pretrained, finetuned):
        excluded, structure = _match(args, pretrained, finetuned)
        measurable = _compare.measurable(structure, pretrained.entries)
        parts = _tensors(args, finetuned, measurable)
        with progress_bar(_size(finetuned), args.quiet) as progress:
            result = _compare.compare(pretrained, finetuned, structure, parts, excluded, progress)
    if target is not None:
        with write_atomically(target) as temporary:
            plot(result.measurements, temporary, kind)
    if args.json:
        _print_json(result.as_json(args.pretrained, args.finetuned))
    else:
        _print(table(result, sys.stdout.isatty()))
    return 0 if structure.same else 1


def project(args: argparse.Namespace) -> int:
    """Runs `tpgm-jax project`."""
    radius: Any = args.radius  # `None` if `alpha` is given, and vice versa
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
            "--alpha cannot be used with --norm, --unit, --rows or --axes, because it moves every "
            "number by the same fraction: leave them out."
        )
    target = check_output(args.out, [args.pretrained, args.finetuned], args.force)
    with _open_both(args) as (pretrained, finetuned):
        _check_suffix(args.out, finetuned)
        excluded, structure = _match(args, pretrained, finetuned)
        _project.check_structure(structure)
        if alpha is not None:
            common, move = set(structure.common), _project.interpolation(alpha)

            def movable(entry: Entry) -> bool:
                return entry.inexact and entry.name in common
        else:
            measurable = _compare.measurable(structure, pretrained.entries)
            parts = _tensors(args, finetuned, measurable)
            norm, unit = args.norm or "mars", args.unit or "norm"
            move = _project.projection(radius, norm, unit, parts, pretrained, finetuned)

            def movable(entry: Entry) -> bool:
                return entry.name in parts

        bar = progress_bar(_size(finetuned), args.quiet)
        with bar as progress, write_atomically(target) as temporary:
            report = _project.project(
                pretrained,
                finetuned,
                structure,
                movable,
                move,
                excluded,
                temporary,
                args.out,
                progress,
            )
    if args.json:
        _print_json(report.as_json())
    else:
        _print(report.as_text("interpolated" if args.radius is None else "projected"))
    return 0


@contextmanager
def _open_both(args: argparse.Namespace) -> Iterator[tuple[Checkpoint, Checkpoint]]:
    with ExitStack() as stack:
        paths = (args.pretrained, args.finetuned)
        pretrained, finetuned = (stack.enter_context(open_checkpoint(path)) for path in paths)
        yield pretrained, finetuned


def _match(
    args: argparse.Namespace, pretrained: Checkpoint, finetuned: Checkpoint
) -> tuple[set[str], _compare.Structure]:
    """Excluded names, and the entries of both checkpoints matched by name."""
    names = list(dict.fromkeys([*finetuned.entries, *pretrained.entries]))
    excluded = excluded_names(args.exclude, names)
    return excluded, _compare.match_by_name(pretrained.entries, finetuned.entries, excluded)


def _tensors(
    args: argparse.Namespace, finetuned: Checkpoint, measurable: Callable[[Entry], bool]
) -> dict[str, Tensor]:
    axes = [parse_axes(text) for text in args.axes]
    return tensors(finetuned.entries, measurable, args.rows or "auto", axes)


def _check_suffix(out: Path, finetuned: Checkpoint) -> None:
    suffix = f".{finetuned.kind}"
    if out.suffix in SUFFIXES and out.suffix != suffix:
        raise CommandError(
            f"{out} cannot end in {out.suffix}, because the output has the format of FINETUNED, "
            f"{finetuned.kind}: choose another name."
        )


def _size(checkpoint: Checkpoint) -> int:
    return sum(entry.size for entry in checkpoint.entries.values())


def _print_json(result: dict[str, Any]) -> None:
    _print(json.dumps(result, indent=2, allow_nan=False) + "\n")


def _print(text: str) -> None:
    # Escape characters that the terminal's encoding lacks.
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def _print_error(message: str) -> int:
    print(f"tpgm-jax: error: {printable(message, limit=2000)}", file=sys.stderr)
    return BAD


@contextmanager
def _unwind_on_sigterm() -> Iterator[None]:
    """Raises `SystemExit` on SIGTERM, so that temporary files are removed."""
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
