"""The program: fetch, fine-tune with every method at every learning rate, show."""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flax import nnx
from rich.console import Console
from tqdm import tqdm

import tpgm_jax
from examples.digits.data import generator
from examples.digits.storage import write_whole
from examples.sentiment import checkpoint, data, download
from examples.sentiment.encoder import Encoder
from examples.sentiment.figure import draw
from examples.sentiment.methods import LABELS, OPTIMIZERS, WISE_ALPHA
from examples.sentiment.summary import choose
from examples.sentiment.table import table
from examples.sentiment.texts import DOMAINS, Sentences
from examples.sentiment.training import HEAD, STEPS, Tester, Trainer, with_probe

OUTPUT = Path(__file__).parents[2] / "results" / "sentiment"
RATES = (1e-4, 3e-4, 1e-3)
# Testing takes about as long as this many steps; the bar counts in steps.
TEST_STEPS = 40


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the demo; returns what it writes to `results.json`.

    Args:
        arguments: command-line arguments. Default: `sys.argv`.
    """
    parser = argparse.ArgumentParser(
        prog="python -m examples.sentiment",
        description="Fine-tunes MiniLM on the sentiment of movie reviews; tests it on others too.",
    )
    parser.add_argument("--seed", type=int, default=0, help="order of the batches (default 0)")
    parser.add_argument("--fast", action="store_true", help="a rehearsal, in a minute")
    parser.add_argument(
        "--model", type=Path, help="a Hugging Face folder of a BERT model (default: fetched)"
    )
    parser.add_argument(
        *("--output", "-o"), type=Path, default=OUTPUT, help="default results/sentiment"
    )
    options = parser.parse_args(arguments)
    if options.seed < 0:
        parser.error(f"`--seed` must not be negative, got {options.seed}.")

    started = time.perf_counter()
    cache = options.output / "cache"
    folder = options.model or download.model_folder(cache)
    encoder, report = checkpoint.load(folder)
    print(report)
    sizes, steps = (data.FAST, 3) if options.fast else (data.FULL, STEPS)
    sentences = data.load(download.texts_archive(cache), folder, sizes=sizes)
    results = {"fast": options.fast, "model": folder.name}
    results |= compare(encoder, sentences, options.seed, steps)
    results |= {"seconds": round(time.perf_counter() - started)}

    text = json.dumps(results, indent=1, allow_nan=False)
    write_whole(options.output / "results.json", lambda file: file.write(text.encode()))
    figures = draw(results, options.output)
    Console().print(table(results))
    if options.fast:
        print("A rehearsal: trained too little for the numbers to mean anything.")
    for path in (*figures, options.output / "results.json"):
        print(path)
    return results


def compare(encoder: Encoder, sentences: data.Data, seed: int, steps: int) -> dict[str, Any]:
    """Fine-tunes with every method at every learning rate, and tests.

    Returns:
        `probe`: `accuracy` and `area` (under the ROC curve) by set, in per cent, before
        fine-tuning. `methods`: by name a list of entries, one for each learning rate, with these
        two, `learning_rate`, and `chosen`, whether it has the method's best accuracy in
        validation.
    """
    sets: Mapping[str, Sentences] = {"validation": sentences.validation, **sentences.tests}
    model = with_probe(encoder, sentences.train)
    graph, anchor = nnx.split(model)
    test = Tester(graph)

    def tested(params: Any) -> dict[str, Any]:
        accuracy, area = test(params, sets)
        bar.update(TEST_STEPS)
        return {"accuracy": accuracy, "area": area}

    methods: dict[str, list[dict[str, Any]]] = {name: [] for name in LABELS}
    tests = 1 + len(LABELS) * len(RATES)
    total = steps * len(OPTIMIZERS) * len(RATES) + TEST_STEPS * tests
    layout = "{l_bar}{bar}| {elapsed}, {remaining} left{postfix}"
    with tqdm(total=total, desc="sentiment", bar_format=layout) as bar:
        probe = tested(anchor)
        for name, make in OPTIMIZERS.items():
            train = Trainer(graph, make, steps)
            for rate in RATES:
                bar.set_postfix_str(f"{LABELS[name]} at {rate:g}")
                # All methods see the same batches in the same order.
                rng = generator(seed, "order")
                params = train(
                    anchor, rate, sentences.train, sentences.held_out, rng, lambda: bar.update()
                ).params
                methods[name].append({"learning_rate": rate, **tested(params)})
                if name == "finetune":
                    mixed = tpgm_jax.interpolate(params, anchor, WISE_ALPHA, exclude=HEAD)
                    methods["wise"].append({"learning_rate": rate, **tested(mixed)})
    for entries in methods.values():
        choose(entries)
    sizes = {name: len(sentences.tests[name].labels) for name in DOMAINS}
    sizes |= {"train": len(sentences.train.labels), "validation": len(sentences.validation.labels)}
    return {"seed": seed, "steps": steps, "sentences": sizes, "probe": probe, "methods": methods}
