"""A bar on stderr, for people who wait."""

import sys
from contextlib import contextmanager


@contextmanager
def progress(total: int, quiet: bool):
    """Yields a function to tell how many bytes were worked through.

    Nothing is shown within the first second, off a terminal, or without tqdm.
    """
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        tqdm = None
    if quiet or tqdm is None or not sys.stderr.isatty():
        yield _nothing
        return
    with tqdm(total=total, unit="B", unit_scale=True, delay=1, leave=False, file=sys.stderr) as bar:
        yield bar.update


def _nothing(count: int) -> None:
    del count
