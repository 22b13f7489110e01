"""`infer_axes`, which follows parameters through the jaxpr of a model.

In reading order: `moves` has the axes of an array, `walk` the pass over the equations, `products`
and `rules` the roles of axes in each operation, `infer_axes` the function and its result.
"""
