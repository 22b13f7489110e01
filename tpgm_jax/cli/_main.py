"""Runs the commands and returns exit codes."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from tpgm_jax._core.axes import Tensor
from tpgm_jax._core.rows_by_name import conv1d_names
from tpgm_jax.cli import _compare, _project
from tpgm_jax.cli._arguments import parser
from tpgm_jax.cli._checkpoint import Checkpoint
from tpgm_jax.cli._errors import CommandError, plural, printable
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
    with _opened(args) as (pretrained, finetuned, found, hint, renamed):
        movable = numeric(found, finetuned.entries, ("float",))
        parts = tensors(finetuned.entries, movable, args.axes)
        with _progress(finetuned, signals) as progress:
            result = _compare.compare(
                pretrained, finetuned, found, parts, args.max_relative, progress
            )
    if args.plot:
        with write_atomically(args.plot.resolve(), True, signals) as temporary:
            plot(result["tensors"], temporary, args.plot.suffix)
    shown = _compare.ordered(result["tensors"], args.sort)[: args.top]
    conv1d = _conv1d(args, parts)
    if args.json:
        paths = {"pretrained": str(args.pretrained), "finetuned": str(args.finetuned)}
        more = {"tensors": shown, "outputs_last": conv1d, "rename": hint, "renamed": renamed}
        _print_json(paths | result | more)
    else:
        notes = [f"names: {hint}"] * bool(hint) + _notes(renamed, conv1d)
        _print(table(result, shown, notes))
    verdict = result["verdict"]
    unclear = not result["tensors"] or verdict["too_far"] or verdict["not_judged"]
    if args.max_relative is not None and unclear:
        return TOO_FAR
    same = result["same_structure"] and not result["totals"]["not_finite"]
    return 0 if same else DIFFERENT


def project(args: argparse.Namespace, signals: Signals) -> int:
    """Runs `tpgm-jax project` and `tpgm-jax interpolate`."""
    if args.alpha is not None and (args.norm or args.unit or args.axes):
        what = "--alpha cannot be used with --norm, --unit or --axes"
        raise CommandError(what, "it moves every number by the same fraction", "leave them out")
    target = check_output(args.out, [args.pretrained, args.finetuned], args.force)
    with _opened(args) as (pretrained, finetuned, found, hint, renamed):
        if args.out.suffix in SUFFIXES and args.out.suffix != f".{finetuned.kind}":
            because = f"the output has the format of FINETUNED, {finetuned.kind}"
            raise CommandError(f"{args.out} cannot be written", because, "choose another suffix")
        _project.check_match(pretrained, finetuned, found, hint)
        parts: dict[str, Tensor] = {}
        if args.alpha is not None:
            movable = numeric(found, finetuned.entries, ("float", "complex"))
            ratio = _project.interpolation(args.alpha)
        else:
            movable = numeric(found, finetuned.entries, ("float",))
            parts = tensors(finetuned.entries, movable, args.axes)
            norm, unit = args.norm or "mars", args.unit or "norm"
            ratio = _project.projection(args.radius, norm, unit, parts, pretrained)
        with (
            _progress(finetuned, signals) as progress,
            write_atomically(target, args.force, signals) as temporary,
        ):
            report = _project.project(
                pretrained, finetuned, found, movable, ratio, temporary, progress
            )
    report |= {"out": str(args.out)}
    report["notes"] += _notes(renamed, _conv1d(args, parts))
    if args.json:
        _print_json(report)
    else:
        _print(_project.text(report, "projected" if args.alpha is None else "interpolated"))
    return 0


@contextmanager
def _opened(
    args: argparse.Namespace,
) -> Iterator[tuple[Checkpoint, Checkpoint, Match, str, int]]:
    """Both checkpoints, matched; a proposal for `--rename`; and how many names it matched."""
    with open_checkpoint(args.pretrained) as old, open_checkpoint(args.finetuned) as new:
        old, renamed = rename(old, new, args.rename)
        found = match(old.entries, new.entries, args.exclude, args.all)
        only = found.only_pretrained, found.only_finetuned
        yield old, new, found, proposal(*only, old.entries, new.entries), renamed


def _conv1d(args: argparse.Namespace, parts: dict[str, Tensor]) -> list[str]:
    """Names of the weights that are taken for GPT-2's `Conv1D`."""
    names = conv1d_names({name: part.shape for name, part in parts.items()})
    return [name for name in parts if name in names and parts[name].rows == (1,)]


def _notes(renamed: int, conv1d: Sequence[str]) -> list[str]:
    notes = [f"matched by --rename: {plural(renamed, 'name')}"] * bool(renamed)
    last = f"outputs last, as in GPT-2's Conv1D: {plural(len(conv1d), 'weight')}"
    return [*notes, *[last] * bool(conv1d)]


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
    # JSON has no NaN and no infinity: `null`.
    finite = json.loads(json.dumps(result), parse_constant=lambda name: None)
    _print(json.dumps(finite, indent=2) + "\n")


def _print(text: str) -> None:
    # Escape characters that the terminal's encoding lacks.
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def _print_error(message: str) -> int:
    print(f"tpgm-jax: error: {printable(message, limit=2000)}", file=sys.stderr)
    return BAD
