"""Code that all methods share.

Its modules in reading order. Each imports only from those above it:

    names, columns      names of leaves and patterns; columns of text
    rows_by_name        row axes by Flax's conventions
    layout_text, axes   layers, rows and groups: `Axes`, `Tensor`, `Layout`
    checks, optimizers  arguments of factories: numbers and choices; base and radius optimizer
    spec                the static `Spec` of a state, and its fingerprint
    ball                norms and the projection of one leaf
    stacks              arrays for all equal leaves together
    unit                the size of the anchor
    finite, radii       guards against NaN; one step of the radius optimizer
    placement, anchor   memory of host and device; the source of `W0`
    problem             the inputs that all updates start from
    displacement        `c` of the previous step, stored or recovered
"""
