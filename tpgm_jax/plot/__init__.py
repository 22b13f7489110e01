"""Plots of learned radii, with matplotlib: `pip install matplotlib`.

Every function draws into the given axes, or into a new figure, and returns the axes. The caller
shows or saves the figure.
"""

from tpgm_jax.plot._pictures import candidate_against_radius as candidate_against_radius
from tpgm_jax.plot._pictures import radii_by_depth as radii_by_depth
from tpgm_jax.plot._pictures import radii_over_training as radii_over_training

# Read by Sphinx, which otherwise documents only what a module defines itself.
__all__ = ["candidate_against_radius", "radii_by_depth", "radii_over_training"]
