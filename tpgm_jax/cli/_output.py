"""A file or directory that appears whole, in place of an old one or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tpgm_jax.cli._errors import CommandError


def check_output(out: Path, inputs: Sequence[Path], force: bool) -> Path:
    """Where the output goes, links followed.

    Raises:
        CommandError: it would overwrite an input, or something else without `force`, or what is no
            file.
    """
    # A link is written through, as `cp` does, so that it still is one.
    target = out.resolve()
    if not target.parent.is_dir():
        raise CommandError(f"{out} can not be written: there is no directory {target.parent}.")
    for path in inputs:
        inside = path.is_dir() and target.is_relative_to(path.resolve())
        if inside or (target.exists() and target.samefile(path)):
            raise CommandError(f"{out} is an input, which is never overwritten: name another.")
    if target.is_dir():
        raise CommandError(
            f"{out} is a directory, and no directory is overwritten, because two can not be "
            "exchanged at one stroke: name another, or remove it."
        )
    if target.exists() and not target.is_file():
        raise CommandError(f"{out} is not a file: name one.")
    if target.exists() and not force:
        raise CommandError(f"{out} exists: pass --force to overwrite it, or name another.")
    return target


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path beside `target` to write to, which takes its place when all is written and on disk.

    Whatever happens before, the old file is whole. An exception removes the new one; a kill
    leaves it, and its name ends in `.tmp`.
    """
    temporary = target.with_name(f".tpgm-jax-{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        if target.exists():
            shutil.copymode(target, temporary)
        for path in [*temporary.rglob("*"), temporary]:
            _sync(path)
        # A directory takes no other's place, but a file does.
        os.replace(temporary, target)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
