"""One run: the head first if the recipe has this, fine-tuning, correction, report."""

import argparse
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from examples.digits.storage import write_whole
from examples.papers import estimate, methods, models, published, sets, training
from examples.papers.checkpoints import Checkpoints
from examples.papers.evaluation import Evaluation
from examples.papers.lists import Image
from examples.papers.loader import Loader
from examples.papers.loop import train
from examples.papers.recipes import Recipe
from examples.papers.training import State
from examples.pod.reporting import say
from examples.pod.settings import Refused


class Run:
    """The objects that all parts of a run use."""

    def __init__(
        self,
        options: argparse.Namespace,
        recipe: Recipe,
        mesh: jax.sharding.Mesh,
        shape: Mapping[str, Any],
    ):
        """
        Raises:
            Refused: something does not fit. Nothing is written.
        """
        if recipe.batch % mesh.size:
            raise Refused(
                f"`--batch` is {recipe.batch}, which {mesh.size} devices cannot divide: use a "
                f"multiple of {mesh.size}."
            )
        self.options, self.recipe, self.mesh = options, recipe, mesh
        self.size = shape.get("size", models.SIZE)
        self.head = getattr(options, "head", None)
        self.new_head = self.head is None and not recipe.probe_epochs
        self.sets = sets.find(recipe, options.data)
        if options.corruptions:
            first = published.SETS[recipe.experiment][0]
            self.sets = sets.corrupted(self.sets, first, options.corruptions, self.size)
        self.network = models.network(
            recipe.model,
            self.sets.classes,
            recipe.precision,
            shape,
            normalize=self.head is not None,
        )
        self.loaders = {"train": self.loader(self.sets.train, training=True)}
        held_out = self.sets.held_out
        self.held_out = self.loader(held_out, training=True) if held_out else None
        if self.held_out and methods.learns_in_training(recipe):
            self.loaders["held-out"] = self.held_out
        epoch = self.loaders["train"].steps_per_epoch
        self.steps, self.probe_steps = recipe.epochs * epoch, recipe.probe_epochs * epoch
        tx = methods.optimizer(recipe, self.steps, self.new_head)
        self.program = training.compiled(self.network, tx, mesh, options.layout)
        self.folder = f"{options.output}/{recipe.experiment}/{recipe.model}"

    def loader(
        self, images: list[Image], training: bool, corruption: tuple[str, int] | None = None
    ) -> Loader:
        """Batches of this process."""
        try:
            return Loader(
                images,
                self.recipe.batch,
                size=self.size,
                training=training,
                seed=self.recipe.seed,
                process=jax.process_index(),
                processes=jax.process_count(),
                workers=self.options.workers,
                on_error=self.options.on_error,
                corruption=corruption,
                **sets.PREPROCESSING[self.recipe.experiment],
            )
        except ValueError as error:
            raise Refused(f"the images do not fit the run: {error}") from error

    def pretrained(self) -> tuple[Any, Any]:
        """Parameters and statistics that fine-tuning starts from: the anchor."""
        *arrays, text = models.pretrained(
            self.network, self.options.weights, self.head, self.recipe.seed
        )
        say(f"{self.options.weights}: {text}")
        params, stats = jax.tree.map(np.asarray, arrays)
        if not self.recipe.probe_epochs:
            return params, stats
        settings = self.recipe.probe()
        folder = f"{self.folder}/head{'-held-out' if settings['held_out'] else ''}"
        tx = methods.probe(self.probe_steps)
        program = training.compiled(
            self.network, tx, self.mesh, self.options.layout, train_statistics=False
        )
        loaders = {"train": self.loader(self.sets.train, training=True)}

        def start() -> tuple[Any, Any]:
            return params, stats

        state = self.train("head", program, start, loaders, self.probe_steps, folder, settings)
        return state.params, state.stats

    def train(
        self,
        title: str,
        program: training.Program,
        start: Callable[[], tuple[Any, Any]],
        loaders: dict[str, Loader],
        steps: int,
        folder: str,
        settings: dict[str, Any],
    ) -> State:
        """`loop.train` with checkpoints in a folder, which only a run of `settings` resumes."""
        files = {"weights": checksum(self.options.weights), "head": checksum(self.head)}
        with Checkpoints(folder, settings | files, self.options.save_every) as checkpoints:
            return train(
                title,
                program,
                start,
                {name: Reading(loader) for name, loader in loaders.items()},
                steps,
                self.recipe.batch,
                self.mesh,
                checkpoints,
                self.options.log_every,
            )

    def corrected(self, state: State) -> tuple[Any, Any]:
        """Parameters and statistics after WiSE-FT or TPGM."""
        tuned, steps = (state.params, state.stats), self.recipe.post_hoc
        if not methods.corrects(self.recipe):
            return tuned
        anchor = training.place(self.program, self.pretrained())
        read = islice(Reading(self.held_out), steps) if self.held_out else ()
        quiet = jax.process_index() > 0 or not steps
        batches = (
            training.on_devices(batch, self.mesh)
            for batch in tqdm(read, "radii", steps, unit="step", disable=quiet)
        )
        loss = partial(training.held_out_loss, self.network)
        return methods.correct(self.recipe, tuned, anchor, self.new_head, loss, batches)

    def accuracies(self, params: Any, stats: Any) -> tuple[dict[str, float], dict[str, Any]]:
        """For each data set: accuracy in per cent, and unreadable images with the reason."""
        evaluation = Evaluation(self.network, self.sets.classes, self.mesh)
        found, skipped = {}, {}
        for name, test in self.sets.tests.items():
            loader = self.loader(test.images, False, test.corruption)
            batches = Reading(loader)
            count = loader.steps_per_epoch
            found[name] = evaluation.accuracy(params, stats, batches, name, count, test.among)
            skipped[name] = loader.skipped
            say(f"{name}: {found[name]:.2f} %, {len(loader.skipped)} images skipped")
        return found, skipped


class Reading:
    """A loader whose errors are the program's."""

    def __init__(self, loader: Loader):
        self.loader = loader
        self.state, self.restore = loader.state, loader.restore

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        try:
            yield from self.loader
        except ValueError as error:
            raise Refused(f"{error} On the command line: `--on-error skip`.") from error


def run(
    options: argparse.Namespace,
    recipe: Recipe,
    mesh: jax.sharding.Mesh,
    shape: Mapping[str, Any],
) -> dict[str, Any]:
    """Trains, evaluates and prints. Returns the accuracies by data set, in per cent."""
    this = Run(options, recipe, mesh, shape)
    if options.dry_run:
        speed = options.images_per_second
        say(estimate.plan(recipe, this.sets, this.steps, this.probe_steps))
        say(estimate.memory(recipe, this.program, this.size, mesh))
        say(estimate.hours(recipe, this.sets, this.steps + this.probe_steps / 3, speed))
        return {}
    for text in this.sets.missing:
        say(f"not measured, {text}")
    folder = f"{this.folder}/{recipe.method}"
    program, settings = this.program, recipe.settings()
    state = this.train(
        recipe.method, program, this.pretrained, this.loaders, this.steps, folder, settings
    )
    found, skipped = this.accuracies(*this.corrected(state))
    skipped |= {name: loader.skipped for name, loader in this.loaders.items()}
    radii = methods.radii(state.params, state.opt_state)
    say(published.table(recipe.experiment, recipe.model, recipe.method, recipe.percent, found))
    results = {"accuracies": found, "recipe": settings, "radii": radii, "skipped": skipped}
    if jax.process_index() == 0 and "://" not in folder:
        path = Path(folder) / "results.json"
        write_whole(path, lambda file: file.write(json.dumps(results, indent=1).encode()))
        say(f"results: {path}")
    return found


def checksum(path: str | None) -> str | None:
    """A checksum of a file, so that a run resumes with the same weights only."""
    if path is None:
        return None
    try:
        return f"{zlib.crc32(Path(path).read_bytes()):08x}"
    except OSError as error:
        raise Refused(f"{path} cannot be read, because of {error}.") from error
