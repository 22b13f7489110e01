"""Atomic replacement of the output file or directory."""

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tpgm_jax.cli._errors import CommandError


def check_output(out: Path, inputs: Sequence[Path], force: bool) -> Path:
    """The path to write to, with links resolved.

    Raises:
        CommandError: the output would overwrite an input, a directory or a device, or an existing
            file without `force`.
    """
    # Write through a link, as `cp` does, instead of replacing the link.
    target = out.resolve()
    if not target.parent.is_dir():
        raise CommandError(
            f"{out} cannot be written, because there is no directory {target.parent}: create it."
        )
    for path in inputs:
        inside = path.is_dir() and target.is_relative_to(path.resolve())
        if inside or (target.exists() and target.samefile(path)):
            raise CommandError(f"{out} cannot be written, because it is an input: name another.")
    if target.is_dir():
        raise CommandError(
            f"{out} cannot be written, because it is a directory, which cannot be replaced "
            "atomically: name another, or remove it."
        )
    if target.exists() and not target.is_file():
        raise CommandError(f"{out} cannot be written, because it is not a file: name one.")
    if target.exists() and not force:
        raise CommandError(
            f"{out} cannot be written, because it exists: pass --force to overwrite it, or name "
            "another."
        )
    return target


@contextmanager
def write_atomically(target: Path) -> Iterator[Path]:
    """Yields a temporary path in the same directory, which is synced and renamed on success.

    Until then the old file is unchanged. An exception removes the temporary file; a kill leaves
    it, with a name that ends in `.tmp`.
    """
    temporary = target.with_name(f".tpgm-jax-{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        if target.exists():
            shutil.copymode(target, temporary)
        for path in [*temporary.rglob("*"), temporary]:
            _sync(path)
        # `os.replace` overwrites a file, but not a non-empty directory.
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
