"""Arguments and help."""

import argparse
from pathlib import Path
from typing import get_args

import tpgm_jax
from tpgm_jax._core.checks import Norm, Unit
from tpgm_jax.cli._compare import SORTS
from tpgm_jax.cli._rows import ROWS

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
COMPARE = f"""\
{FILES}
examples:
  tpgm-jax compare pretrained.safetensors finetuned.safetensors
  tpgm-jax compare bert-base/ my-bert/ --sort relative --top 10 --max-relative 0.1
  tpgm-jax compare pretrained/ finetuned/ --exclude 'head/.*' --plot distances.png
  tpgm-jax compare a.msgpack b.msgpack --axes 'layers/.*=auto,0'     # stacked layers
  tpgm-jax compare a.npz b.npz --json | jq '.tensors[] | select(.relative > 0.1) | .name'

{CODES}"""
PROJECT = f"""\
{FILES}
OUT has the format, names, order, dtypes and metadata of FINETUNED. It is first written beside OUT,
and then moved, so that an existing OUT stays intact until the end.

examples:
  tpgm-jax interpolate pretrained.safetensors finetuned.safetensors --alpha 0.5 -o mean.safetensors
  tpgm-jax project pretrained/ finetuned/ --radius 2 --norm l2 -o projected/
  tpgm-jax project a.npz b.npz --radius 0.1 --unit anchor --exclude 'head.*' -o c.npz

{CODES}"""


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

    compare = _command(
        commands, "compare", "measure the distance of every tensor, in both norms", COMPARE
    )
    _add_rows(compare)
    compare.add_argument("--plot", type=Path, metavar="FILE", help="draw a .png, .pdf or .svg")
    compare.add_argument(
        "--sort", choices=SORTS, default="name", help="order of the tensors, largest first"
    )
    compare.add_argument("--top", type=int, metavar="N", help="show only the first N tensors")
    compare.add_argument(
        "--max-relative",
        type=float,
        metavar="X",
        help="exit with code 3 if the relative distance of a tensor is larger",
    )

    project = _command(commands, "project", "write a projected or interpolated copy", PROJECT)
    _add_rows(project)
    how = project.add_mutually_exclusive_group(required=True)
    how.add_argument("--radius", type=float, metavar="R", help="project to a ball of this radius")
    _add_output(project, how, required=False)
    project.add_argument(
        "--norm",
        choices=get_args(Norm),
        help="with --radius: bound the L1 norm of each row (mars, the default), or "
        "the l2 norm of each tensor or layer",
    )
    project.add_argument(
        "--unit",
        choices=get_args(Unit),
        help="with --radius: its unit, the norm (the default) or the size of the "
        "pre-trained weights",
    )
    interpolate = _command(commands, "interpolate", "the same as `project --alpha`", PROJECT)
    interpolate.set_defaults(radius=None, norm=None, unit=None, rows=None, axes=[])
    _add_output(interpolate, interpolate, required=True)
    return top


def _command(commands, name: str, summary: str, epilog: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument("pretrained", type=Path, metavar="PRETRAINED")
    command.add_argument("finetuned", type=Path, metavar="FINETUNED")
    command.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="REGEX",
        help="skip tensors whose whole name matches; may be repeated",
    )
    command.add_argument(
        "--rename",
        action="append",
        default=[],
        metavar="s/REGEX/NEW/",
        help="match names of both after this substitution; may be repeated",
    )
    command.add_argument(
        "--all", action="store_true", help="treat training state (Adam's moments) like weights"
    )
    command.add_argument("--json", action="store_true", help="print only JSON")
    command.add_argument("--quiet", action="store_true", help="show no progress")
    return command


def _add_rows(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--rows",
        choices=ROWS,
        help="axis of output units: the first for names that end in weight (PyTorch, Equinox; the "
        "last for GPT-2's Conv1D) and Flax's for all others (auto, the default), or always the "
        "first or the last",
    )
    command.add_argument(
        "--axes",
        action="append",
        default=[],
        metavar="REGEX=ROWS[,LAYERS]",
        help="axes of output units and of stacked layers; the first match wins. ROWS: auto, none, "
        "an axis, or several joined by +",
    )


def _add_output(command: argparse.ArgumentParser, how, required: bool) -> None:
    options = {"required": True} if required else {}
    how.add_argument(
        "--alpha",
        type=float,
        metavar="A",
        help="interpolate: 0 is PRETRAINED, 1 is FINETUNED",
        **options,
    )
    command.add_argument("-o", "--out", type=Path, required=True, metavar="OUT")
    command.add_argument("--force", action="store_true", help="overwrite OUT, but never an input")
