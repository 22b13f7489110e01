"""Projects or interpolates a fine-tuned checkpoint, tensor by tensor."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tpgm_jax._core.axes import Tensor
from tpgm_jax.cli._checkpoint import Checkpoint, Entry
from tpgm_jax.cli._errors import CommandError, listed, plural, printable, quoted
from tpgm_jax.cli._match import Match, Progress, different
from tpgm_jax.cli._numbers import (
    all_finite,
    anchor_sums,
    interpolate_tensor,
    project_tensor,
    unit_sizes,
)

# Maps name, anchor and fine-tuned tensor to the new tensor, and to whether it changed.
Move = Callable[[str, np.ndarray, np.ndarray], tuple[np.ndarray, bool]]


@dataclass
class Report:
    """A summary of the output: names of tensors, and notes for the user.

    Attributes:
        left_out: names that only the pre-trained checkpoint has.
        changed: moved tensors that differ from the fine-tuned ones; with a projection, the tensors
            outside their ball.
        copied: name to reason, for tensors copied from the fine-tuned checkpoint.
    """

    out: str
    left_out: list[str]
    moved: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    copied: dict[str, str] = field(default_factory=dict)
    not_finite: list[str] = field(default_factory=list)
    statistics: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_text(self, verb: str) -> str:
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.copied.items():
            by_reason.setdefault(f"copied, {reason}", []).append(name)
        by_reason["left out, only in PRETRAINED"] = self.left_out
        by_reason["not finite"] = self.not_finite
        by_reason["statistic or buffer, moved like a weight unless excluded"] = self.statistics
        lines = [
            f"{self.out}: {plural(len(self.moved), 'tensor')} {verb}, {len(self.changed)} changed."
        ]
        lines += [line for heading, names in by_reason.items() for line in listed(heading, names)]
        return "\n".join([*lines, *self.notes]) + "\n"


def check_match(pretrained: Checkpoint, finetuned: Checkpoint, found: Match, hint: str) -> None:
    """Raises if shapes, names, quantized weights or kinds of dtype do not fit together."""
    exclude = "pass --exclude with its name to copy it from FINETUNED, or pass checkpoints"
    for name, (w0, w) in found.shapes.items():
        because = f"it has shape {w0} in PRETRAINED and {w} in FINETUNED"
        raise CommandError(f"{quoted(name)} cannot be moved", because, f"{exclude} of one model")
    if hint or not found.common:
        names = [x[0] for x in (found.only_pretrained, found.only_finetuned) if x]
        because = f"their names differ, such as {' and '.join(map(quoted, names)) or 'nothing'}"
        remedy = hint or "rename the parameters, or pass checkpoints of one model"
        raise CommandError("PRETRAINED and FINETUNED cannot be matched", because, remedy)
    for name in sorted(found.quantized):
        if different(pretrained, finetuned, name):
            entry = finetuned.entries.get(name) or pretrained.entries[name]
            because = "it differs, and is part of quantized weights or an integer matrix"
            remedy = "dequantize both first, or --exclude all parts to copy them from FINETUNED"
            raise CommandError(f"{quoted(name)} ({entry.label}) cannot be moved", because, remedy)
    for name, (w0, w) in found.kinds.items():
        because = f"it is {printable(w0)} in PRETRAINED and {printable(w)} in FINETUNED"
        remedy = f"{exclude} with the same kinds of dtype"
        raise CommandError(f"{quoted(name)} cannot be moved", because, remedy)


def interpolation(alpha: float) -> Move:
    """A move to `(1 - alpha) * W0 + alpha * W`."""
    return lambda name, anchor, params: interpolate_tensor(params, anchor, alpha)


def projection(
    radius: float, norm: str, unit: str, tensors: Mapping[str, Tensor], pretrained: Checkpoint
) -> Move:
    """A move to a ball around the anchor. For the unit "anchor" it reads the anchor once more."""
    radii: Mapping[str, np.ndarray]
    radii = {name: np.full(t.radius_shape, radius, np.float64) for name, t in tensors.items()}
    if unit == "anchor":
        sums = {name: anchor_sums(pretrained.read(name), t, norm) for name, t in tensors.items()}
        radii = {name: radius * u for name, u in unit_sizes(sums, tensors, norm).items()}
    return lambda name, anchor, params: project_tensor(
        params, anchor, tensors[name], radii[name], norm
    )


def project(
    pretrained: Checkpoint,
    finetuned: Checkpoint,
    found: Match,
    movable: set[str],
    move: Move,
    target: Path,
    out: Path,
    progress: Progress,
) -> Report:
    """Writes the new checkpoint to `target`, and shows the path `out`.

    The entries named in `movable` are replaced by `move`, and the others are copied.
    """
    report = Report(str(out), found.only_pretrained)
    statistics = set(found.statistics)
    reasons = {
        **dict.fromkeys(found.only_finetuned, "only in FINETUNED"),
        **dict.fromkeys(found.training, "training state"),
        **dict.fromkeys(found.excluded, "excluded"),
    }

    def replacement(entry: Entry) -> np.ndarray | None:
        progress(entry.size)
        name = entry.name
        if name not in movable:
            report.copied[name] = reasons.get(name, f"nothing to move ({printable(entry.label)})")
            return None
        new, changed = move(name, pretrained.read(name), finetuned.read(name))
        report.moved.append(name)
        if changed:
            report.changed.append(name)
        if not all_finite(new):
            report.not_finite.append(name)
        if name in statistics:
            report.statistics.append(name)
        return new

    report.notes += finetuned.save(target, replacement)
    return report
