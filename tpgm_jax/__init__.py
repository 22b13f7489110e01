"""Robust fine-tuning for JAX: keep fine-tuned weights near pre-trained ones.

Each tensor is kept within a radius of its pre-trained value, and the radii are learned.
"""

from importlib.metadata import version

# Methods, as optax transformations.
from tpgm_jax._ball import AnchorState as AnchorState
from tpgm_jax._ball import project_to_anchor as project_to_anchor
from tpgm_jax._baselines import AnchorDecayState as AnchorDecayState
from tpgm_jax._baselines import add_anchor_decay as add_anchor_decay
from tpgm_jax._ftp import FTPState as FTPState
from tpgm_jax._ftp import ftp as ftp
from tpgm_jax._spd import SPDState as SPDState
from tpgm_jax._spd import spd as spd
from tpgm_jax._tpgm import TPGMState as TPGMState
from tpgm_jax._tpgm import tpgm as tpgm

# Methods for models that are already fine-tuned.
from tpgm_jax._baselines import interpolate as interpolate  # isort: skip
from tpgm_jax._posthoc import FittedRadii as FittedRadii  # isort: skip
from tpgm_jax._posthoc import fit_radii as fit_radii  # isort: skip

# What a state holds.
from tpgm_jax._report import Group as Group  # isort: skip
from tpgm_jax._report import Report as Report  # isort: skip
from tpgm_jax._report import report as report  # isort: skip
from tpgm_jax._state import offload as offload  # isort: skip
from tpgm_jax._state import radii as radii  # isort: skip
from tpgm_jax._state import set_anchor as set_anchor  # isort: skip

# Pictures of it. Matplotlib is imported when one is drawn.
from tpgm_jax import plot as plot  # isort: skip

# How tensors divide into groups and rows.
from tpgm_jax._axes import Axes as Axes  # isort: skip

# Parameters that may be functions and yet are no schedules: for `optax.inject_hyperparams`, of
# every transformation but `add_anchor_decay`, which has no `axes`.
STATIC_ARGS = ("exclude", "axes", "anchor_dtype")

__version__ = version("tpgm-jax")
