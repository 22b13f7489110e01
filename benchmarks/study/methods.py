"""The methods, each as a function that builds an optimizer.

Fine-tuning is Adam without weight decay, except for `finetune_sgd`. The methods differ in the
wrapper around it.
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import tpgm_jax

HEAD = r"params/head/.*"


class Hyper(NamedTuple):
    """The arguments for an optimizer. All but `exclude` may be traced.

    Attributes:
        rate: the learning rate, a schedule.
        value: the method's other choice, for example L2-SP's weight.
        importance: for EWC, a tree like the parameters; else None.
        key: a random key for this run.
        epoch: the number of steps in one.
        exclude: matches a new head, which no method constrains. None for a reused head.
    """

    rate: optax.Schedule
    value: Any
    importance: Any
    key: Any
    epoch: int
    exclude: str | None


Method = Callable[[Hyper], optax.GradientTransformation]


def linear_probe(h: Hyper) -> optax.GradientTransformation:
    """Adam on the head alone."""

    def labels(params: Any) -> Any:
        return {"params": {name: name == "head" for name in params["params"]}}

    return optax.partition({True: optax.adam(h.rate), False: optax.set_to_zero()}, labels)


def layerwise(h: Hyper) -> optax.GradientTransformation:
    """Adam, whose step is multiplied by `value` once for each layer below the top."""

    def scale(updates: Any, params: Any) -> Any:
        del params
        depths = jax.tree_util.tree_map_with_path(lambda path, _: depth(path), updates)
        top = 1 + max(x for x in jax.tree.leaves(depths) if x != math.inf)
        return jax.tree.map(lambda x, d: x * h.value ** int(top - min(d, top)), updates, depths)

    return optax.chain(optax.adam(h.rate), optax.stateless(scale))


def depth(path: Any) -> float:
    """0 for the first layer, then the number in the layer's name, infinity for the top."""
    layer = path[1].key
    number = re.search(r"\d+", layer)
    return int(number[0]) if number else 0 if layer in ("patches", "positions") else math.inf


def half(h: Hyper) -> optax.GradientTransformation:
    """Adam that updates a random half of the tensors, another half in each epoch.

    Its moments advance in all of them. A new head is always updated.
    """

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        del params
        leaves, structure = jax.tree.flatten_with_path(updates)
        order = jax.random.permutation(jax.random.fold_in(h.key, state // h.epoch), len(leaves))
        kept = [
            x if h.exclude and path[1].key == "head" else jnp.where(place >= len(leaves) // 2, x, 0)
            for (path, x), place in zip(leaves, order, strict=True)
        ]
        return jax.tree.unflatten(structure, kept), state + 1

    tail = optax.GradientTransformation(lambda params: jnp.zeros([], jnp.int32), update)
    return optax.chain(optax.adam(h.rate), tail)


def pulled(h: Hyper) -> optax.GradientTransformation:
    """The pull to the anchor goes through Adam's moments, like a term of the loss."""
    decay = tpgm_jax.add_anchor_decay(h.value, importance=h.importance, exclude=h.exclude)
    return optax.chain(decay, optax.adam(h.rate))


def projected(h: Hyper) -> optax.GradientTransformation:
    return optax.chain(optax.adam(h.rate), tpgm_jax.project_to_anchor(h.value, exclude=h.exclude))


def wrapped(wrapper: Callable[..., Any], base: Any = optax.adam, **options: Any) -> Method:
    """FTP or TPGM around an optimizer."""
    return lambda h: wrapper(base(h.rate), exclude=h.exclude, **options)


def anchor(**options: Any) -> Method:
    """FTP in the anchor's unit."""
    return wrapped(tpgm_jax.ftp, unit="anchor", **options)


def relative(step: float) -> optax.GradientTransformation:
    """Adam's direction as a share of the radius: `r <- r * exp(-step * direction)`."""
    adam = optax.scale_by_adam()

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        direction, state = adam.update(updates, state, params)
        return jax.tree.map(lambda x, r: r * jnp.expm1(-step * x), direction, params), state

    return optax.GradientTransformation(adam.init, update)


def following(factor: float) -> Method:
    """FTP whose radius step is `factor` times the farthest that Adam moves a row.

    In the anchor's unit, for weights of a typical size of 0.05.
    """

    def make(h: Hyper) -> optax.GradientTransformation:
        scale = optax.scale_by_schedule(lambda step: -factor * h.rate(step) / 0.05)
        return anchor(radius_optimizer=optax.chain(optax.scale_by_adam(), scale))(h)

    return make


METHODS: dict[str, Method] = {
    "linear_probe": linear_probe,
    "finetune": lambda h: optax.adam(h.rate),
    "finetune_sgd": lambda h: optax.sgd(h.rate, momentum=0.9, nesterov=True),
    "lpft": lambda h: optax.adam(h.rate),  # from the linear probe
    "llrd": layerwise,
    "l2sp": pulled,
    "ewc": pulled,
    "mars_sp": projected,
    "half": half,
    "spd": lambda h: tpgm_jax.spd(optax.adam(h.rate), strength=h.value, exclude=h.exclude),
    "ftp": wrapped(tpgm_jax.ftp),
    "ftp_anchor": anchor(),
    "tpgm": wrapped(tpgm_jax.tpgm),
    "tpgm_anchor": wrapped(tpgm_jax.tpgm, unit="anchor"),
}
# Methods that change what another method trained, and train nothing themselves.
SOURCES = {
    "wise": "finetune",
    "tpgm_posthoc": "finetune",
    "finetune_mean": "finetune",
    "ftp_anchor_mean": "ftp_anchor",
    "recommended": "ftp_anchor",
}
# `recommended` is the mean of all iterates, moved a tenth of the way back to the anchor.
RECOMMENDED_ALPHA = 0.9

# Candidates of the exploration that led to `recommended`. Its CSV also has the rows of "anchor,
# exact gradient", an option of `ftp` that no longer exists. They cannot be run again.
CANDIDATES: dict[str, Method] = {
    "fine-tuning": METHODS["finetune"],
    "ftp": METHODS["ftp"],
    "anchor": METHODS["ftp_anchor"],
    "anchor, step 3e-3": anchor(radius_optimizer=optax.adam(3e-3)),
    "anchor, step 3e-2": anchor(radius_optimizer=optax.adam(3e-2)),
    "anchor, l2": anchor(norm="l2"),
    "anchor, k 0.5": anchor(k=0.5),
    "anchor, starting at 0.03": anchor(initial_radius=0.03),
    "anchor, starting at 1": anchor(initial_radius=1.0),
    "anchor, hyper-gradients averaged over 100 steps": anchor(
        radius_optimizer=optax.adam(1e-2, b1=0.99)
    ),
    "anchor, radius step without momentum": anchor(radius_optimizer=optax.adam(1e-2, b1=0.0)),
    "anchor, weight decay 0.1": anchor(base=lambda rate: optax.adamw(rate, weight_decay=0.1)),
    # Ten times Adam's rate moves the weights about as far here.
    "anchor, SGD": anchor(
        base=lambda rate: optax.sgd(lambda step: 10 * rate(step), momentum=0.9, nesterov=True)
    ),
    "tpgm, anchor": METHODS["tpgm_anchor"],
    # Tried later, for a default that holds on all models.
    "anchor, relative step 1e-2": anchor(radius_optimizer=relative(1e-2), initial_radius=1e-2),
    "anchor, relative step 3e-2": anchor(radius_optimizer=relative(3e-2), initial_radius=1e-2),
    "anchor, step follows the rate, 0.1": following(0.1),
    "anchor, step follows the rate, 0.3": following(0.3),
}
# Compared at all rates of the curves.
DEFAULTS = ("fine-tuning", "ftp", "anchor", "anchor, step 3e-3", *list(CANDIDATES)[-4:])
