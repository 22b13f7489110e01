"""Projects or interpolates a fine-tuned checkpoint, tensor by tensor."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tpgm_jax._core.axes import Tensor
from tpgm_jax.cli._checkpoint import Checkpoint, Entry
from tpgm_jax.cli._errors import CommandError, list_names, plural, printable, quote
from tpgm_jax.cli._match import Match, Progress
from tpgm_jax.cli._numbers import anchor_radii, move_tensor, projection_ratio

# Maps name, fine-tuned tensor and anchor to how much of the displacement remains, in [0, 1].
Ratio = Callable[[str, np.ndarray, np.ndarray], np.ndarray | float]


def check_match(found: Match) -> None:
    """Raises if shapes, names, quantized weights or kinds of dtype do not fit together."""
    exclude = "pass --exclude with its name to copy it from FINETUNED, or pass checkpoints"
    for name, (w0, w) in found.shapes_differ.items():
        because = f"it has shape {w0} in PRETRAINED and {w} in FINETUNED"
        raise CommandError(f"{quote(name)} cannot be moved", because, f"{exclude} of one model")
    if found.rename or not found.common:
        names = [x[0] for x in (found.only_pretrained, found.only_finetuned) if x]
        because = f"their names differ, such as {' and '.join(map(quote, names)) or 'nothing'}"
        remedy = found.rename or "rename the parameters, or pass checkpoints of one model"
        raise CommandError("PRETRAINED and FINETUNED cannot be matched", because, remedy)
    for name in found.quantized:
        if found.different(name):
            entry = found.finetuned.entries.get(name) or found.pretrained.entries[name]
            because = "it differs, and is part of quantized weights or an integer matrix"
            remedy = "dequantize both first, or --exclude all parts to copy them from FINETUNED"
            raise CommandError(f"{quote(name)} ({entry.label}) cannot be moved", because, remedy)
    for name, (w0, w) in found.kinds_differ.items():
        because = f"it is {printable(w0)} in PRETRAINED and {printable(w)} in FINETUNED"
        remedy = f"{exclude} with the same kinds of dtype"
        raise CommandError(f"{quote(name)} cannot be moved", because, remedy)


def interpolation(alpha: float) -> Ratio:
    """For `W0 + alpha * (W - W0)`, as `tpgm_jax.interpolate` computes it."""
    return lambda name, w, w0: alpha


def projection(
    radius: float, norm: str, unit: str, tensors: Mapping[str, Tensor], pretrained: Checkpoint
) -> Ratio:
    """For a ball around the anchor. For the unit "anchor" it reads the anchor once more."""
    radii: Mapping[str, Any] = dict.fromkeys(tensors, radius)
    if unit == "anchor" and tensors:  # of no tensors there is no mean size
        radii = anchor_radii(radius, norm, tensors, pretrained.read)
    return lambda name, w, w0: projection_ratio(w, w0, tensors[name], radii[name], norm)


def project(
    found: Match, movable: set[str], ratio: Ratio, target: Path, progress: Progress
) -> dict[str, Any]:
    """Writes the new checkpoint to `target`: entries in `movable` moved by `ratio`, others copied.

    Returns:
        What `--json` prints: names of tensors, and notes. `changed` are the moved tensors that
        differ from the fine-tuned ones; with a projection, those outside their ball. `copied` maps
        names to reasons.
    """
    moved: list[str] = []
    changed: list[str] = []
    not_finite: list[str] = []
    copied: dict[str, str] = {}
    reasons = {
        **dict.fromkeys(found.only_finetuned, "only in FINETUNED"),
        **dict.fromkeys(found.training_state, "training state"),
        **dict.fromkeys(found.excluded, "excluded"),
    }

    def replacement(entry: Entry) -> np.ndarray | None:
        progress(entry.size)
        name = entry.name
        if name not in movable:
            copied[name] = reasons.get(name, f"nothing to move ({printable(entry.label)})")
            return None
        w, w0 = found.finetuned.read(name), found.pretrained.read(name)
        new, has_changed, finite = move_tensor(w, w0, ratio(name, w, w0))
        moved.append(name)
        changed.extend([name] * has_changed)
        not_finite.extend([name] * (not finite))
        return new

    return {
        "notes": found.finetuned.save(target, replacement),
        "left_out": found.only_pretrained,
        "moved": moved,
        "changed": changed,
        "copied": copied,
        "not_finite": not_finite,
        "statistics": [name for name in found.statistics if name in movable],
    }


def text(report: Mapping[str, Any], verb: str) -> str:
    """The text that `project` prints without `--json`."""
    headings: dict[str, list[str]] = {}
    for name, reason in report["copied"].items():
        headings.setdefault(f"copied, {reason}", []).append(name)
    headings["left out, only in PRETRAINED"] = report["left_out"]
    headings["not finite"] = report["not_finite"]
    headings["statistic or buffer, moved like a weight unless excluded"] = report["statistics"]
    moved, changed = plural(len(report["moved"]), "tensor"), len(report["changed"])
    first = f"{report['out']}: {moved} {verb}, {changed} changed."
    return "\n".join([first, *list_names(headings), *report["notes"]]) + "\n"
