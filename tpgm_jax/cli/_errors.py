"""Errors of the user or of a file: exit code 2, one line, no traceback."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tpgm_jax.cli._text import printable


class CommandError(Exception):
    """Wrong usage, or a file that cannot be read or written."""


@contextmanager
def translate_read_errors(path: Path, kind: str) -> Iterator[None]:
    """Turns exceptions of a format's library into a `CommandError` that names the file.

    It catches every class of exception, because libraries raise many of them for hostile bytes.
    """
    try:
        yield
    except CommandError:
        raise
    except MemoryError as error:
        raise CommandError(
            f"{path} cannot be read as {kind}, because a tensor does not fit into memory: use a "
            "machine with more."
        ) from error
    except Exception as error:
        reason = printable(f"{type(error).__name__}: {error}", limit=300)
        raise CommandError(
            f"{path} cannot be read as {kind}, because {reason}. It may be truncated or "
            "damaged: fetch or save it again."
        ) from error


def import_optional(module: str) -> Any:
    """Imports a module of the extra `cli`.

    Raises:
        CommandError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = module.partition(".")[0]
        raise CommandError(
            f"this command cannot run, because {name} is not installed: pip install 'tpgm-jax[cli]'"
        ) from error
