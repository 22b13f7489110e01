"""The command line: `tpgm-jax compare`, `project` and `interpolate`.

`import tpgm_jax` does not import this package. Its modules, in reading order:

    _errors             errors, and escaping of names
    _checkpoint         the interface of a checkpoint: entries, read one at a time; bounds
    _safetensors, _msgpack, _npz, _orbax
                        the formats, through their own libraries
    _open               detection of the format
    _output             atomic output, and signals
    _kinds              what a tensor is: quantized, statistic, training state
    _match              two checkpoints, matched by name; `--rename`
    _rows               axes of the tensors
    _numbers            the arithmetic, in NumPy
    _compare, _project  distances and their table; new weights
    _plot               pictures
    _arguments, _main   arguments and exit codes
"""

from tpgm_jax.cli._main import main as main
