"""Arguments and help."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import tpgm_jax
from tpgm_jax._core.checks import Norm, Unit
from tpgm_jax.cli._compare import SORTS
from tpgm_jax.cli._rename import parse_rule
from tpgm_jax.cli._rows import parse_axes

CODES = """\
exit codes:
  0    done; for `compare`: both have the same names and shapes, and all numbers are finite
  1    `compare`: done, and names, shapes or kinds of dtype differ, or numbers are not finite
  2    wrong usage, or a file that cannot be read or written
  3    `compare --max-relative`: done, and a tensor moved farther
  130  interrupted; 141: the output pipe was closed; 143: terminated
"""
FILES = """\
checkpoints: safetensors (a file, a Hugging Face folder or its index), flax msgpack, npz, or an
Orbax directory, detected by content. Pickles (.pt, .bin, .pkl) are never loaded.
"""
COMPARE = """\
examples:
  tpgm-jax compare bert-base/ my-bert/ --sort relative --top 10 --max-relative 0.1
  tpgm-jax compare pretrained/ finetuned/ --exclude 'head/.*' --plot distances.png
  tpgm-jax compare a.msgpack b.msgpack --axes 'layers/.*=auto,0'     # stacked layers
  tpgm-jax compare a.npz b.npz --json | jq '.tensors[] | select(.relative > 0.1) | .name'
"""
PROJECT = """\
OUT has the format, names, order, dtypes and metadata of FINETUNED. It is first written beside OUT,
and then moved, so that an existing OUT stays intact until the end.

examples:
  tpgm-jax interpolate pretrained.safetensors finetuned.safetensors --alpha 0.5 -o mean.safetensors
  tpgm-jax project pretrained/ finetuned/ --radius 2 --norm l2 -o projected/
  tpgm-jax project a.npz b.npz --radius 0.1 --unit anchor --exclude 'head.*' -o c.npz
"""


def _number(expected: str, holds: Callable[[Any], bool], convert: Callable[[str], Any] = float):
    """A `type` for argparse: a number for which `holds` is true."""

    def parse(text: str) -> Any:
        try:
            value = convert(text)
        except ValueError:
            value = None
        if value is None or not holds(value):
            raise argparse.ArgumentTypeError(f"must be {expected}; got {text}")
        return value

    return parse


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="tpgm-jax",
        description="Measure and reduce the distance of fine-tuned from pre-trained weights.",
        epilog=f"{FILES}\n{CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=tpgm_jax.__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    positive = _number("positive", lambda x: x > 0)
    count = _number("0 or more", lambda x: x >= 0, int)
    alpha: dict[str, Any] = {
        "type": _number("between 0 and 1", lambda x: 0 <= x <= 1),
        "metavar": "A",
        "help": "interpolate: 0 is PRETRAINED, 1 is FINETUNED",
    }

    compare = _add_command(commands, "compare", "measure the distance of every tensor", COMPARE)
    _add_axes(compare)
    add = compare.add_argument
    add("--plot", type=Path, metavar="FILE", help="draw a .png, .pdf or .svg")
    add("--sort", choices=SORTS, default="name", help="order of the tensors, largest first")
    add("--top", type=count, metavar="N", help="show only the first N tensors")
    text = "exit with code 3 if the relative distance of a tensor is larger"
    add("--max-relative", type=positive, metavar="X", help=text)

    project = _add_command(commands, "project", "write a projected or interpolated copy", PROJECT)
    _add_output(project)
    _add_axes(project)
    how = project.add_mutually_exclusive_group(required=True)
    how.add_argument("--radius", type=positive, metavar="R", help="project to a ball of this size")
    how.add_argument("--alpha", **alpha)
    text = "bound the L1 norm of each row (mars, the default), or the l2 norm of each layer"
    project.add_argument("--norm", choices=get_args(Norm), help=text)
    text = "measure the radius in the norm (the default), or by the size of the pre-trained weights"
    project.add_argument("--unit", choices=get_args(Unit), help=text)

    interpolate = _add_command(commands, "interpolate", "the same as `project --alpha`", PROJECT)
    _add_output(interpolate)
    interpolate.add_argument("--alpha", required=True, **alpha)
    interpolate.set_defaults(radius=None, norm=None, unit=None, axes=[])
    return top


def _add_command(commands: Any, name: str, summary: str, more: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"{FILES}\n{more}\n{CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add, repeated = command.add_argument, {"action": "append", "default": []}
    add("pretrained", type=Path, metavar="PRETRAINED")
    add("finetuned", type=Path, metavar="FINETUNED")
    text = "skip tensors whose whole name matches; may be repeated"
    add("--exclude", **repeated, metavar="REGEX", help=text)
    text = "match names of both after this substitution; may be repeated"
    add("--rename", **repeated, type=parse_rule, metavar="s/REGEX/NEW/", help=text)
    add("--all", action="store_true", help="treat training state (Adam's moments) like weights")
    add("--json", action="store_true", help="print only JSON")
    return command


def _add_axes(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--axes",
        type=parse_axes,
        action="append",
        default=[],
        metavar="REGEX=ROWS[,LAYERS]",
        help="axes of output units and of stacked layers; the first match wins. ROWS: auto, none, "
        "an axis, or several joined by +. The default, auto: the first axis of names that end in "
        "weight (PyTorch, Equinox; the last for GPT-2's Conv1D), and Flax's for all others",
    )


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("-o", "--out", type=Path, required=True, metavar="OUT")
    command.add_argument("--force", action="store_true", help="overwrite OUT, but never an input")
