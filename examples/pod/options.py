"""The command line."""

import argparse
from dataclasses import fields
from pathlib import Path

import jax

from examples.pod.settings import Refused, Settings

OUTPUT = Path(__file__).parents[2] / "results" / "pod"


def make_parser() -> argparse.ArgumentParser:
    """One option for each setting, and the options that do not change the numbers."""
    made = argparse.ArgumentParser(
        prog="python -m examples.pod_finetune",
        description="Fine-tunes a decoder on all devices. Run it again to continue.",
    )
    numbers = made.add_argument_group("options that determine the numbers")
    for x in fields(Settings):
        numbers.add_argument(
            f"--{x.name.replace('_', '-')}",
            type=type(x.default),
            default=x.default,
            help=x.metadata["help"] + (f" (default {x.default})" if x.default != "" else ""),
        )
    files = made.add_argument_group("where and how often")
    files.add_argument("--output", default=str(OUTPUT), help="folder or bucket of checkpoints")
    files.add_argument("--pretrained", help="folder of a pre-trained model's checkpoints")
    files.add_argument("--save-every", type=_count, default=50, help="steps (default 50)")
    files.add_argument("--log-every", type=_count, default=10, help="steps (default 10)")
    files.add_argument("--tensorboard", help="folder for TensorBoard's files")
    several = made.add_argument_group("several processes")
    several.add_argument("--distributed", action="store_true", help="read these from the cluster")
    several.add_argument("--coordinator", help="else: host:port of process 0,")
    several.add_argument("--processes", type=_count, help="how many there are,")
    several.add_argument("--process", type=int, help="and which of them this is")
    return made


def settings(options: argparse.Namespace) -> Settings:
    """The options that determine the numbers."""
    return Settings(**{x.name: getattr(options, x.name) for x in fields(Settings)})


def join(options: argparse.Namespace) -> None:
    """Makes this process one of several. Must run before JAX initializes its devices.

    Raises:
        Refused: the options contradict each other.
    """
    by_hand = (options.coordinator, options.processes, options.process)
    if options.distributed and by_hand == (None, None, None):
        jax.distributed.initialize()
    elif not options.distributed and None not in by_hand:
        jax.distributed.initialize(*by_hand)
    elif options.distributed or by_hand != (None, None, None):
        raise Refused(
            "`--coordinator`, `--processes` and `--process` go together: give all three, or "
            "`--distributed` alone if the cluster provides them."
        )


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more; got {value}.")
    return value
