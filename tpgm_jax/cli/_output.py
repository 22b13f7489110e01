"""The output appears whole or not at all: after an error, a signal, a kill or a full disk."""

import fcntl
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tpgm_jax.cli._errors import CommandError

_PREFIX, _SUFFIX = ".tpgm-jax-", ".tmp"


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
        raise _exists(out)
    return target


def _exists(out: Path) -> CommandError:
    return CommandError(
        f"{out} cannot be written, because it exists: pass --force to overwrite it, or name "
        "another."
    )


@contextmanager
def write_atomically(target: Path, force: bool, signals: "Signals") -> Iterator[Path]:
    """Yields a path in a temporary directory beside `target`; what is written there is then moved.

    The directory is locked while this process lives. Directories that a killed process left are
    not, and are removed first.
    """
    _remove_leftovers(target.parent)
    while True:
        folder = Path(tempfile.mkdtemp(_SUFFIX, _PREFIX, target.parent))
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():  # else another process removed it before it was locked
            break
        os.close(lock)
    try:
        temporary = folder / "output"
        yield temporary
        if target.is_file():
            shutil.copymode(target, temporary)
        for path in [*temporary.rglob("*"), temporary]:
            _sync(path)
        signals.check()
        _move(temporary, target, force)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
    _sync(target.parent)


def _move(temporary: Path, target: Path, force: bool) -> None:
    if force or temporary.is_dir():
        try:
            # Overwrites a file, but not a directory with something in it.
            os.replace(temporary, target)
        except OSError as error:
            raise _exists(target) if target.exists() else error from None
        return
    try:
        os.link(temporary, target)  # unlike a rename, never overwrites
    except FileExistsError:
        raise _exists(target) from None
    except OSError:  # a file system without hard links
        if target.exists():
            raise _exists(target) from None
        os.replace(temporary, target)


def _remove_leftovers(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
                print(f"removed {folder}, which a killed run left", file=sys.stderr)
            finally:
                os.close(lock)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Signals:
    """Turns SIGINT and SIGTERM into exceptions, also where Python drops the first exception.

    An exception that a handler raises inside a callback, such as JAX's at garbage collection, is
    printed and dropped. The signal is therefore kept, and `check` raises again.
    """

    def __init__(self):
        self.received: int | None = None

    def check(self) -> None:
        if self.received is not None:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: object) -> None:
        del frame
        self.received = number
        raise KeyboardInterrupt

    @contextmanager
    def handled(self) -> Iterator["Signals"]:
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        numbers = [signal.SIGINT, signal.SIGTERM]
        # A shell ignores SIGINT for programs in the background.
        numbers = [x for x in numbers if signal.getsignal(x) != signal.SIG_IGN]
        old = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
