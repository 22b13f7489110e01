"""What every run trains and is tested on.

One division of the handwritten digits for the whole study, so that the images on which
settings are chosen are never among those on which they are reported.
"""

from functools import cache
from typing import NamedTuple

import numpy as np

from benchmarks.study.cells import NEW_SHIFTS, SHIFTS
from benchmarks.study.shifts import NEW
from examples.digits.data import Digits, Split, generator, load

DATA_SEED = 0


class Sets(NamedTuple):
    """Everything but the pre-training sets.

    Attributes:
        train: to fine-tune on, 1000 images.
        radius: on which TPGM learns radii, for no other use, 149 images.
        tested: by column of the CSV; `validation`, which chooses settings, 148 images, and
            the others, which are reported, 500 each.
    """

    train: Split
    radius: Split
    tested: dict[str, Split]


@cache
def sets() -> Sets:
    """Computed once a process."""
    digits: Digits = load(DATA_SEED)
    tested = {"validation": digits.validation, "id": digits.test}
    tested |= {name: digits.shifted[name] for name in SHIFTS}
    for name in NEW_SHIFTS:
        images, labels = digits.test
        moved = NEW[name](generator(DATA_SEED, name), images, labels)
        tested[name] = Split(moved.clip(0, 1).astype(np.float32), labels)
    return Sets(digits.train, digits.radius, tested)
