"""Batches of bytes, each a function of the seed and its step.

So a checkpoint stores no position in the data: a resumed run requests batch `t` and gets the same
one as the interrupted run, with any number of processes. An iterator with its own state would have
to be saved with each checkpoint, once for each process. Any data that can be indexed by the step,
such as a `grain.MapDataset`, can replace `rows`.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from examples.pod.settings import Refused

ALPHABET = 32  # bytes in a language
SUCCESSORS = 4  # bytes that may follow a byte

# Shares of a text. Training, TPGM's radii and the report use disjoint shares.
SHARES = {"train": (0.0, 0.8), "held-out": (0.8, 0.9), "test": (0.9, 1.0)}


class Source(Protocol):
    """A source of tokens."""

    def rows(self, split: str, step: int, rows: Sequence[int], length: int) -> np.ndarray:
        """Some rows of a batch, `[len(rows), length]`, bytes.

        Args:
            split: "train", "held-out" or "test".
            step: index of the batch.
            rows: indices of its rows. A row must not depend on the other rows.
            length: tokens in a row.
        """
        ...


class Languages:
    """Made-up languages with an alphabet of 32 bytes each. Each row is in one of them.

    Each byte is followed by one of four bytes with equal probability, so the expected loss of a
    model is at least `log(4) = 1.386`.
    """

    def __init__(self, numbers: range, seed: int):
        """`numbers`: indices of the languages to use, of eight."""
        self.numbers, self.seed = numbers, seed
        letters = np.tile(np.arange(ALPHABET), (256, 1))
        followers = np.random.default_rng(seed).permuted(letters, axis=1)[:, :SUCCESSORS]
        self.followers = followers + np.arange(256)[:, None] // ALPHABET * ALPHABET

    def rows(self, split: str, step: int, rows: Sequence[int], length: int) -> np.ndarray:
        generators = [_generator(self.seed, split, step, row) for row in rows]
        first, last = self.numbers.start * ALPHABET, self.numbers.stop * ALPHABET
        start = np.array([rng.integers(first, last) for rng in generators])
        choices = np.stack([rng.integers(SUCCESSORS, size=length - 1) for rng in generators])
        tokens = [start]
        for choice in choices.T:
            tokens.append(self.followers[tokens[-1], choice])
        return np.stack(tokens, axis=1)


class Text:
    """Random windows of a file, within the share of the split."""

    def __init__(self, path: Path, length: int, seed: int):
        """
        Raises:
            Refused: the file cannot be read, or has shares shorter than a window.
        """
        try:
            self.bytes = np.memmap(path, np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise Refused(f"`--text` cannot be read, because of {error}.") from error
        self.seed = seed
        if len(self.bytes) < 10 * (length + 1):
            raise Refused(
                f"`--text` has {len(self.bytes)} bytes, and a tenth of it is held out: give it "
                f"{10 * (length + 1)} or more, or shorten `--length`."
            )

    def rows(self, split: str, step: int, rows: Sequence[int], length: int) -> np.ndarray:
        first, last = (int(share * len(self.bytes)) for share in SHARES[split])
        starts = [_generator(self.seed, split, step, row) for row in rows]
        starts = [rng.integers(first, last - length + 1) for rng in starts]
        return np.stack([self.bytes[start : start + length] for start in starts])


def batch(
    source: Source, split: str, step: int, shape: tuple[int, int], mesh: jax.sharding.Mesh
) -> jax.Array:
    """Rows of tokens, int32 of `shape`, divided over all devices.

    Each process makes only the rows of its own devices.
    """

    def part(index):
        rows = range(shape[0])[index[0]]
        return source.rows(split, step, rows, shape[1]).astype(np.int32)

    sharding = NamedSharding(mesh, PartitionSpec("fsdp"))
    return jax.make_array_from_callback(shape, sharding, part)


def _generator(seed: int, split: str, step: int, row: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(split.encode()), step, row])
