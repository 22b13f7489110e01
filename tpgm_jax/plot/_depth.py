"""The layer and the kind of each tensor, from its name.

In `block_3/attn/query/kernel`, `block_3` is the layer and `attn/query/kernel` the kind, which all
blocks share. A name without a number, such as `head/kernel`, is a layer of its own.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from tpgm_jax._core.names import natural_order

# Layers at the ends of a model, wherever their names sort.
OUTPUTS = re.compile(r"head|classifier|logits")
INPUTS = re.compile(r"emb|stem|patch|(^|_)(pos|cls|init)")


class Entry(NamedTuple):
    """One radius.

    Attributes:
        name: the tensor's name.
        layer: index of the stacked layer; `None` if the tensor is not stacked.
        value: the radius.
    """

    name: str
    layer: int | None
    value: float

    @property
    def label(self) -> str:
        return self.name if self.layer is None else f"{self.name}/{self.layer}"


class Place(NamedTuple):
    """The place of an `Entry` in the model.

    Attributes:
        layer: the layer's name, `block_3`.
        kind: the rest of the tensor's name, `attn/query/kernel`.
        numbered: whether the layer has a number.
    """

    layer: str
    kind: str
    numbered: bool


def read_radii(radii: Any) -> list[Entry]:
    """The radii of a report, or of the result of `tpgm_jax.radii`.

    Raises:
        ValueError, TypeError: there are none, or `radii` is of another type.
    """
    if hasattr(radii, "groups"):
        entries = [Entry(x.name, x.layer, x.radius) for x in radii.groups if x.radius is not None]
        reason = "the report holds no radii (its method has or stores none)"
    elif isinstance(radii, Mapping):
        entries = []
        for name in natural_order(radii):
            if isinstance(radii[name], Sequence):
                entries += [Entry(name, i, float(x)) for i, x in enumerate(radii[name])]
            else:
                entries.append(Entry(name, None, float(radii[name])))
        reason = "the dict of radii is empty"
    else:
        raise TypeError(
            "`radii` must be the result of `tpgm_jax.radii` or `tpgm_jax.report`, because radii "
            f"are drawn by name; got {type(radii).__name__}. Pass "
            "`tpgm_jax.radii(opt_state, params)`."
        )
    if not entries:
        raise ValueError(
            f"there is nothing to draw, because {reason}: pass the result of "
            "`tpgm_jax.radii(opt_state, params)` after some updates of `ftp` or `tpgm`."
        )
    return entries


def locate(entries: Sequence[Entry]) -> list[Place]:
    """The place of each entry.

    Residual networks number stages, blocks in a stage, and convolutions in a block. Group by the
    prefix length that makes the layers most similar.
    """
    if not any(_split(entry, 1).numbered for entry in entries):
        return [Place(entry.name or "parameters", "", False) for entry in entries]
    best_similarity, best = -1.0, []
    for length in (1, 2, 3):
        places = [_split(entry, length) for entry in entries]
        numbered = [x for x in places if x.numbered]
        layers, kinds = ({x[i] for x in numbered} for i in (0, 1))
        # 1 if every layer has every kind.
        similarity = len(numbered) / (len(layers) * len(kinds))
        if similarity > best_similarity:
            best_similarity, best = similarity, places
    return best


def _split(entry: Entry, length: int) -> Place:
    """Splits a name after its first numbered part and up to `length - 1` that follow directly."""
    if entry.layer is not None:
        return Place(f"layer {entry.layer}", entry.name, True)
    parts = entry.name.split("/")
    numbered = [i for i, part in enumerate(parts[:-1]) if re.search(r"\d", part)]
    if numbered:
        stop = numbered[0] + 1
        while stop in numbered and stop - numbered[0] < length:
            stop += 1
        return Place("/".join(parts[:stop]), "/".join(parts[stop:]), True)
    return Place("/".join(parts[:-1]) or entry.name, parts[-1] if parts[1:] else "", False)


def common_prefix(kinds: Sequence[str]) -> str:
    """The path that all kinds start with; empty for a single kind."""
    columns = zip(*(kind.split("/") for kind in kinds), strict=False)
    prefix = [column[0] + "/" for column in takewhile(lambda x: len(set(x)) == 1, columns)]
    return "".join(prefix) if len(kinds) > 1 else ""


def order_layers(places: Sequence[Place]) -> list[str]:
    """Layers from input to output, guessed from their names.

    Embeddings first, then numbered layers, then layers without a number, heads last. Within each
    of these, the given order. Without numbered layers the given order stays.
    """

    def rank(place: Place) -> int:
        if place.numbered:
            return 1
        return 0 if INPUTS.search(place.layer) else 3 if OUTPUTS.search(place.layer) else 2

    some_numbered = any(place.numbered for place in places)
    in_rank = sorted(places, key=rank) if some_numbered else places
    return list(dict.fromkeys(place.layer for place in in_rank))


def family(names: Sequence[str]) -> str | None:
    """`block` for `block_0` and `block_1`; `None` if layers differ in more than one number."""
    families = {re.sub(r"\d+", "#", name) for name in names}
    if len(families) != 1 or families.copy().pop().count("#") != 1:
        return None
    words = [re.sub(r"#|\W|_", " ", part).strip() for part in families.pop().split("/")]
    return next((word for word in reversed(words) if word), "layer")
