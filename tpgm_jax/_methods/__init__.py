"""One file for each method: state, factory, and the update in the order of the equation.

`held_out` has the radius step that `tpgm` and `fit_radii` share.
"""
