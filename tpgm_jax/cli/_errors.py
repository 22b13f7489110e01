"""Errors of the user or of a file, and text that is safe to print."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class CommandError(Exception):
    """Wrong usage, or a file that cannot be read or written: exit code 2 and one line.

    The line states what cannot be done, the reason, and the remedy. Without a reason, `what` is the
    whole line, such as an error of the library.
    """

    def __init__(self, what: str, because: str = "", remedy: str = ""):
        super().__init__(f"{what}, because {because}: {remedy}." if because else what)


def unreadable(path: Path, because: str, remedy: str) -> CommandError:
    return CommandError(f"{path} cannot be read", because, remedy)


@contextmanager
def translate_errors(what: str, remedy: str) -> Iterator[None]:
    """Turns any exception of a format's library into a `CommandError`.

    It catches all classes, because libraries raise many of them for hostile bytes.
    """
    try:
        yield
    except (CommandError, MemoryError):
        raise
    except Exception as error:
        reason = printable(f"{type(error).__name__}: {error}".rstrip(".: "), limit=300)
        raise CommandError(what, reason, remedy) from error


def reading(path: Path, kind: str):
    """Translates the errors of reading `path` as `kind`."""
    return translate_errors(f"{path} cannot be read as {kind}", "fetch or save it again")


def import_optional(module: str) -> Any:
    """Imports a module of the extra `cli`, or raises a `CommandError`."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0].replace("orbax", "orbax-checkpoint")
        because = f"{package} is not installed"
        raise CommandError("this command cannot run", because, f"pip install {package}") from error


def printable(text: str, limit: int = 200) -> str:
    """`text` with control characters escaped, shortened to about `limit` characters.

    Names come from untrusted files. An escape sequence could clear the terminal or forge a line,
    and a character that reverses the writing direction could make one name look like another.
    """
    if len(text) > limit:
        text = f"{text[: limit // 2]}...{text[-(limit // 2) :]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def quote(text: str, limit: int = 200) -> str:
    return repr(printable(text, limit))


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def list_names(headings: Mapping[str, Sequence[str]], most: int = 10) -> list[str]:
    """For each heading a line for each of the first names, and one that counts the rest."""
    lines = []
    for heading, names in headings.items():
        lines += [printable(f"{heading}: {name}", limit=300) for name in names[:most]]
        if len(names) > most:
            lines.append(printable(f"{heading}: {len(names) - most} more"))
    return lines
