"""Robust fine-tuning for JAX: keep fine-tuned weights near pre-trained ones.

Each tensor is kept within a radius of its pre-trained value, and the radii are learned.
"""

# Methods, as optax transformations.
from tpgm_jax._methods.add_anchor_decay import AnchorDecayState as AnchorDecayState
from tpgm_jax._methods.add_anchor_decay import add_anchor_decay as add_anchor_decay
from tpgm_jax._methods.ftp import FTPState as FTPState
from tpgm_jax._methods.ftp import ftp as ftp
from tpgm_jax._methods.project_to_anchor import ProjectToAnchorState as ProjectToAnchorState
from tpgm_jax._methods.project_to_anchor import project_to_anchor as project_to_anchor
from tpgm_jax._methods.spd import SPDState as SPDState
from tpgm_jax._methods.spd import spd as spd
from tpgm_jax._methods.tpgm import TPGMState as TPGMState
from tpgm_jax._methods.tpgm import tpgm as tpgm

# Methods for models that are already fine-tuned.
from tpgm_jax._methods.fit_radii import FittedRadii as FittedRadii  # isort: skip
from tpgm_jax._methods.fit_radii import fit_radii as fit_radii  # isort: skip
from tpgm_jax._methods.interpolate import interpolate as interpolate  # isort: skip

# Read, check and edit optimizer states.
from tpgm_jax._inspect.edit import offload as offload  # isort: skip
from tpgm_jax._inspect.edit import set_anchor as set_anchor  # isort: skip
from tpgm_jax._inspect.radii import radii as radii  # isort: skip
from tpgm_jax._inspect.report import Group as Group  # isort: skip
from tpgm_jax._inspect.report import Report as Report  # isort: skip
from tpgm_jax._inspect.report import report as report  # isort: skip
from tpgm_jax._inspect.states import check_state as check_state  # isort: skip

# Pictures. Matplotlib is imported when one is drawn.
from tpgm_jax import plot as plot  # isort: skip

# What to constrain, and how tensors divide into groups and rows.
from tpgm_jax._core.axes import Axes as Axes  # isort: skip
from tpgm_jax._core.axes import AxesSpec as AxesSpec  # isort: skip
from tpgm_jax._core.axes import GuessedRowsWarning as GuessedRowsWarning  # isort: skip
from tpgm_jax._core.names import Exclude as Exclude  # isort: skip
from tpgm_jax._infer_axes.infer_axes import InferredAxes as InferredAxes  # isort: skip
from tpgm_jax._infer_axes.infer_axes import infer_axes as infer_axes  # isort: skip
from tpgm_jax._inspect.layout import LayoutTable as LayoutTable  # isort: skip
from tpgm_jax._inspect.layout import layout as layout  # isort: skip

__version__ = "0.1.0"
