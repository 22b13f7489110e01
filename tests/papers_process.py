"""A run of `examples.papers` with a tiny network that is killed while it saves a checkpoint.

`test_papers_runs.py` starts it with the step of the checkpoint, the network's shape, and the
program's own arguments.
"""

import json
import sys

from pod_process import die_in_save

from examples.papers.__main__ import main

if __name__ == "__main__":
    step, shape, *arguments = sys.argv[1:]
    die_in_save(step)
    main(arguments, json.loads(shape))
