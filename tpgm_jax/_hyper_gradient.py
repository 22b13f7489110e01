"""FTP's hyper-gradient: how the loss would change if the previous step's radius were larger.

`g_t` is the gradient at the parameters that the previous projection made, so that the chain
rule needs no more than the derivative of that projection in its radius.
"""

import jax
import jax.numpy as jnp

from tpgm_jax._axes import Layout
from tpgm_jax._previous import Previous
from tpgm_jax._projection import inner_products, shrinkage, wide_dtype


def hyper_gradient(
    gradients: list[jax.Array],
    previous: Previous,
    radii: list[jax.Array],
    exact: bool,
    layout: Layout,
    norm: str,
) -> list[jax.Array]:
    """Derivative in the radii of the loss's linear model at the projected parameters.

    The gradient in `r` of `<g, W0 + (r / n) * c>`, the map to the sphere. With `exact`, of
    `<g, W0 + min(1, r / n) * c>`, the map to the ball. The anchor's part is constant.

    Args:
        gradients: `g_t`, one for each constrained leaf.
        previous: `c_{t-1}` and `n_{t-1}`; `c` is zero before the first step.
        radii: those that projected `c_{t-1}`, one array for each leaf.
        exact: leave out the rows inside the ball.
        layout: of the leaves.
        norm: "mars" or "l2".

    Returns:
        One array for each leaf, of its `radius_shape`, in units of loss per unit of `norm`.
    """
    g = [x.astype(wide_dtype(x)) for x in gradients]
    # Before the ratio, which is one number for all that a product extends over.
    leaves = zip(g, previous.c, layout.tensors, strict=True)
    slopes = [inner_products(*leaf, norm) for leaf in leaves]

    def linear_loss(r: list[jax.Array]) -> jax.Array:
        pairs = zip(r, previous.n, strict=True)
        ratios = [shrinkage(*x) if exact else x[0] / x[1] for x in pairs]
        products = [jnp.sum(x * y) for x, y in zip(ratios, slopes, strict=True)]
        return sum(products, jnp.zeros([]))

    return jax.grad(linear_loss)(radii)
