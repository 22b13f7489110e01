"""The command line: `tpgm-jax compare` and `tpgm-jax project`.

`import tpgm_jax` does not import this package. Its modules, in reading order:

    _errors, _text         errors, and escaping of names
    _checkpoint            the interface of a checkpoint: entries, read one at a time
    _safetensors, _msgpack, _npz, _orbax      the formats; each imports its own library
    _orbax_copy            writing of Orbax directories
    _open                  detection of the format
    _output                atomic replacement of the output
    _rows                  selection of tensors and their axes
    _distance, _compare    `compare`: distances
    _move, _project        `project`: new weights
    _table, _plot          output as a table or a plot
    _arguments, _main      arguments and exit codes
"""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns its exit code.

    Args:
        argv: arguments without the program's name. Default: `sys.argv[1:]`.
    """
    from tpgm_jax.cli._main import run

    return run(argv)
