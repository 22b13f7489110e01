"""Sentences with human ratings of their sentiment, from four domains, as tokens."""

import html
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
# Domains, and the start of the names of their files.
DOMAINS = {
    "movie": "movieReviewSnippets",
    "amazon": "amazonReviewSnippets",
    "nyt": "nytEditorialSnippets",
    "tweets": "tweets",
}
CLEAR = 0.5  # of a scale from -4 to 4: a mean rating that is closer to 0 gives no label
LONGEST = 32  # tokens; longer sentences are left out


class Rated(NamedTuple):
    """A sentence and the mean of its ratings, from -4 to 4."""

    text: str
    rating: float


class Sentences(NamedTuple):
    """Labelled sentences as arrays.

    Attributes:
        tokens: `[n, length]`, int32, 0 for padding.
        mask: `[n, length]`, False for padding.
        labels: `[n]`, 1 for positive sentiment and 0 for negative.
    """

    tokens: np.ndarray
    mask: np.ndarray
    labels: np.ndarray

    def take(self, rows: Any) -> "Sentences":
        return Sentences(*(array[rows] for array in self))


def read(archive: Path) -> dict[str, list[Rated]]:
    """The rated sentences of each domain, from the source distribution of vaderSentiment."""
    found = {}
    with tarfile.open(archive) as outer:
        (name,) = [name for name in outer.getnames() if name.endswith(ARCHIVE)]
        with tarfile.open(fileobj=outer.extractfile(name)) as inner:
            for domain, start in DOMAINS.items():
                file = inner.extractfile(f"hutto_ICWSM_2014/{start}_GroundTruth.txt")
                assert file is not None
                rows = [row.split("\t") for row in file.read().decode("utf-8-sig").splitlines()]
                found[domain] = [
                    Rated(html.unescape(text).strip(), float(rating)) for _, rating, text in rows
                ]
    return found


def clear(rated: Mapping[str, Sequence[Rated]]) -> dict[str, list[Rated]]:
    """Leaves out unclear ratings, and every text that occurs more than once in any domain."""
    counts = Counter(x.text.lower() for domain in rated.values() for x in domain)
    return {
        domain: [x for x in rows if abs(x.rating) > CLEAR and counts[x.text.lower()] == 1]
        for domain, rows in rated.items()
    }


def tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model, without padding and truncation."""
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.no_padding()
    made.no_truncation()
    return made


def encode(rated: Sequence[Rated], tokenizer: Tokenizer, longest: int = LONGEST) -> Sentences:
    """Sentences of at most `longest` tokens, padded to that."""
    ids = [encoding.ids for encoding in tokenizer.encode_batch([x.text for x in rated])]
    fits = [i for i, tokens in enumerate(ids) if len(tokens) <= longest]
    tokens = np.zeros((len(fits), longest), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, i in enumerate(fits):
        tokens[row, : len(ids[i])] = ids[i]
        mask[row, : len(ids[i])] = True
    return Sentences(tokens, mask, np.array([rated[i].rating > 0 for i in fits], np.int32))
