"""Carrying out jobs: from a cell to rows."""

import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import tpgm_jax
from benchmarks.recording import value
from benchmarks.sentiment import lora
from benchmarks.sentiment.cells import Cell, Job
from benchmarks.sentiment.methods import METHODS, RECOMMENDED_ALPHA
from examples.digits import storage
from examples.digits.data import generator
from examples.digits.training import shuffled
from examples.sentiment import checkpoint, data, download, encoder, texts, training
from examples.sentiment.encoder import Classifier
from examples.sentiment.texts import Sentences

FIT_STEPS = 50  # radius steps of `fit_radii`, each on 16 held-out sentences
FISHER = 100  # sentences for EWC's importances


class Bench:
    """The model and the texts of one source domain, and the programs compiled for them.

    Args:
        folder: of the model.
        sentences: splits of the texts.
        cached_head: makes the probed head, or reads it: see `storage.cached`.
        steps: of fine-tuning.
    """

    def __init__(
        self,
        folder: Path,
        sentences: data.Data,
        cached_head: Callable[[Callable[[], storage.Arrays]], storage.Arrays],
        steps: int = training.STEPS,
    ):
        self.sentences, self.steps = sentences, steps
        loaded = checkpoint.load(folder)[0]
        self.width = loaded.norm.num_features
        self.model = Classifier(loaded, nnx.Linear(self.width, 1, rngs=nnx.Rngs(0)))
        self.graph = nnx.split(self.model)[0]

        def probed() -> storage.Arrays:
            head = training.with_probe(loaded, sentences.train).head
            assert head.bias is not None
            return {"kernel": head.kernel[...], "bias": head.bias[...]}

        self.head = cached_head(probed)
        self.test = training.Tester(self.graph)
        self.trainer = cache(self._trainer)

    def start(self, head: str, seed: int, adapters: bool = False) -> tuple[Any, Any]:
        """Structure and parameters of the model where a run starts."""
        if head == "fresh":
            self.model.head = nnx.Linear(self.width, 1, rngs=nnx.Rngs(seed))
        else:
            training.set_head(self.model, **self.head)
        return nnx.split(lora.with_adapters(self.model, seed) if adapters else self.model)

    def anchor(self, head: str, seed: int) -> Any:
        """The parameters where a run without adapters starts."""
        return self.start(head, seed)[1]

    def loss(self, params: Any, batch: Sentences) -> jax.Array:
        return training.loss(nnx.merge(self.graph, params), batch)

    def perform(self, job: Job, progress: Callable[[], Any] = lambda: None) -> Iterator[dict]:
        """Trains and tests; one row for each cell of the job."""
        run = job.trained
        if run.method == "probe":
            yield self._row(run, self.anchor(run.head, run.seed), 0.0)
            return
        anchor = self.start(run.head, run.seed, METHODS[run.method].adapters)[1]
        started = time.perf_counter()
        trainer = self.trainer(run.method, run.setting, run.head)
        trained = trainer(
            anchor,
            run.learning_rate,
            self.sentences.train,
            self.sentences.held_out,
            generator(run.seed, "order"),  # as in the demo
            progress,
        )
        seconds = time.perf_counter() - started
        for cell in job.rows:
            started = time.perf_counter()
            params = self._derive(cell, trained, anchor)
            yield self._row(cell, params, seconds + time.perf_counter() - started)

    def _trainer(self, method: str, setting: str, head: str) -> training.Trainer:
        importance = self._importance(head) if method == "ewc" else None
        recipe, number = METHODS[method], value(setting)
        graph = self.start(head, 0, recipe.adapters)[0]
        return training.Trainer(
            graph, lambda rate: recipe.make(rate, number, importance), self.steps
        )

    def _derive(self, cell: Cell, trained: training.Trained, anchor: Any) -> Any:
        """Parameters of a method, from the run that it rests on."""

        def mixed(params: Any, alpha: float) -> Any:
            return tpgm_jax.interpolate(params, anchor, alpha, exclude=training.HEAD)

        if cell.method == "wise":
            return mixed(trained.params, value(cell.setting))
        if METHODS.get(cell.method, METHODS["finetune"]).adapters:
            model = nnx.merge(self.start(cell.head, 0, adapters=True)[0], trained.params)
            return nnx.split(lora.without_adapters(model))[1]
        if cell.method == "mean":
            return trained.state.mean
        if cell.method == "recommended":
            return mixed(trained.state.mean, RECOMMENDED_ALPHA)
        if cell.method == "fit_radii":
            held_out = self.sentences.held_out
            rows = shuffled(
                generator(cell.seed, "fit"), len(held_out.labels), FIT_STEPS, training.BATCH
            )
            batches = [held_out.take(chosen) for chosen in rows]
            return tpgm_jax.fit_radii(
                self.loss, trained.params, anchor, batches, exclude=training.HEAD
            ).params
        return trained.params

    def _importance(self, head: str) -> Any:
        """EWC's: the diagonal of the Fisher information at the anchor, divided by its mean.

        The mean, over held-out sentences, of the squared gradient of the log-probability of the
        label, because the data of the model's own pre-training is not available.
        """
        anchor, sentences = self.anchor(head, 0), self.sentences.held_out

        @jax.jit
        def squared(total: Any, sentence: Sentences) -> Any:
            grads = jax.grad(self.loss)(anchor, sentence)
            return jax.tree.map(lambda t, g: t + g * g, total, grads)

        total = jax.tree.map(jnp.zeros_like, anchor)
        for row in range(min(FISHER, len(sentences.labels))):
            total = squared(total, sentences.take(slice(row, row + 1)))
        leaves = jax.tree.leaves(total)
        mean = sum(float(x.sum()) for x in leaves) / sum(x.size for x in leaves)
        return jax.tree.map(lambda x: x / mean, total)

    def _row(self, cell: Cell, params: Any, seconds: float) -> dict[str, Any]:
        sets = {"validation": self.sentences.validation, **self.sentences.tests}
        accuracy, area = self.test(params, sets)
        areas = {f"{name}_auc": area[name] for name in self.sentences.tests}
        return {**cell._asdict(), "seconds": seconds, **accuracy, **areas}


def bench(source: str, directory: Path) -> Bench:
    """The study's own, with files kept in a folder."""
    folder = download.model_folder(directory)
    sentences = data.load(download.texts_archive(directory), folder, source)

    def cached_head(make: Callable[[], storage.Arrays]) -> storage.Arrays:
        modules = (encoder, texts, data, training)
        return storage.cached(directory, f"probe-{source}", {"source": source}, modules, make)

    return Bench(folder, sentences, cached_head)
