"""Flax linen's `TrainState`, with extra arguments for the optimizer.

Needs Flax: `pip install flax`.
"""

import functools
import inspect
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import optax

try:
    from flax.training import train_state
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "`tpgm_jax.linen` extends Flax's `TrainState`, and Flax is not installed: "
        "`pip install flax`. The rest of `tpgm_jax` works without it.",
        name=error.name,
    ) from error


class TrainState(train_state.TrainState):
    """`flax.training.train_state.TrainState`, which passes extra arguments to the optimizer.

    Flax's own class drops them, and `tpgm` cannot learn without `held_out_loss`. Everything else
    is as in Flax: `create`, the fields, and fields that subclasses add.

    Examples:
        The held-out loss for TPGM. A model with batch statistics has a field for them in a
        subclass, and would pass `batch_stats=...` next to `extra_args`.

        >>> import jax, jax.numpy as jnp, optax, tpgm_jax
        >>> from tpgm_jax.linen import TrainState
        >>> def loss(params, target):
        ...     return jnp.sum((params["kernel"] - target) ** 2)
        >>> state = TrainState.create(
        ...     apply_fn=None,
        ...     params={"kernel": jnp.zeros((3, 2))},
        ...     tx=tpgm_jax.tpgm(optax.sgd(0.1)),
        ... )
        >>> @jax.jit
        ... def step(state):
        ...     grads = jax.grad(loss)(state.params, 2.0)
        ...     extra_args = {"held_out_loss": loss, "held_out_batch": 0.1}
        ...     return state.apply_gradients(grads=grads, extra_args=extra_args)
        >>> for _ in range(200):
        ...     state = step(state)
        >>> print(f"{state.params['kernel'].mean():.2f}")
        0.10
    """

    def apply_gradients(
        self, *, grads: Any, extra_args: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> "TrainState":
        """Makes one step of the optimizer.

        Args:
            grads: gradients, in the structure of `params`.
            extra_args: keyword arguments for `tx.update`, such as `held_out_loss`, `value` or
                `anchor`. An optimizer without extra arguments does not get them. If `params` has a
                collection that gradients overwrite (fp8 scales), the optimizer and
                `held_out_loss` get `params["params"]`.
            **kwargs: fields of the state to replace, as in Flax, such as `batch_stats`.

        Returns:
            The state after the step.

        Raises:
            TypeError: a keyword is not a field, or `extra_args` is not a mapping.
        """
        unknown = [name for name in kwargs if name not in {field.name for field in fields(self)}]
        if unknown:
            raise TypeError(
                f"`apply_gradients` got `{unknown[0]}`, which is not a field of "
                f"`{type(self).__name__}`: if it is for the optimizer, pass "
                f"`extra_args={{'{unknown[0]}': ...}}`."
            )
        if extra_args is None:
            return super().apply_gradients(grads=grads, **kwargs)
        if not isinstance(extra_args, Mapping):
            raise TypeError(
                "`extra_args` must be a mapping from names to arguments of `tx.update`, such as "
                f"`{{'held_out_loss': loss}}`; got {type(extra_args).__name__}."
            )
        # Bind the arguments to the optimizer, only for this call of Flax's own method.
        update = self.tx.update
        if _takes_extra_args(self.tx):
            update = functools.partial(update, **extra_args)
        bound = optax.GradientTransformation(self.tx.init, update)
        return super(TrainState, self.replace(tx=bound)).apply_gradients(
            grads=grads, **{"tx": self.tx, **kwargs}
        )


def _takes_extra_args(tx: Any) -> bool:
    """Whether `tx.update` accepts keywords that it does not name."""
    # `optax.MultiSteps` accepts them, although it is not a `GradientTransformationExtraArgs`.
    parameters = inspect.signature(tx.update).parameters.values()
    return isinstance(tx, optax.GradientTransformationExtraArgs) or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters
    )
