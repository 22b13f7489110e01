"""Repeats the papers' experiments.

    python -m examples.papers domainnet --method ftp --weights RN50.pt --data domainnet
    python -m examples.papers imagenet --method tpgm --weights ViT-B-16.pt --data imagenet

The same command again resumes from the latest checkpoint. See `docs/papers.md`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from examples.papers.options import make_parser, recipe
from examples.papers.run import run
from examples.pod import sharding
from examples.pod.options import join
from examples.pod.settings import Refused


def main(
    arguments: Sequence[str] | None = None, shape: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Runs the program; returns accuracies by data set, in per cent.

    Args:
        arguments: command-line arguments. Default: `sys.argv`.
        shape: widths and depths of the network. Default: the papers'.
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    try:
        settings = recipe(options)
        join(options)
        mesh = sharding.mesh()
        with jax.set_mesh(mesh):
            return run(options, settings, mesh, shape or {})
    except Refused as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
