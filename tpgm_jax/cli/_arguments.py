"""The arguments, and their help."""

import argparse
from pathlib import Path

import tpgm_jax
from tpgm_jax._projection import NORMS
from tpgm_jax.cli._rows import ROWS

CODES = """\
exit codes:
  0    done; for `compare`: both have the same names, shapes and dtypes
  1    `compare`: done, and names, shapes or dtypes differ
  2    wrong usage, or a file that can not be read or written
  130  interrupted; 141: the reader of the output has gone; 143: terminated
"""
FILES = """\
checkpoints: safetensors, flax msgpack, npz, or an Orbax directory, known by their contents.
Pickles (.pt, .bin, .pkl) are never loaded. Tensors are read and written one at a time.
"""
COMPARE = f"""\
{FILES}
examples:
  tpgm-jax compare pretrained.safetensors finetuned.safetensors
  tpgm-jax compare pretrained/ finetuned/ --exclude 'head/.*' --plot distances.png
  tpgm-jax compare a.msgpack b.msgpack --axes 'layers/.*=auto,0'     # stacked layers
  tpgm-jax compare a.npz b.npz --json | jq '.tensors[] | select(.relative > 0.1) | .name'

{CODES}"""
PROJECT = f"""\
{FILES}
OUT is of the format of FINETUNED, with its names, order, dtypes and metadata. It is written beside
and renamed, so that an old OUT stays whole until the new one is.

examples:
  tpgm-jax project pretrained.safetensors finetuned.safetensors --alpha 0.5 -o mean.safetensors
  tpgm-jax project pretrained/ finetuned/ --radius 2 --norm l2 -o projected/
  tpgm-jax project a.npz b.npz --radius 0.1 --unit anchor --exclude 'head.*' -o c.npz

{CODES}"""


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="tpgm-jax",
        description="How far fine-tuned weights went from pre-trained ones, and back.",
        epilog=f"{FILES}\n{CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=tpgm_jax.__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    compare = _command(commands, "compare", "distance of every tensor, in both norms", COMPARE)
    compare.add_argument("--plot", type=Path, metavar="FILE", help="draw a .png, .pdf or .svg")

    project = _command(commands, "project", "write a projected or interpolated copy", PROJECT)
    how = project.add_mutually_exclusive_group(required=True)
    how.add_argument("--radius", type=float, metavar="R", help="project to a ball of this radius")
    how.add_argument(
        "--alpha", type=float, metavar="A", help="interpolate: 0 is PRETRAINED, 1 is FINETUNED"
    )
    project.add_argument("-o", "--out", type=Path, required=True, metavar="OUT")
    project.add_argument("--force", action="store_true", help="overwrite OUT, but never an input")
    project.add_argument(
        "--norm",
        choices=NORMS,
        help="with --radius: of each row's L1 norm (mars, the default), or "
        "of a tensor's or layer's l2 norm",
    )
    project.add_argument(
        "--unit",
        choices=("norm", "anchor"),
        help="with --radius: what it is measured in, the norm "
        "(the default) or the size of the pre-trained weights",
    )
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
        help="leave out tensors whose whole name matches; may be repeated",
    )
    command.add_argument(
        "--rows",
        choices=ROWS,
        help="which axis of a tensor counts its output units: the first of "
        "what is called weight (PyTorch, Equinox) and Flax's of all else (auto, the default), or "
        "always the first or the last",
    )
    command.add_argument(
        "--axes",
        action="append",
        default=[],
        metavar="REGEX=ROWS[,LAYERS]",
        help="the axes of output units and of stacked layers; the first that matches holds. ROWS: "
        "auto, none, an axis, or several joined by +",
    )
    command.add_argument("--json", action="store_true", help="print JSON, and nothing else")
    command.add_argument("--quiet", action="store_true", help="show no progress")
    return command
