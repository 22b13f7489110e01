"""The output appears whole or not at all: after an error, a signal, a kill or a full disk."""

import fcntl
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tpgm_jax.cli._errors import CommandError
from tpgm_jax.cli._safetensors import INDEX

_PREFIX, _SUFFIX = ".tpgm-jax-", ".tmp"


def check_output(out: Path, inputs: Sequence[Path], force: bool) -> Path:
    """The path to write to, with links resolved.

    Inputs, directories and devices are never overwritten, and files only with `force`.
    """
    # Write through a link, as `cp` does, instead of replacing the link.
    target = out.resolve()
    if not target.parent.is_dir():
        raise _refuse(out, f"there is no directory {target.parent}", "create it")
    for path in inputs:
        # The shards are beside an index.
        folder = path.parent if path.name.endswith(INDEX) else path
        inside = folder.is_dir() and target.is_relative_to(folder.resolve())
        if inside or (target.exists() and target.samefile(path)):
            raise _refuse(out, "it is an input", "name another")
    if target.is_dir():
        because = "it is a directory, which cannot be replaced atomically"
        raise _refuse(out, because, "name another, or remove it")
    if target.exists() and not target.is_file():
        raise _refuse(out, "it is not a file", "name one")
    _check_free(target, force)
    return target


def _check_free(target: Path, force: bool) -> None:
    if target.exists() and not force:
        raise _refuse(target, "it exists", "pass --force to overwrite it, or name another")


def _refuse(out: Path, because: str, remedy: str) -> CommandError:
    return CommandError(f"{out} cannot be written", because, remedy)


@contextmanager
def write_atomically(target: Path, force: bool, signals: "Signals") -> Iterator[Path]:
    """Yields a path in a temporary directory beside `target`, and then moves it to `target`.

    The directory is locked while this process lives. Directories without a lock, which a killed
    process left, are removed first.
    """
    with ExitStack() as stack:
        with _open(target.parent, fcntl.LOCK_EX):
            for old in target.parent.glob(f"{_PREFIX}*{_SUFFIX}"):
                with suppress(OSError), _open(old, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    shutil.rmtree(old)
                    print(f"removed {old}, which a killed run left", file=sys.stderr)
            folder = Path(tempfile.mkdtemp(_SUFFIX, _PREFIX, target.parent))
            stack.enter_context(_open(folder, fcntl.LOCK_EX))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        temporary = folder / "output"
        yield temporary
        if target.is_file():
            shutil.copymode(target, temporary)
        for path in [*temporary.rglob("*"), temporary]:
            _sync(path)
        signals.check()
        with _open(target.parent, fcntl.LOCK_EX):
            # Another run may have written it meanwhile. A directory replaces nothing.
            _check_free(target, force and temporary.is_file())
            os.replace(temporary, target)
    _sync(target.parent)


@contextmanager
def _open(path: Path, lock: int = 0) -> Iterator[int]:
    """A descriptor of a file or directory, locked against other runs until the end of the block."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        if lock:
            fcntl.flock(descriptor, lock)
        yield descriptor
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    with _open(path) as descriptor:
        os.fsync(descriptor)


class Signals:
    """Turns SIGINT and SIGTERM into exceptions, also where Python drops the first exception.

    An exception that a handler raises inside a callback, such as JAX's at garbage collection, is
    printed and dropped. The signal is therefore kept, and `check` raises again.
    """

    received: int | None = None

    def check(self) -> None:
        if self.received is not None:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: object) -> None:
        self.received = number
        raise KeyboardInterrupt

    @contextmanager
    def catch(self) -> Iterator[None]:
        numbers = [signal.SIGINT, signal.SIGTERM]
        # A shell ignores SIGINT for programs in the background.
        numbers = [x for x in numbers if signal.getsignal(x) != signal.SIG_IGN]
        if threading.current_thread() is not threading.main_thread():
            numbers = []  # only the main thread may set handlers
        old = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
