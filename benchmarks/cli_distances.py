"""How far usual fine-tunings move: the table in `docs/cli.md`.

MiniLM, fine-tuned on movie reviews as in `examples.sentiment`, with AdamW alone. Both ends of each
run are saved, and `tpgm-jax compare` measures the whole encoder and each kind of its tensors.

    python -m benchmarks.cli_distances
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from safetensors.numpy import save_file

from examples.digits.data import generator
from examples.sentiment import checkpoint, data, download
from examples.sentiment.demo import OUTPUT, RATES
from examples.sentiment.methods import adamw
from examples.sentiment.summary import others
from examples.sentiment.training import Tester, Trainer, with_probe

# For each column its tensors; all others are excluded.
KINDS = {
    "encoder": r"encoder/.*",
    "embeddings": r"encoder/(word|position|segment)/.*",
    "attention": r".*/(query|key|value|out)/.*",
    "MLP": r".*/(up|down)/.*",
    "norms": r".*norm/.*",
}


def save(params: Any, path: Path) -> None:
    flat = {"/".join(map(str, k)): v.get_value() for k, v in nnx.to_flat_state(params)}
    save_file({name: jax.device_get(x) for name, x in flat.items()}, path)


def relative(pretrained: Path, finetuned: Path, kind: str) -> float:
    """The distance that `compare` reports for all tensors of a kind."""
    words = [sys.executable, "-m", "tpgm_jax.cli", "compare", pretrained, finetuned]
    words += ["--exclude", f"(?!{kind}).*", "--json"]
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return json.loads(printed)["totals"]["relative"]


def main() -> None:
    cache = OUTPUT / "cache"
    model = download.model_folder(cache)
    sentences = data.load(download.texts_archive(cache), model)
    graph, start = nnx.split(with_probe(checkpoint.load(model)[0], sentences.train))
    train, test = Trainer(graph, adamw), Tester(graph)
    sets = sentences.tests
    print("| learning rate |", " | ".join(KINDS), "| accuracy on movies | elsewhere |")
    with tempfile.TemporaryDirectory() as folder:
        pretrained, finetuned = (Path(folder) / f"{x}.safetensors" for x in ("w0", "w"))
        save(start, pretrained)
        for rate in (0.0, *RATES):
            rng = generator(0, "order")
            params = start
            if rate:
                params = train(start, rate, sentences.train, sentences.held_out, rng).params
            save(params, finetuned)
            moved = [relative(pretrained, finetuned, kind) for kind in KINDS.values()]
            accuracy, _ = test(params, sets)
            cells = [*(f"{x:.2g}" for x in moved), f"{accuracy['movie']:.0f} %"]
            print(f"| {rate:g} |", " | ".join(cells), f"| {others(accuracy):.0f} % |", flush=True)


if __name__ == "__main__":
    main()
