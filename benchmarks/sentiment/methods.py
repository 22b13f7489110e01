"""The methods: how each builds an optimizer around AdamW, and the settings to try."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import tpgm_jax
from benchmarks.sentiment import lora
from benchmarks.study.methods import relative
from examples.sentiment.methods import L2SP_WEIGHT, WISE_ALPHA, adamw, pulled
from examples.sentiment.training import HEAD


class Method(NamedTuple):
    """How one method trains.

    Attributes:
        make: from the schedule of the learning rate, the method's own value, and EWC's importances
            to an optimizer.
        name: of the value.
        values: that are tried, the first one first.
        adapters: whether it trains the adapters of `lora.with_adapters` instead of all weights.
    """

    make: Callable[[optax.Schedule, Any, Any], optax.GradientTransformation]
    name: str = ""
    values: tuple[float | None, ...] = (None,)
    adapters: bool = False


class Derived(NamedTuple):
    """A method that changes what another one trained.

    Attributes:
        source: the method that trains, and
        setting: its setting.
        name: of its own value.
        values: that are tried.
    """

    source: str
    setting: str = ""
    name: str = ""
    values: tuple[float | None, ...] = (None,)


class MeanState(NamedTuple):
    """State of `averaged`.

    Attributes:
        inner: state of the optimizer inside.
        mean: mean of the parameters after each step.
        step: updates made so far.
    """

    inner: Any
    mean: Any
    step: jax.Array


def averaged(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """An optimizer that also keeps the mean of its iterates."""
    wrapped = optax.with_extra_args_support(inner)

    def init(params: Any) -> MeanState:
        return MeanState(wrapped.init(params), jax.tree.map(jnp.copy, params), jnp.zeros([]))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        updates, inside = wrapped.update(updates, state.inner, params, **extra)
        step = state.step + 1
        # mean + (W + u - mean) / step
        mean = jax.tree.map(lambda m, p, u: m + (p + u - m) / step, state.mean, params, updates)
        return updates, MeanState(inside, mean, step)

    return optax.GradientTransformationExtraArgs(init, update)


def ftp_anchor(rate: optax.Schedule, step: float) -> optax.GradientTransformation:
    """FTP with radii in units of the anchor, and Adam with this step for them."""
    return tpgm_jax.ftp(adamw(rate), radius_optimizer=optax.adam(step), unit="anchor", exclude=HEAD)


def adapters(make: Callable[[optax.Schedule], optax.GradientTransformation]) -> Method:
    """The same with adapters, and one setting."""
    return Method(lambda rate, _, importance: lora.of_adapters(make(rate)), adapters=True)


# As in the recipe for LoRA (docs/recipes.md): `lora_b` starts at 0, and stays near 0.
NEAR_ZERO: Any = {"exclude": (HEAD, lora.FIRST_FACTOR), "anchor": "zero"}
METHODS: dict[str, Method] = {
    "finetune": Method(lambda rate, _, importance: averaged(adamw(rate))),
    # The published `k`, 1, and weaker ones, with which radii fall slower than they climb.
    "ftp": Method(
        lambda rate, k, importance: tpgm_jax.ftp(adamw(rate), k=k or 1.0, exclude=HEAD),
        *("k", (None, 0.5, 0.1)),
    ),
    "default": Method(lambda rate, _, importance: ftp_anchor(rate, 3e-3)),
    # The first step is what `recommended` needs.
    "ftp_anchor": Method(
        lambda rate, step, importance: averaged(ftp_anchor(rate, step)), "step", (1e-2, 1e-3)
    ),
    # Radii climb and fall by 3 % at most, so that none falls to nothing at once.
    "ftp_relative": Method(
        lambda rate, _, importance: tpgm_jax.ftp(
            adamw(rate),
            initial_radius=1e-2,
            radius_optimizer=relative(3e-2),
            unit="anchor",
            exclude=HEAD,
        )
    ),
    "l2sp": Method(lambda rate, weight, importance: pulled(rate, weight), "weight",
                   (L2SP_WEIGHT, 1.0)),
    "tpgm": Method(lambda rate, _, importance: tpgm_jax.tpgm(adamw(rate), exclude=HEAD)),
    "spd": Method(
        lambda rate, strength, importance: tpgm_jax.spd(
            adamw(rate), strength=strength, exclude=HEAD
        ),
        *("strength", (1.0, 0.5)),
    ),
    # A sane run moves a row of 384 weights by 0.1 to 0.3, in the sum of its entries.
    "mars_sp": Method(
        lambda rate, radius, importance: optax.chain(
            adamw(rate), tpgm_jax.project_to_anchor(radius, exclude=HEAD)
        ),
        *("radius", (0.2, 1.0)),
    ),
    "ewc": Method(pulled, "weight", (0.1, 1.0)),
    "lora": adapters(adamw),
    "lora_ftp": adapters(lambda rate: tpgm_jax.ftp(adamw(rate), k=0.0, **NEAR_ZERO)),
    "lora_spd": adapters(lambda rate: tpgm_jax.spd(adamw(rate), **NEAR_ZERO)),
}  # fmt: skip

# The mean of all iterates, moved a tenth of the way back to the anchor (docs/study.md).
RECOMMENDED_ALPHA = 0.9
DERIVED: dict[str, Derived] = {
    "mean": Derived("finetune"),
    "wise": Derived("finetune", "", "alpha", (WISE_ALPHA,)),
    "fit_radii": Derived("finetune"),
    "recommended": Derived("ftp_anchor", "step=0.01"),
}
