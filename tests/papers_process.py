"""A run of `examples.papers` with a tiny network, which may kill itself in the middle.

`test_papers_runs.py` starts it with the number of batches before the kill, the network's shape,
and the program's own arguments.
"""

import itertools
import json
import os
import signal
import sys

from examples.papers import loop
from examples.papers.__main__ import main

if __name__ == "__main__":
    batches, shape, *arguments = sys.argv[1:]
    calls, on_devices = itertools.count(1), loop.on_devices

    def die(*args):
        if next(calls) > int(batches):
            os.kill(os.getpid(), signal.SIGKILL)
        return on_devices(*args)

    loop.on_devices = die
    main(arguments, json.loads(shape))
