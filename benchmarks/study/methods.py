"""The methods, each as a way to build an optimizer, and what is tried of each.

Fine-tuning is Adam without weight decay throughout, but for `finetune_sgd`; the methods differ
by what is wrapped around it. Of two-parameter methods `value` is the other one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import tpgm_jax
from benchmarks.study.cells import CURVE_RATES, NINE_RATES, NINE_SGD_RATES, THREE_RATES
from benchmarks.study.models import TOP, depth

HEAD = r"params/head/.*"


class Hyper(NamedTuple):
    """What an optimizer is built from; all but `exclude` may be traced.

    Attributes:
        rate: the learning rate, a schedule of the step.
        value: of the method's other choice.
        importance: EWC's, a tree like the parameters.
        key: randomness of the run's own.
        epoch: steps in one.
        exclude: a new head, which no method constrains; None where the head is reused.
    """

    rate: Callable[[Any], Any]
    value: Any
    importance: Any
    key: Any
    epoch: int
    exclude: str | None


class Method(NamedTuple):
    """How one method trains, and what is tried of it.

    Attributes:
        make: from `Hyper` to an optimizer.
        rates: learning rates tried, from the smallest.
        name: of the other choice.
        values: of it, from the one that keeps closest to the anchor.
        from_probe: whether it starts at the linear probe.
        held_out: whether it learns on the split that is set aside for radii.
        curve: learning rates at which it is run in the end, besides the one chosen.
    """

    make: Callable[[Hyper], optax.GradientTransformation]
    rates: tuple[float, ...] = NINE_RATES
    name: str = ""
    values: tuple[float | None, ...] = (None,)
    from_probe: bool = False
    held_out: bool = False
    curve: tuple[float, ...] = ()


class Derived(NamedTuple):
    """A method that does something to what another one trained, and trains nothing itself.

    Attributes:
        source: the method that trains.
        name: of its own choice, and
        values: of it.
    """

    source: str
    name: str = ""
    values: tuple[float | None, ...] = (None,)


def linear_probe(h: Hyper) -> optax.GradientTransformation:
    """Adam on the head, nothing on the rest."""
    return optax.multi_transform(
        {"head": optax.adam(h.rate), "body": optax.set_to_zero()},
        lambda params: jax.tree_util.tree_map_with_path(
            lambda path, _: "head" if name_of(path).startswith("params/head/") else "body", params
        ),
    )


def layerwise(h: Hyper) -> optax.GradientTransformation:
    """Adam, its step smaller by `value` for each layer further down."""

    def update(updates, state, params=None):
        del params
        paths = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(updates)]
        depths = [depth(path) for path in paths]
        top = 1 + max(x for x in depths if x != TOP)
        factors = [h.value ** (top - min(x, top)) for x in depths]
        leaves, structure = jax.tree.flatten(updates)
        scaled = [x * factor for x, factor in zip(leaves, factors, strict=True)]
        return jax.tree.unflatten(structure, scaled), state

    tail = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
    return optax.chain(optax.adam(h.rate), tail)


def half(h: Hyper) -> optax.GradientTransformation:
    """Adam, whose updates of a random half of the tensors are dropped, another half each epoch.

    Its moments go on in all of them. A new head is never among the frozen.
    """

    def update(updates, state, params=None):
        del params
        leaves, structure = jax.tree.flatten(updates)
        order = jax.random.permutation(jax.random.fold_in(h.key, state // h.epoch), len(leaves))
        moves = order >= len(leaves) // 2
        for i, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(updates)):
            if h.exclude and name_of(path).startswith("params/head/"):
                moves = moves.at[i].set(True)
        kept = [jnp.where(moves[i], x, 0) for i, x in enumerate(leaves)]
        return jax.tree.unflatten(structure, kept), state + 1

    tail = optax.GradientTransformation(lambda params: jnp.zeros([], jnp.int32), update)
    return optax.chain(optax.adam(h.rate), tail)


def name_of(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _adam(h: Hyper) -> optax.GradientTransformation:
    return optax.adam(h.rate)


def _pulled(h: Hyper, importance: Any = None) -> optax.GradientTransformation:
    """Coupled: the pull goes through Adam, as it does when it is a term of the loss."""
    decay = tpgm_jax.add_anchor_decay(h.value, importance=importance, exclude=h.exclude)
    return optax.chain(decay, optax.adam(h.rate))


METHODS: dict[str, Method] = {
    "linear_probe": Method(linear_probe),
    "finetune": Method(_adam, curve=CURVE_RATES),
    "finetune_sgd": Method(
        lambda h: optax.sgd(h.rate, momentum=0.9, nesterov=True), rates=NINE_SGD_RATES
    ),
    "lpft": Method(_adam, from_probe=True),
    "llrd": Method(layerwise, THREE_RATES, "decay", (0.5, 0.7, 0.9)),
    "l2sp": Method(_pulled, THREE_RATES, "weight", (0.1, 0.01, 0.001), curve=CURVE_RATES),
    "ewc": Method(lambda h: _pulled(h, h.importance), THREE_RATES, "weight", (0.1, 0.01, 0.001)),
    "mars_sp": Method(
        lambda h: optax.chain(
            optax.adam(h.rate), tpgm_jax.project_to_anchor(h.value, exclude=h.exclude)
        ),
        *(THREE_RATES, "radius", (0.5, 2.0, 8.0)),
    ),
    "half": Method(half),
    "spd": Method(
        lambda h: tpgm_jax.spd(optax.adam(h.rate), strength=h.value, exclude=h.exclude),
        *(THREE_RATES, "strength", (2.0, 1.0, 0.5)),
    ),
    "ftp": Method(lambda h: tpgm_jax.ftp(optax.adam(h.rate), exclude=h.exclude), curve=CURVE_RATES),
    # A candidate, as `tpgm_anchor`: radii in units of the anchor.
    "ftp_anchor": Method(
        lambda h: tpgm_jax.ftp(optax.adam(h.rate), exclude=h.exclude, unit="anchor"),
        curve=CURVE_RATES,
    ),
    "tpgm": Method(
        lambda h: tpgm_jax.tpgm(optax.adam(h.rate), exclude=h.exclude),
        held_out=True,
        curve=CURVE_RATES,
    ),
    "tpgm_anchor": Method(
        lambda h: tpgm_jax.tpgm(optax.adam(h.rate), exclude=h.exclude, unit="anchor"),
        held_out=True,
        curve=CURVE_RATES,
    ),
}

DERIVED: dict[str, Derived] = {
    "wise": Derived("finetune", "alpha", (0.1, 0.3, 0.5, 0.7, 0.9)),
    "tpgm_posthoc": Derived("finetune"),
    # Candidates, and their control: the mean of all iterates of the run.
    "finetune_mean": Derived("finetune"),
    "ftp_anchor_mean": Derived("ftp_anchor"),
    # The outcome of `exploration`: that mean, a tenth of the way back to the anchor.
    "recommended": Derived("ftp_anchor"),
}
RECOMMENDED_ALPHA = 0.9

# What the issue asks for with a new head; the candidates as well.
NEW_HEAD = (
    *("finetune", "linear_probe", "wise", "l2sp", "ftp", "tpgm"),
    *("ftp_anchor", "ftp_anchor_mean", "finetune_mean", "recommended"),
)
