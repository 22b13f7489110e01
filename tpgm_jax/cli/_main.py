"""Runs the commands and returns exit codes."""

import argparse
import json
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import numpy as np

from tpgm_jax._core.axes import Tensor
from tpgm_jax._core.rows_by_name import conv1d_names
from tpgm_jax.cli import _compare, _project
from tpgm_jax.cli._arguments import parser
from tpgm_jax.cli._errors import CommandError, import_optional, plural, printable
from tpgm_jax.cli._match import Match, Progress, match
from tpgm_jax.cli._open import SUFFIXES, open_checkpoint
from tpgm_jax.cli._output import Signals, check_output, write_atomically
from tpgm_jax.cli._plot import check_plot, plot
from tpgm_jax.cli._rows import tensors

DIFFERENT, BAD, TOO_FAR = 1, 2, 3
BROKEN_PIPE = 128 + signal.SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns its exit code.

    Args:
        argv: arguments without the program's name. Default: `sys.argv[1:]`.
    """
    signals = Signals()
    try:
        args = parser().parse_args(argv)
        # Silence warnings about numbers that are not finite (they are counted), letters that the
        # font lacks, and Orbax's advice on shardings.
        with signals.catch(), np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")
            warnings.filterwarnings("ignore", module="orbax")
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
    with _open_both(args) as found, _progress(found, signals) as progress:
        by_name = tensors(found.finetuned.entries, found.numeric("float"), args.axes)
        result = _compare.compare(found, by_name, args.max_relative, progress)
    if args.plot:
        with write_atomically(args.plot.resolve(), True, signals) as temporary:
            plot(result["tensors"], temporary, args.plot.suffix)
    shown = _compare.order(result["tensors"], args.sort)[: args.top]
    conv1d = _conv1d(by_name)
    if args.json:
        _print_json(result | {"tensors": shown, "outputs_last": conv1d})
    else:
        _print(_compare.table(result, shown, _notes(found, conv1d)))
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
    with _open_both(args) as found:
        kind = found.finetuned.kind
        if args.out.suffix in SUFFIXES and args.out.suffix != f".{kind}":
            because = f"the output has the format of FINETUNED, {kind}"
            raise CommandError(f"{args.out} cannot be written", because, "choose another suffix")
        _project.check_match(found)
        by_name: dict[str, Tensor] = {}
        if args.alpha is not None:
            movable = found.numeric("float", "complex")
            ratio = _project.interpolation(args.alpha)
        else:
            movable = found.numeric("float")
            by_name = tensors(found.finetuned.entries, movable, args.axes)
            norm, unit = args.norm or "mars", args.unit or "norm"
            ratio = _project.projection(args.radius, norm, unit, by_name, found.pretrained)
        with (
            _progress(found, signals) as progress,
            write_atomically(target, args.force, signals) as temporary,
        ):
            report = _project.project(found, movable, ratio, temporary, progress)
        report["notes"] += _notes(found, _conv1d(by_name))
    report |= {"out": str(args.out)}
    if args.json:
        _print_json(report)
    else:
        _print(_project.text(report, "projected" if args.alpha is None else "interpolated"))
    return 0


@contextmanager
def _open_both(args: argparse.Namespace) -> Iterator[Match]:
    with (
        closing(open_checkpoint(args.pretrained)) as pretrained,
        closing(open_checkpoint(args.finetuned)) as finetuned,
    ):
        yield match(pretrained, finetuned, args.rename, args.exclude, args.all)


def _conv1d(by_name: dict[str, Tensor]) -> list[str]:
    """Names of the weights that are taken for GPT-2's `Conv1D`."""
    names = conv1d_names({name: tensor.shape for name, tensor in by_name.items()})
    return [name for name in by_name if name in names and by_name[name].rows == (1,)]


def _notes(found: Match, conv1d: Sequence[str]) -> list[str]:
    notes = []
    if found.rename:
        notes.append(f"names: {found.rename}")
    if found.renamed:
        notes.append(f"matched by --rename: {plural(found.renamed, 'name')}")
    if conv1d:
        notes.append(
            f"outputs are last in {plural(len(conv1d), 'weight')} named like GPT-2's Conv1D"
        )
    return notes


@contextmanager
def _progress(found: Match, signals: Signals) -> Iterator[Progress]:
    """A bar on stderr, after a second. Nothing without a terminal."""
    total = sum(entry.size for entry in found.finetuned.entries.values())
    options = {"unit": "B", "unit_scale": True, "delay": 1, "leave": False, "disable": None}
    with import_optional("tqdm").tqdm(total=total, **options) as bar:

        def progress(count: int) -> None:
            signals.check()
            bar.update(count)

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
