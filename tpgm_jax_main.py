"""The program `tpgm-jax`.

Not in the package, because `import tpgm_jax` imports JAX, which takes a second. Python drops a
KeyboardInterrupt in a callback, such as JAX's at garbage collection, and the program would go on.
"""

import os
import signal
from collections.abc import Sequence


def _leave(number: int, frame: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `tpgm_jax.cli.main`, which can be interrupted while JAX is imported."""
    # A shell ignores SIGINT for programs in the background.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    from tpgm_jax.cli import main

    return main(argv)
