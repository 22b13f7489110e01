"""Reads and edits the states of this library inside an optimizer state.

`states` finds and checks them, `radii` and `report` read them (numbers in `measure`, text in
`table`), `edit` replaces anchors and moves arrays to the host. `layout` needs no state.
"""
