"""Splits: what is trained on, what decides, and what is tested."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from examples.digits.data import generator
from examples.sentiment.texts import Sentences, clear, encode, read, tokenizer

DATA_SEED = 18


class Sizes(NamedTuple):
    """Sentences of each split, taken in this order; the last takes what there is, up to this."""

    test: int = 500
    validation: int = 1000
    held_out: int = 250
    train: int = 1600


FULL = Sizes()
FAST = Sizes(test=40, validation=30, held_out=20, train=64)


class Data(NamedTuple):
    """One domain to learn from, and all domains to test on.

    Attributes:
        train: sentences of the source domain.
        held_out: others of it, on which TPGM learns radii.
        validation: others of it, which decide between settings.
        tests: by domain, the source domain among them.
    """

    train: Sentences
    held_out: Sentences
    validation: Sentences
    tests: dict[str, Sentences]


def load(archive: Path, model: Path, source: str = "movie", sizes: Sizes = FULL) -> Data:
    """Reads, tokenizes and splits.

    Args:
        archive: the source distribution of vaderSentiment.
        model: the folder of the model, for its tokenizer.
        source: the domain to learn from.
        sizes: of the splits.
    """
    chosen = clear(read(archive))
    made = tokenizer(model)
    return split({domain: encode(rows, made) for domain, rows in chosen.items()}, source, sizes)


def split(domains: Mapping[str, Sentences], source: str, sizes: Sizes) -> Data:
    """Splits shuffled domains. The test sets do not depend on the source."""
    shuffled = {
        domain: sentences.take(generator(DATA_SEED, domain).permutation(len(sentences.labels)))
        for domain, sentences in domains.items()
    }
    parts, start = {}, 0
    for name, size in sizes._asdict().items():
        parts[name] = shuffled[source].take(slice(start, start + size))
        start += size
    tests = {domain: sentences.take(slice(sizes.test)) for domain, sentences in shuffled.items()}
    return Data(parts["train"], parts["held_out"], parts["validation"], tests)
