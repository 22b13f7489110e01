"""Where in a model each radius stands: in which layer, and what kind of tensor it is of.

Told by names alone. The number in `block_3/attn/query/kernel` is its layer, and its kind is what
all blocks have, `attn/query/kernel`. What has no number, `head/kernel`, is in a layer of its own.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from tpgm_jax._names import in_order

# What comes first and last in a model, though not in the alphabet.
OUTPUTS = re.compile(r"head|classifier|logits")
INPUTS = re.compile(r"emb|stem|patch|(^|_)(pos|cls|init)")


class Entry(NamedTuple):
    """One radius.

    Attributes:
        name: of its tensor.
        layer: which of the stacked layers; `None` if the tensor is not stacked.
        value: the radius.
    """

    name: str
    layer: int | None
    value: float

    @property
    def label(self) -> str:
        return self.name if self.layer is None else f"{self.name}/{self.layer}"


class Place(NamedTuple):
    """Where an `Entry` stands.

    Attributes:
        layer: the layer's name, `block_3`.
        kind: the rest of the tensor's name, `attn/query/kernel`.
        numbered: whether the layer has a number.
    """

    layer: str
    kind: str
    numbered: bool


def entries(radii: Any) -> list[Entry]:
    """Those of a report, or of what `tpgm_jax.radii` returns."""
    if hasattr(radii, "groups"):
        found = [Entry(x.name, x.layer, x.radius) for x in radii.groups if x.radius is not None]
        reason = "no radii, as its method has none or keeps none"
    elif isinstance(radii, Mapping):
        found = []
        for name in in_order(radii):
            if isinstance(radii[name], Sequence):
                found += [Entry(name, i, float(x)) for i, x in enumerate(radii[name])]
            else:
                found.append(Entry(name, None, float(radii[name])))
        reason = "nothing"
    else:
        raise TypeError(
            "radii must be what `tpgm_jax.radii` or `tpgm_jax.report` returned; got "
            f"{type(radii).__name__}."
        )
    if not found:
        raise ValueError(
            f"there is nothing to draw, because the radii hold {reason}: pass what "
            "`tpgm_jax.radii(opt_state, params)` returns after some updates of `ftp` or `tpgm`."
        )
    return found


def places(found: Sequence[Entry]) -> list[Place]:
    """Where each of them stands.

    A residual network numbers stages, blocks in them, and convolutions in those. As many of
    these numbers make a layer as it takes for layers to look most alike.
    """
    if not any(_place(entry, 1).numbered for entry in found):
        return [Place(entry.name or "parameters", "", False) for entry in found]
    best, made_best = -1.0, []
    for numbers in (1, 2, 3):
        made = [_place(entry, numbers) for entry in found]
        counted = [x for x in made if x.numbered]
        layers, kinds = ({x[i] for x in counted} for i in (0, 1))
        alike = len(counted) / (len(layers) * len(kinds))
        if alike > best:
            best, made_best = alike, made
    return made_best


def _place(entry: Entry, numbers: int) -> Place:
    if entry.layer is not None:
        return Place(f"layer {entry.layer}", entry.name, True)
    parts = entry.name.split("/")
    numbered = [i for i, part in enumerate(parts[:-1]) if re.search(r"\d", part)]
    if numbered:
        stop = numbered[0] + 1
        while stop in numbered and stop - numbered[0] < numbers:
            stop += 1
        return Place("/".join(parts[:stop]), "/".join(parts[stop:]), True)
    return Place("/".join(parts[:-1]) or entry.name, parts[-1] if parts[1:] else "", False)


def common(kinds: Sequence[str]) -> str:
    """The path that all begin with, if there are several."""
    columns = zip(*(kind.split("/") for kind in kinds), strict=False)
    shared = [column[0] + "/" for column in takewhile(lambda x: len(set(x)) == 1, columns)]
    return "".join(shared) if len(kinds) > 1 else ""


def layers(found: Sequence[Place]) -> list[str]:
    """Layers from input to output, as far as names tell: in their order, but that embeddings come
    first, and after the numbered layers what has no number, heads last."""

    def rank(place: Place) -> int:
        if place.numbered:
            return 1
        return 0 if INPUTS.search(place.layer) else 3 if OUTPUTS.search(place.layer) else 2

    # Without numbers there is nothing to come after.
    some_numbered = any(place.numbered for place in found)
    ordered = sorted(found, key=rank) if some_numbered else found
    return list(dict.fromkeys(place.layer for place in ordered))


def family(names: Sequence[str]) -> str | None:
    """`block` for `block_0` and `block_1`; `None` if layers differ in more than one number."""
    families = {re.sub(r"\d+", "#", name) for name in names}
    if len(families) != 1 or families.copy().pop().count("#") != 1:
        return None
    words = [re.sub(r"#|\W|_", " ", part).strip() for part in families.pop().split("/")]
    return next((word for word in reversed(words) if word), "layer")
