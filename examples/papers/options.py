"""The command line."""

import argparse
from dataclasses import replace
from pathlib import Path

from examples.papers import recipes
from examples.papers.recipes import METHODS, Recipe
from examples.papers.training import LAYOUTS
from examples.pod.settings import Refused

OUTPUT = Path(__file__).parents[2] / "results" / "papers"

# Options that replace a default of the recipe, where given.
_CHANGES = {
    "learning_rate": (float, "at the first step; falls to 0 along a cosine"),
    "weight_decay": (float, "in the gradient for SGD, decoupled for Adam"),
    "epochs": (int, "passes over the training images"),
    "batch": (int, "images in a step, over all devices"),
    "warmup": (int, "steps in which the learning rate rises from 0"),
    "clip": (float, "largest global norm of a gradient; 0: no limit"),
    "strength": (float, "ftp: k; l2sp: decay; spd: strength; wise: share of fine-tuned weights"),
    "probe_epochs": (int, "epochs in which only the head is trained, before all else"),
    "seed": (int, "of the head, the order of images and their crops"),
}


def make_parser() -> argparse.ArgumentParser:
    """A command for each experiment, with the same options but for a few."""
    made = argparse.ArgumentParser(
        prog="python -m examples.papers",
        description="The experiments of TPGM and FTP. The same command again resumes.",
    )
    commands = made.add_subparsers(dest="experiment", required=True)
    domainnet = commands.add_parser(
        "domainnet", help="ResNet-50, fine-tuned on Real", formatter_class=_Help
    )
    domainnet.add_argument(
        "--model", choices=("clip-resnet50", "resnet50"), default="clip-resnet50", help="network"
    )
    domainnet.add_argument(
        "--percent", type=int, choices=(1, 5, 10, 20, 50, 100), default=100, help="of the images"
    )
    imagenet = commands.add_parser(
        "imagenet", help="CLIP's ViT-B/16, fine-tuned on ImageNet", formatter_class=_Help
    )
    imagenet.add_argument("--head", help="zero-shot head, .npz or .safetensors; see docs/papers.md")
    for command, optimizer in ((domainnet, "sgd"), (imagenet, "adam")):
        _add_common(command, optimizer)
    return made


class _Help(argparse.HelpFormatter):
    """Shows defaults, except those that depend on other options."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        plain = action.default in (None, False, argparse.SUPPRESS)
        return action.help if plain else f"{action.help} (default {action.default})"


def _add_common(command: argparse.ArgumentParser, optimizer: str) -> None:
    command.add_argument("--method", choices=METHODS, required=True, help="of fine-tuning")
    command.add_argument("--weights", required=True, help="file of the pre-trained model")
    command.add_argument("--data", required=True, type=Path, help="folder of the images")
    command.add_argument("--output", default=str(OUTPUT), help="folder of results and checkpoints")
    numbers = command.add_argument_group("what determines the numbers; defaults are the recipe's")
    numbers.add_argument("--optimizer", choices=("sgd", "adam"), default=optimizer, help="base")
    for name, (kind, text) in _CHANGES.items():
        numbers.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)
    numbers.add_argument(
        "--as-published", action="store_true", help="TPGM learns radii on the validation images"
    )
    precisions = ("bfloat16", "float32")
    numbers.add_argument(
        "--precision", choices=precisions, default="bfloat16", help="of the arithmetic"
    )
    running = command.add_argument_group("how it runs")
    running.add_argument("--dry-run", action="store_true", help="show what would run, and stop")
    running.add_argument("--images-per-second", type=float, help="for --dry-run: a step's speed")
    running.add_argument(
        "--layout", choices=LAYOUTS, default="data", help="copy or divide parameters over devices"
    )
    running.add_argument("--workers", type=int, default=0, help="processes that read images")
    running.add_argument(
        "--on-error", choices=("fatal", "skip"), default="fatal", help="of unreadable images"
    )
    running.add_argument(
        "--corruptions",
        type=int,
        choices=range(1, 6),
        help="also test on ImageNet-C's corruptions, of this severity",
    )
    running.add_argument("--save-every", type=int, default=500, help="steps")
    running.add_argument("--log-every", type=int, default=20, help="steps")
    several = command.add_argument_group("several processes")
    several.add_argument("--distributed", action="store_true", help="read these from the cluster")
    several.add_argument("--coordinator", help="else: host:port of process 0,")
    several.add_argument("--processes", type=int, help="how many there are,")
    several.add_argument("--process", type=int, help="and which of them this is")


def recipe(options: argparse.Namespace) -> Recipe:
    """The recipe, with the requested changes.

    Raises:
        Refused: a number is out of range.
    """
    if options.experiment == "domainnet":
        found = recipes.domainnet(options.method, options.model, options.optimizer, options.percent)
    else:
        found = recipes.imagenet(
            options.method, optimizer=options.optimizer, head=options.head is not None
        )
    changes = {name: getattr(options, name) for name in _CHANGES}
    changes = {name: value for name, value in changes.items() if value is not None}
    for name in ("epochs", "batch", "save_every", "log_every"):
        _check(options, name, at_least=1)
    for name in ("warmup", "clip", "strength", "probe_epochs", "seed", "weight_decay", "workers"):
        _check(options, name, at_least=0)
    for name in ("learning_rate", "images_per_second"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise Refused(f"`--{name.replace('_', '-')}` must be above 0; got {value}.")
    if options.strength is not None and options.method not in recipes.STRENGTHS:
        expected = ", ".join(recipes.STRENGTHS)
        raise Refused(
            f"`--strength` means nothing to {options.method!r}: leave it out, or choose one of "
            f"{expected}."
        )
    if options.method in ("ftp", "wise") and (options.strength or 0) > 1:
        raise Refused(
            f"`--strength` of {options.method} must be in [0, 1]; got {options.strength}."
        )
    if options.as_published and options.method != "tpgm":
        raise Refused("`--as-published` is about TPGM's radii: leave it out for other methods.")
    if options.method == "lpft" and options.probe_epochs == 0:
        raise Refused("`lpft` trains the head first: give `--probe-epochs` 1 or more.")
    return replace(found, **changes, as_published=options.as_published, precision=options.precision)


def _check(options: argparse.Namespace, name: str, at_least: int) -> None:
    value = getattr(options, name)
    if value is not None and not value >= at_least:
        raise Refused(f"`--{name.replace('_', '-')}` must be {at_least} or more; got {value}.")
