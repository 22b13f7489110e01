"""What goes wrong through no fault of the program: exit code 2, one line and no traceback."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tpgm_jax.cli._text import printable


class CommandError(Exception):
    """A usage that can not be obeyed, or a file that can not be read or written."""


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turns whatever a library says of a bad file into a `CommandError` that names the file.

    All exceptions, as libraries answer hostile bytes with exceptions of every class.
    """
    try:
        yield
    except CommandError:
        raise
    except MemoryError as error:
        raise CommandError(
            f"{path}: the memory does not suffice for a tensor of this {kind}."
        ) from error
    except Exception as error:
        reason = printable(f"{type(error).__name__}: {error}", limit=300)
        raise CommandError(
            f"{path} can not be read as {kind}, because {reason}. It may be truncated or "
            "damaged: fetch or save it again."
        ) from error


def optional(module: str) -> Any:
    """A module of the extra `cli`, imported when something needs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = module.partition(".")[0]
        raise CommandError(
            f"this needs {name}, which is not installed: pip install 'tpgm-jax[cli]'"
        ) from error
