"""The demo: pre-train, fine-tune with every method, and show the results."""

import argparse
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

import tpgm_jax
from examples.digits.data import SIZES, Digits, generator, load
from examples.digits.experiment import compare
from examples.digits.figure import Samples, figure
from examples.digits.models import MLP
from examples.digits.pretraining import pretrained
from examples.digits.printed import printed_set
from examples.digits.settings import Settings, fast
from examples.digits.shifts import CORRUPTION, STYLE
from examples.digits.storage import write_whole
from examples.digits.table import table

OUTPUT = Path(__file__).parents[2] / "results" / "demo"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the demo; returns what it writes to `results.json`.

    Args:
        arguments: command-line arguments. Default: `sys.argv`.
    """
    parser = argparse.ArgumentParser(
        prog="python -m examples.digits",
        description="Fine-tunes a network on handwritten digits with Adam, FTP and TPGM.",
    )
    parser.add_argument("--seed", type=int, default=0, help="determines everything (default 0)")
    parser.add_argument("--fast", action="store_true", help="a rehearsal, in seconds")
    parser.add_argument(
        *("--output", "-o"),
        type=Path,
        default=OUTPUT,
        help="folder of results.json, figure.png and the cache (default results/demo)",
    )
    options = parser.parse_args(arguments)
    if options.seed < 0:
        parser.error(f"`--seed` must not be negative, got {options.seed}.")
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"`--output` cannot be a folder, because of {error}: name another.")
    settings = fast(options.seed) if options.fast else Settings(seed=options.seed)

    started = time.perf_counter()
    digits, network = load(settings.seed), MLP()
    anchor = pretrained(network, settings, options.output / "cache")
    ready = time.perf_counter()
    results = {"fast": options.fast} | describe(settings)
    results |= compare(network, anchor, digits, settings)
    results["seconds"] = {
        "pretraining": round(ready - started, 1),
        "comparison": round(time.perf_counter() - ready, 1),
    }

    text = json.dumps(results, indent=1, allow_nan=False)
    write_whole(options.output / "results.json", lambda file: file.write(text.encode()))
    picture = figure(results, samples(digits, settings.seed))
    write_whole(options.output / "figure.png", lambda file: picture.savefig(file, format="png"))

    console = Console()
    console.print(table(results))
    if options.fast:
        console.print("A rehearsal: trained too little for the numbers to mean anything.")
    print(f"figure: {options.output / 'figure.png'}")
    print(f"numbers: {options.output / 'results.json'}")
    return results


def describe(settings: Settings) -> dict[str, Any]:
    """Everything that the numbers depend on."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "settings": asdict(settings),
        "splits": SIZES,
        "shifts": {"style": list(STYLE), "corruption": list(CORRUPTION)},
        "versions": {
            "python": platform.python_version(),
            "tpgm_jax": tpgm_jax.__version__,
            **{package: version(package) for package in packages},
        },
        "device": jax.devices()[0].device_kind,
    }


def samples(digits: Digits, seed: int, count: int = 2) -> Samples:
    """Images for the figure: by heading, a list of names and their images `[count, 16, 16]`."""
    names = ["", "printed", "digits", ""]
    images, _ = printed_set(generator(seed, "samples"), len(names) * count)
    printed = list(images.reshape(-1, count, 16, 16) / np.float32(255))
    handwritten = list(digits.train.images[: 2 * count].reshape(2, count, 16, 16))
    headings: Samples = {
        "pre-trained on": (names, printed),
        "fine-tuned on": (["hand-", "written"], handwritten),
    }
    for heading, names in (("style", list(STYLE)), ("corruption", list(CORRUPTION))):
        shown = [digits.shifted[name].images[:count] for name in names]
        labels = [name.replace("_", "\n+ ") for name in names]
        headings[f"tested under shift: {heading}"] = (labels, shown)
    return headings
