"""Loaders of the tests of `examples.papers`, and comparisons of their batches."""

import numpy as np

from examples.papers.loader import Loader

MEAN, STD = (0.5964, 0.5712, 0.5336), (0.3228, 0.3165, 0.3374)
COUNT, BATCH = 22, 4  # 5 batches, and 2 images left
RED = (200, 40, 90)


def make(listed, training=True, batch=BATCH, **options) -> Loader:
    return Loader(listed, batch, size=16, mean=MEAN, std=STD, training=training, **options)


def same(received, expected):
    assert len(received) == len(expected)
    for a, b in zip(received, expected, strict=True):
        assert a.keys() == b.keys()
        for name in b:
            np.testing.assert_array_equal(a[name], b[name])


def joined(parts):
    """Batches of all processes, put together."""
    return [
        {name: np.concatenate([x[name] for x in rows]) for name in rows[0]}
        for rows in zip(*parts, strict=True)
    ]
