"""The command line: `tpgm-jax compare` and `tpgm-jax project`.

Nothing here is imported by `import tpgm_jax`. In the order in which one may read it:

    _errors, _text         what goes wrong, and how names are printed
    _checkpoint            what a file is to the rest: entries, read one at a time
    _safetensors, _msgpack, _npz, _orbax      four formats, each of which imports its own library
    _orbax_copy            how the last of them is written
    _open                  which of them a path is
    _output                a file that replaces another whole, or not at all
    _rows                  which tensors are measured, and along which axes
    _distance, _compare    how far they went
    _move, _project        and back
    _table, _plot          for people to look at
    _arguments, _main      what the shell sees
"""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns its exit code.

    Args:
        argv: arguments after the program's name; those of the process if left out.
    """
    from tpgm_jax.cli._main import run

    return run(argv)
