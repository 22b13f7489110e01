"""The progress bar."""

import sys
from contextlib import contextmanager


@contextmanager
def progress_bar(total: int, quiet: bool):
    """Shows a bar on stderr, and yields a function to call with the number of bytes processed.

    Shows nothing in the first second, without a terminal, or without tqdm.
    """
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        tqdm = None
    if quiet or tqdm is None or not sys.stderr.isatty():
        yield _ignore
        return
    with tqdm(total=total, unit="B", unit_scale=True, delay=1, leave=False, file=sys.stderr) as bar:
        yield bar.update


def _ignore(count: int) -> None:
    del count
