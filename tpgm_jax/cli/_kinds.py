"""Sorts tensors by name and dtype: weights, quantized parts, statistics, training state."""

import re
from collections.abc import Collection, Mapping

from tpgm_jax.cli._checkpoint import Entry
from tpgm_jax.cli._errors import CommandError

_SEPARATOR = re.compile(r"[./]")
# The rest of the name `weight_scale_inv` is `weight`, of `scales` or `qzeros` nothing.
_SCALE = re.compile(
    r"_?(?:q?scales?|q?zeros?|zero_?points?|(?:nested_)?absmax|amax|(?:nested_)?quant_(?:map|state)"
    r"|scb|g_idx|bitsandbytes.*)(?:_inv|_\w?\w?\w?\d+)?\Z",
    re.IGNORECASE,
)
_STATISTIC = re.compile(
    r"running_\w+|moving_\w+|num_batches_tracked|\w*weight_u|_[uv]|inv_freq|\w*mask\w*"
    r"|position_ids|\w*count(?:er)?|steps?|\w*relative_position_index",
    re.IGNORECASE,
)

# A module of 3,000 quantized layers without levels in their names. More would take minutes.
_MOST_PAIRS = 10_000_000
_PACKED = ("int2", "int4", "uint2", "uint4", "F4", "F6_E2M3", "F6_E3M2", "float4_e2m1fn")


def training_state(names: Collection[str]) -> set[str]:
    """Names of optimizer states, such as Adam's moments.

    These are all names under `opt_state`. The names `mu` and `nu` alone may be a model's own, so
    they count only together, or beside the `count` or `params` of a saved state.
    """
    found: set[str] = set()
    states: dict[str, dict[str, list[str]]] = {}  # path to its children, and the names below each
    for name in names:
        parts = _SEPARATOR.split(name)
        # The first only, because names may be full of them.
        child = next((x for x in parts if x in ("mu", "nu", "count", "params")), None)
        if "opt_state" in parts or "optimizer_state" in parts:
            found.add(name)
        elif child:
            above = "/".join(parts[: parts.index(child)])
            states.setdefault(above, {}).setdefault(child, []).append(name)
    for children in states.values():
        if len(children) > 1:
            found.update(children.get("mu", ()), children.get("nu", ()))
    return found


def is_statistic(name: str) -> bool:
    """Whether a tensor is a statistic or a buffer: nothing that the gradient moves."""
    *above, leaf = _SEPARATOR.split(name)
    return bool(_STATISTIC.fullmatch(leaf)) or "batch_stats" in above


def quantized_names(entries: Mapping[str, Entry]) -> set[str]:
    """Names of tensors that mean numbers only together: quantized weights and their scales.

    These are integer or float8 tensors with the scales and zero points beside or below them, and
    also without any: tensors of less than 8 bits, exponents (E8M0) and integer matrices.
    """
    scales: dict[str, list[tuple[str, str]]] = {}  # module to names of scales and what they scale
    for name in entries:
        parent, leaf = _split(name)
        scale = _SCALE.search(leaf)
        if scale:
            scales.setdefault(parent, []).append((name, leaf[: scale.start()]))
            if _SCALE.fullmatch(_split(parent)[1]):  # such as `weight.quant_state.bitsandbytes`
                scales.setdefault(_split(parent)[0], []).append((name, ""))
    found, pairs = set(), 0
    for name, entry in entries.items():
        packed = entry.label in _PACKED
        narrow = entry.kind == "float" and entry.dtype is not None and entry.dtype.itemsize == 1
        integer = entry.kind == "int" and entry.dtype is not None and entry.dtype.itemsize < 8
        if not (packed or narrow or integer) or is_statistic(name):
            continue
        parent, leaf = _split(name)
        if leaf == "key" or "rng" in name:  # random keys
            continue
        pairs += len(scales.get(parent, ()))
        if pairs > _MOST_PAIRS:
            because = f"more than {_MOST_PAIRS} pairs of integers and scales are in one module"
            raise CommandError("scales cannot be matched", because, "split the checkpoint")
        related = {
            x
            for x, stem in scales.get(parent, ())
            if stem in leaf or leaf in stem or stem in ("input", "output")
        }
        related |= {x for x, _ in scales.get(name, ())}
        if narrow:  # a float8 model has norms called `scale`, of the same dtype
            related = {x for x in related if entries[x].dtype != entry.dtype}
        alone = packed or "e8m0" in entry.label or (integer and len(entry.shape) > 1)
        if alone or (related - {name} and entry.shape):
            found |= {name, *related}
    return found


def _split(name: str) -> tuple[str, str]:
    at = max(name.rfind("."), name.rfind("/"))
    return name[: max(at, 0)], name[at + 1 :]
