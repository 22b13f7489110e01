"""Arguments and help."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import tpgm_jax
from tpgm_jax._core.checks import Norm, Unit
from tpgm_jax.cli._compare import SORTS
from tpgm_jax.cli._match import parse_rule
from tpgm_jax.cli._open import FORMATS
from tpgm_jax.cli._rows import parse_axes

END = f"""\
checkpoints: {FORMATS},
detected by content. Pickles (.pt, .bin, .pkl) are never loaded.

exit codes:
  0    done; for `compare`: both have the same names and shapes, and all numbers are finite
  1    `compare`: done, and names, shapes or kinds of dtype differ, or numbers are not finite
  2    wrong usage, or a file that cannot be read or written
  3    `compare --max-relative`: done, and a tensor moved farther
  130  interrupted; 141: the output pipe was closed; 143: terminated
"""
# The summary of each command, and examples.
COMMANDS = {
    "compare": (
        "measure the distance of every tensor",
        "compare bert-base/ my-bert/ --sort relative --top 10 --max-relative 0.1",
        "compare a.msgpack b.msgpack --axes 'layers/.*=auto,0'     # stacked layers",
    ),
    "project": (
        "write a projected or interpolated copy",
        "project pretrained/ finetuned/ --radius 2 --norm l2 -o projected/",
        "project a.npz b.npz --radius 0.1 --unit anchor --exclude 'head.*' -o c.npz",
    ),
    "interpolate": (
        "the same as `project --alpha`",
        "interpolate a.safetensors b.safetensors --alpha 0.5 -o mean.safetensors",
    ),
}


def _number(expected: str, holds: Callable[[Any], bool], convert: Callable[[str], Any] = float):
    """A `type` for argparse: a number for which `holds` is true."""

    def parse(text: str) -> Any:
        try:
            value = convert(text)
        except ValueError:
            value = math.nan  # for which no comparison holds
        if not holds(value):
            raise argparse.ArgumentTypeError(f"must be {expected}; got {text}")
        return value

    return parse


def parser() -> argparse.ArgumentParser:
    layout: dict[str, Any] = {
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
    }
    summary = "Measure and reduce the distance of fine-tuned from pre-trained weights."
    top = argparse.ArgumentParser(prog="tpgm-jax", description=summary, epilog=END, **layout)
    top.add_argument("--version", action="version", version=tpgm_jax.__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (summary, *examples) in COMMANDS.items():
        end = "".join(["examples:\n", *(f"  tpgm-jax {x}\n" for x in examples), "\n", END])
        command = commands.add_parser(name, help=summary, description=summary, epilog=end, **layout)
        _add_arguments(command, name)
    return top


def _add_arguments(command: argparse.ArgumentParser, name: str) -> None:
    positive = _number("positive", lambda x: x > 0)
    fraction = _number("between 0 and 1", lambda x: 0 <= x <= 1)
    repeated: dict[str, Any] = {"action": "append", "default": []}
    add = command.add_argument
    add("pretrained", type=Path, metavar="PRETRAINED")
    add("finetuned", type=Path, metavar="FINETUNED")
    if name == "compare":
        count = _number("0 or more", lambda x: x >= 0, int)
        add("--plot", type=Path, metavar="FILE", help="draw a .png, .pdf or .svg")
        add("--sort", choices=SORTS, default="name", help="order of the tensors, largest first")
        add("--top", type=count, metavar="N", help="show only the first N tensors")
        text = "exit with code 3 if the relative distance of a tensor is larger"
        add("--max-relative", type=positive, metavar="X", help=text)
    else:
        text = "has the format, names, order, dtypes and metadata of FINETUNED"
        add("-o", "--out", type=Path, required=True, metavar="OUT", help=text)
        text = "overwrite OUT, but never an input; it stays whole until the new one is complete"
        add("--force", action="store_true", help=text)
        how = command.add_mutually_exclusive_group(required=True)
        text = "interpolate: 0 is PRETRAINED, 1 is FINETUNED"
        how.add_argument("--alpha", type=fraction, metavar="A", help=text)
        command.set_defaults(radius=None, norm=None, unit=None, axes=())
        if name == "project":
            text = "project to a ball of this size"
            how.add_argument("--radius", type=positive, metavar="R", help=text)
            text = "bound the L1 norm of each row (mars, the default), or the l2 norm of each layer"
            add("--norm", choices=get_args(Norm), help=text)
            text = "measure the radius in the norm (default), or by the size of PRETRAINED"
            add("--unit", choices=get_args(Unit), help=text)
    if name != "interpolate":
        text = (
            "axes of output units and of stacked layers; the first match wins. ROWS: auto, none, "
            "an axis, or several joined by +. The default, auto: the first axis of names that end "
            "in weight (PyTorch, Equinox; the last for GPT-2's Conv1D), Flax's for all others"
        )
        add("--axes", **repeated, type=parse_axes, metavar="REGEX=ROWS[,LAYERS]", help=text)
    text = "skip tensors whose whole name matches; may be repeated"
    add("--exclude", **repeated, metavar="REGEX", help=text)
    text = "match names of both after this substitution; may be repeated"
    add("--rename", **repeated, type=parse_rule, metavar="s/REGEX/NEW/", help=text)
    add("--all", action="store_true", help="treat training state (Adam's moments) like weights")
    add("--json", action="store_true", help="print only JSON")
