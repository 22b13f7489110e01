"""Runs the commands and returns exit codes."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from tpgm_jax._core.axes import Tensor
from tpgm_jax._core.rows_by_name import conv1d_names
from tpgm_jax.cli import _compare, _project
from tpgm_jax.cli._arguments import parser
from tpgm_jax.cli._checkpoint import Checkpoint
from tpgm_jax.cli._errors import CommandError, printable
from tpgm_jax.cli._match import Match, Progress, match, numeric
from tpgm_jax.cli._open import SUFFIXES, open_checkpoint
from tpgm_jax.cli._output import Signals, check_output, write_atomically
from tpgm_jax.cli._plot import check_plot, plot
from tpgm_jax.cli._rename import proposal, rename
from tpgm_jax.cli._rows import tensors
from tpgm_jax.cli._table import table

DIFFERENT, BAD, TOO_FAR = 1, 2, 3
BROKEN_PIPE = 128 + signal.SIGPIPE


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns its exit code."""
    signals = Signals()
    try:
        args = parser().parse_args(argv)
        with signals.handled():
            code = (compare if args.command == "compare" else project)(args, signals)
            sys.stdout.flush()
            signals.check()
            return code
    except SystemExit as end:  # after --help, or an error that argparse has printed
        return end.code if isinstance(end.code, int) else BAD
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
        return 128 + (signals.received or signal.SIGINT)


def compare(args: argparse.Namespace, signals: Signals) -> int:
    """Runs `tpgm-jax compare`."""
    if args.plot:
        check_plot(args.plot)
        check_output(args.plot, [args.pretrained, args.finetuned], force=True)
    with _open_both(args) as (pretrained, finetuned, renamed):
        found = match(pretrained.entries, finetuned.entries, args.exclude, args.all)
        parts, outputs_last = _tensors(args, finetuned, found)
        with _progress(finetuned, signals) as progress:
            measured = _compare.compare(pretrained, finetuned, found, parts, progress)
        hint = proposal(found, pretrained.entries, finetuned.entries)
        result = _compare.Comparison(
            found, *measured, outputs_last, hint, renamed, args.max_relative
        )
    if args.plot:
        with write_atomically(args.plot.resolve(), True, signals) as temporary:
            plot(result.measurements, temporary, args.plot.suffix)
    if args.json:
        paths = {"pretrained": str(args.pretrained), "finetuned": str(args.finetuned)}
        _print_json({**paths, **result.as_json(args.sort, args.top)})
    else:
        _print(table(result, args.sort, args.top))
    if args.max_relative is not None and not result.within_limit:
        return TOO_FAR
    return 0 if found.same and not result.totals()["not_finite"] else DIFFERENT


def project(args: argparse.Namespace, signals: Signals) -> int:
    """Runs `tpgm-jax project` and `tpgm-jax interpolate`."""
    if args.alpha is not None and (args.norm or args.unit or args.rows or args.axes):
        what = "--alpha cannot be used with --norm, --unit, --rows or --axes"
        raise CommandError(what, "it moves every number by the same fraction", "leave them out")
    target = check_output(args.out, [args.pretrained, args.finetuned], args.force)
    with _open_both(args) as (pretrained, finetuned, renamed):
        if args.out.suffix in SUFFIXES and args.out.suffix != f".{finetuned.kind}":
            because = f"the output has the format of FINETUNED, {finetuned.kind}"
            raise CommandError(f"{args.out} cannot be written", because, "choose another suffix")
        found = match(pretrained.entries, finetuned.entries, args.exclude, args.all)
        hint = proposal(found, pretrained.entries, finetuned.entries)
        _project.check_match(pretrained, finetuned, found, hint)
        outputs_last: list[str] = []
        if args.alpha is not None:
            movable = numeric(found, finetuned.entries, ("float", "complex"))
            move = _project.interpolation(args.alpha)
        else:
            parts, outputs_last = _tensors(args, finetuned, found)
            movable, norm, unit = set(parts), args.norm or "mars", args.unit or "norm"
            move = _project.projection(args.radius, norm, unit, parts, pretrained)
        with (
            _progress(finetuned, signals) as progress,
            write_atomically(target, args.force, signals) as temporary,
        ):
            report = _project.project(
                pretrained, finetuned, found, movable, move, temporary, args.out, progress
            )
    if renamed:
        report.notes.append(f"matched by --rename: {renamed} names")
    if outputs_last:
        report.notes.append(f"outputs last, as in GPT-2's Conv1D: {len(outputs_last)} weights")
    if args.json:
        _print_json(vars(report))
    else:
        _print(report.as_text("projected" if args.alpha is None else "interpolated"))
    return 0


@contextmanager
def _open_both(args: argparse.Namespace) -> Iterator[tuple[Checkpoint, Checkpoint, int]]:
    with ExitStack() as stack:
        paths = (args.pretrained, args.finetuned)
        pretrained, finetuned = (stack.enter_context(open_checkpoint(path)) for path in paths)
        pretrained, renamed = rename(pretrained, finetuned, args.rename)
        yield pretrained, finetuned, renamed


def _tensors(
    args: argparse.Namespace, finetuned: Checkpoint, found: Match
) -> tuple[dict[str, Tensor], list[str]]:
    """Rows and layers of the tensors to measure, and which are taken for GPT-2's `Conv1D`."""
    rows = args.rows or "auto"
    measured = numeric(found, finetuned.entries, ("float",))
    parts = tensors(finetuned.entries, measured, rows, args.axes)
    conv1d = conv1d_names({name: part.shape for name, part in parts.items()})
    last = [name for name, part in parts.items() if name in conv1d and part.rows == (1,)]
    return parts, last if rows == "auto" else []


@contextmanager
def _progress(finetuned: Checkpoint, signals: Signals) -> Iterator[Progress]:
    """A bar on stderr, after a second. Nothing without a terminal or without tqdm."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        tqdm = None
    bar, total = None, sum(entry.size for entry in finetuned.entries.values())
    if tqdm is not None and sys.stderr.isatty():
        bar = tqdm(total=total, unit="B", unit_scale=True, delay=1, leave=False)

    def progress(count: int) -> None:
        signals.check()
        if bar is not None:
            bar.update(count)

    with bar or nullcontext():
        yield progress


def _print_json(result: dict[str, Any]) -> None:
    _print(json.dumps(result, indent=2, allow_nan=False) + "\n")


def _print(text: str) -> None:
    # Escape characters that the terminal's encoding lacks.
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def _print_error(message: str) -> int:
    print(f"tpgm-jax: error: {printable(message, limit=2000)}", file=sys.stderr)
    return BAD
