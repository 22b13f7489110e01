"""The effect on rare tokens of one radius for an embedding, and of one radius for each row.

A classifier of bags of tokens, whose frequencies follow Zipf's law, is pre-trained on one labelling
and fine-tuned on another. The rows of the embedding are sorted by how often fine-tuning reads them.

    make bench-activity
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import tpgm_jax
from benchmarks.recording import machine, write

TOKENS, WIDTH, LENGTH, BATCH, LABELS = 4000, 64, 16, 16, 4
PRETRAINING, STEPS, TEST = 1500, 300, 4000
RATES = (3e-4, 3e-3)
PATTERN = ".*embedding"
EACH_ROW = {PATTERN: tpgm_jax.Axes(rows=(), layers=0)}
CHOICES: dict[str, dict[str, Any] | None] = {
    "AdamW": None,
    "one radius": {},
    "each row": {"axes": EACH_ROW},
    "excluded": {"exclude": PATTERN},
    "anchor's unit, one radius": {"unit": "anchor"},
    "anchor's unit, each row": {"unit": "anchor", "axes": EACH_ROW},
}
HITS = {"0": (0, 0), "1": (1, 1), "2-5": (2, 5), "6-30": (6, 30), "above 30": (31, 10**9)}
COLUMNS = ["rate", "choice", "hits", "rows", "movement", "frozen", "old", "new", "machine", "jax"]


def tasks(rng: np.random.Generator) -> list[Callable[[np.random.Generator, int], Any]]:
    """Two labellings of the same bags, each a function of a generator and a number of bags."""
    frequency = 1 / np.arange(1, TOKENS + 1)
    frequency /= frequency.sum()
    meaning, readout = rng.normal(size=(TOKENS, 8)), rng.normal(size=(8, LABELS))

    def task(meaning: np.ndarray) -> Callable[[np.random.Generator, int], Any]:
        def sample(rng: np.random.Generator, count: int) -> Any:
            bags = rng.choice(TOKENS, size=(count, LENGTH), p=frequency)
            return bags, (meaning[bags].mean(axis=1) @ readout).argmax(axis=1)

        return sample

    return [task(meaning), task(meaning + 0.7 * rng.normal(size=meaning.shape))]


def start(rng: np.random.Generator) -> Any:
    def normal(*shape: int, scale: float) -> jax.Array:
        return jnp.asarray(scale * rng.normal(size=shape), jnp.float32)

    return {
        "tokens": {"embedding": normal(TOKENS, WIDTH, scale=1 / 8)},
        "hidden": {"kernel": normal(WIDTH, WIDTH, scale=1 / 8), "bias": jnp.zeros(WIDTH)},
        "head": {"kernel": normal(WIDTH, LABELS, scale=1 / 8), "bias": jnp.zeros(LABELS)},
    }


def logits(params: Any, bags: Any) -> jax.Array:
    x = 4 * params["tokens"]["embedding"][bags].mean(axis=1)
    x = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return x @ params["head"]["kernel"] + params["head"]["bias"]


def train(options: dict[str, Any] | None, params: Any, data: Any, steps: int, rate: float) -> Any:
    adamw = optax.adamw(optax.cosine_decay_schedule(rate, steps))
    tx = adamw if options is None else tpgm_jax.ftp(adamw, **options)

    def loss(params: Any, bags: Any, labels: Any) -> jax.Array:
        every = optax.softmax_cross_entropy_with_integer_labels(logits(params, bags), labels)
        return every.mean()

    @jax.jit
    def step(params, state, bags, labels):
        updates, state = tx.update(jax.grad(loss)(params, bags, labels), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for batch in zip(*(np.split(x, steps) for x in data), strict=True):
        params, state = step(params, state, *batch)
    return jax.block_until_ready(params)


def accuracy(params: Any, bags: Any, labels: Any) -> float:
    return float((logits(params, bags).argmax(axis=1) == labels).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=Path("results/embedding.csv"))
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    old, new = tasks(rng)
    data = old(rng, PRETRAINING * BATCH)
    anchor = train(None, start(rng), data, PRETRAINING, 3e-3)
    data, tests = new(rng, STEPS * BATCH), {"old": old(rng, TEST), "new": new(rng, TEST)}
    hits = np.bincount(data[0].ravel(), minlength=TOKENS)
    print("before:", {name: round(accuracy(anchor, *test), 3) for name, test in tests.items()})

    rows: list[dict[str, Any]] = []
    free = np.zeros(TOKENS)
    for rate, choice in tqdm([(rate, choice) for rate in RATES for choice in CHOICES], unit="run"):
        params = train(CHOICES[choice], anchor, data, STEPS, rate)
        before, after = (np.asarray(x["tokens"]["embedding"]) for x in (anchor, params))
        moved = np.abs(after - before).sum(axis=1)
        free = moved if choice == "AdamW" else free
        accuracies = {name: f"{accuracy(params, *test):.4f}" for name, test in tests.items()}
        for name, (low, high) in HITS.items():
            these = (hits >= low) & (hits <= high)
            numbers = {
                "rows": int(these.sum()),
                "movement": f"{moved[these].sum() / free[these].sum():.3f}",
                # The share of the rows that moved less than 1 % as far as with AdamW.
                "frozen": f"{np.mean(moved[these] < 0.01 * free[these]):.3f}",
            }
            where = {"machine": machine(), "jax": jax.__version__}
            run = {"rate": rate, "choice": choice, "hits": name}
            rows.append(run | numbers | accuracies | where)
    write(rows, COLUMNS, options.output)
    for row in rows:
        print("  ".join(str(row[x]).ljust(8) for x in COLUMNS[:-2]))


if __name__ == "__main__":
    main()
