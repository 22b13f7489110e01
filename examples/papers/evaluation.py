"""Accuracy on a data set."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from examples.papers.models import Network
from examples.papers.training import Batch, on_devices
from examples.pod.settings import Refused


class Evaluation:
    """Compiled once, for all data sets."""

    def __init__(self, network: Network, classes: int, mesh: jax.sharding.Mesh):
        self.classes, self.mesh = classes, mesh
        self._count = jax.jit(partial(_count, network))

    def accuracy(
        self,
        params: Any,
        stats: Any,
        batches: Iterable[dict[str, np.ndarray]],
        title: str,
        steps: int,
        among: Sequence[int] | None = None,
    ) -> float:
        """Top-1 accuracy over the images that count, in per cent.

        Args:
            params, stats: the model's.
            batches: of images, labels and masks; each image once.
            title: of the progress bar.
            steps: number of batches.
            among: the labels that the data set has. The model chooses among these only.

        Raises:
            Refused: no image counts.
        """
        allowed = np.full(self.classes, among is None)
        if among is not None:
            allowed[list(among)] = True
        counts: list[Any] = []
        quiet = jax.process_index() > 0
        for batch in tqdm(batches, title, steps, unit="batch", leave=False, disable=quiet):
            counts.append(self._count(params, stats, on_devices(batch, self.mesh), allowed))
            # As in training, the host is one batch ahead of the devices.
            jax.block_until_ready(counts[-2:-1])
        right, total = np.sum(jax.device_get(counts), axis=0)
        if not total:
            raise Refused(f"{title}: there is no image that can be read. Repair its files.")
        return 100 * int(right) / int(total)


def _count(
    network: Network, params: Any, stats: Any, batch: Batch, allowed: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """How many images are classified right, and how many there are."""
    logits = network.evaluate(params, stats, batch.image)
    guess = jnp.argmax(jnp.where(allowed, logits, -jnp.inf), axis=-1)
    return jnp.sum((guess == batch.label) & batch.mask), jnp.sum(batch.mask)
