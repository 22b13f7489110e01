"""WiSE-FT: the straight line between pre-trained and fine-tuned parameters."""

from __future__ import annotations  # so that `help` shows names, and not what they expand to

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tpgm_jax._core.ball import difference, wide_dtype
from tpgm_jax._core.checks import check_fraction
from tpgm_jax._core.names import Exclude, by_name, exclude_flags
from tpgm_jax._core.problem import check_same_leaves


def interpolate(
    params: optax.Params,
    anchor: optax.Params,
    alpha: jax.typing.ArrayLike,
    *,
    exclude: Exclude | None = None,
) -> Any:
    """Parameters on the straight line from the anchor to the fine-tuned ones: WiSE-FT.

    Writing `W` for a fine-tuned weight and `W0` for its anchor,

        W' = (1 - alpha) * W0 + alpha * W

    summed as `W0 + alpha * (W - W0)` unless the difference overflows. A weight that has not moved
    stays as it is, bit for bit. At 0 and 1 the result is the anchor and the fine-tuned parameters,
    bit for bit. Leaves that are not floats (counters, random keys) come from `params`.

    Args:
        params: the fine-tuned parameters.
        anchor: the pre-trained parameters, with the leaves of `params`, found by name.
        alpha: how far to go, in [0, 1]; one number, which may be traced. For several at once:
            `jax.vmap(interpolate, in_axes=(None, None, 0))`.
        exclude: leaves that come from `params`, such as a new head, and that `anchor` may lack;
            as for `ftp`.

    Returns:
        Parameters in the structure and dtypes of `params`.

    Raises:
        ValueError: an alpha outside [0, 1] or of several numbers; trees that differ.
        TypeError: an alpha that is not a number.

    Examples:
        >>> import jax, jax.numpy as jnp, tpgm_jax
        >>> anchor, tuned = {"kernel": jnp.zeros(3)}, {"kernel": jnp.array([1.0, 2.0, 4.0])}
        >>> print(tpgm_jax.interpolate(tuned, anchor, 0.5)["kernel"])
        [0.5 1.  2. ]
        >>> several = jax.vmap(tpgm_jax.interpolate, in_axes=(None, None, 0))
        >>> print(several(tuned, anchor, jnp.array([0.0, 0.25, 1.0]))["kernel"])
        [[0.   0.   0.  ]
         [0.25 0.5  1.  ]
         [1.   2.   4.  ]]

    References:
        Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022,
        https://arxiv.org/abs/2109.01903
    """
    if np.ndim(alpha) > 0:
        raise ValueError(
            f"`alpha` must be one number; got an array of shape {np.shape(alpha)}. For several "
            "at once, use `jax.vmap(interpolate, in_axes=(None, None, 0))`."
        )
    check_fraction(alpha, "alpha")
    tuned, start = by_name(params), by_name(anchor)
    flags = exclude_flags(exclude, list(tuned), list(tuned.values()))
    fixed = {name for name, flag in zip(tuned, flags, strict=True) if flag}

    def without_fixed(tree: dict[str, Any]) -> dict[str, Any]:
        return {name: leaf for name, leaf in tree.items() if name not in fixed}

    check_same_leaves(without_fixed(start), without_fixed(tuned), "anchor", "interpolate")

    def mix(name: str, w: Any) -> Any:
        if name in fixed or not jnp.issubdtype(jnp.result_type(w), jnp.inexact):
            return w
        w, w0 = jnp.asarray(w), jnp.asarray(start[name])
        dtype = wide_dtype(w)
        a = jnp.asarray(alpha, jnp.finfo(dtype).dtype)
        wide, wide0, d = w.astype(dtype), w0.astype(dtype), difference(w, w0)
        sums = wide0 + a * d, (1 - a) * wide0 + a * wide  # the latter if `W - W0` overflows
        between = jnp.where(jnp.isfinite(d), *sums).astype(w.dtype)
        # Use `where`: `0 * inf` is NaN, and `-0.0 + 0.0` is `0.0`.
        start_here, end_here = (a == 0) | (wide == wide0), a == 1
        return jnp.where(start_here, w0.astype(w.dtype), jnp.where(end_here, w, between))

    leaves = [mix(*item) for item in tuned.items()]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)
