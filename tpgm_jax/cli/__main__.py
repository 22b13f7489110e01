"""Entry point of `python -m tpgm_jax.cli`."""

import sys

from tpgm_jax.cli import main

sys.exit(main())
