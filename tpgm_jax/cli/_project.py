"""Projects or interpolates a fine-tuned checkpoint, tensor by tensor."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tpgm_jax._core.axes import Tensor
from tpgm_jax.cli._checkpoint import Checkpoint, Entry
from tpgm_jax.cli._errors import CommandError
from tpgm_jax.cli._match import Match, Progress, different
from tpgm_jax.cli._numbers import (
    all_finite,
    anchor_sums,
    interpolate_tensor,
    project_tensor,
    unit_sizes,
)
from tpgm_jax.cli._text import listed, plural, printable

# Maps name, anchor and fine-tuned tensor to the new tensor, and to whether it changed.
Move = Callable[[str, np.ndarray, np.ndarray], tuple[np.ndarray, bool]]


class Report(NamedTuple):
    """A summary of the output.

    Attributes:
        out: path of the output.
        moved: names of the tensors that were projected or interpolated.
        changed: moved tensors that differ from the fine-tuned ones; with a projection, the tensors
            outside their ball.
        copied: name to reason, for tensors copied from the fine-tuned checkpoint.
        left_out: names that only the pre-trained checkpoint has.
        not_finite: moved tensors that contain NaN or infinity.
        statistics: moved tensors that are statistics or buffers.
        notes: lines for the user.
    """

    out: Path
    moved: list[str]
    changed: list[str]
    copied: dict[str, str]
    left_out: list[str]
    not_finite: list[str]
    statistics: list[str]
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        return {**self._asdict(), "out": str(self.out)}

    def as_text(self, verb: str) -> str:
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.copied.items():
            by_reason.setdefault(f"copied, {reason}", []).append(name)
        moved = set(self.moved)
        by_reason["left out, only in PRETRAINED"] = self.left_out
        by_reason["not finite"] = self.not_finite
        by_reason["statistic or buffer, moved like a weight unless excluded"] = [
            x for x in self.statistics if x in moved
        ]
        lines = [
            f"{self.out}: {plural(len(self.moved), 'tensor')} {verb}, {len(self.changed)} changed."
        ]
        lines += [line for heading, names in by_reason.items() for line in listed(heading, names)]
        return "\n".join([*lines, *self.notes]) + "\n"


def check_match(pretrained: Checkpoint, finetuned: Checkpoint, found: Match, hint: str) -> None:
    """Checks that the new numbers would make sense.

    Raises:
        CommandError: shapes or kinds of dtype differ; names do not match; quantized weights differ.
    """
    exclude = "pass --exclude with its name to copy it from FINETUNED, or pass "
    for name, (w0, w) in found.shapes.items():
        raise CommandError(
            f"{printable(name)!r} cannot be moved, because it has shape {w0} in PRETRAINED and {w} "
            f"in FINETUNED: {exclude}checkpoints of one model."
        )
    if hint or not found.common:
        names = [x[0] for x in (found.only_pretrained, found.only_finetuned) if x]
        examples = " and ".join(repr(printable(name)) for name in names) or "nothing"
        raise CommandError(
            "PRETRAINED and FINETUNED do not have the same names, but "
            f"{examples}: {hint or 'rename the parameters, or pass checkpoints of one model'}."
        )
    for group in found.quantized:
        changed = sorted(x for x in group if different(pretrained, finetuned, x))
        if changed:
            label = {**pretrained.entries, **finetuned.entries}[changed[0]].label
            raise CommandError(
                f"{printable(changed[0])!r} ({label}) cannot be moved, because it is part of "
                f"quantized weights or an integer matrix ({printable(', '.join(sorted(group)))}) "
                "and differs: its numbers mean nothing on their own. Dequantize both checkpoints "
                "first, or pass --exclude with the names to copy them from FINETUNED."
            )
    for name, (w0, w) in found.kinds.items():
        raise CommandError(
            f"{printable(name)!r} cannot be moved, because it is {printable(w0)} in PRETRAINED and "
            f"{printable(w)} in FINETUNED: {exclude}checkpoints with the same kinds of dtype."
        )


def interpolation(alpha: float) -> Move:
    """A move to `(1 - alpha) * W0 + alpha * W`."""

    def move(name: str, anchor: np.ndarray, params: np.ndarray) -> tuple[np.ndarray, bool]:
        del name
        return interpolate_tensor(params, anchor, alpha)

    return move


def projection(
    radius: float, norm: str, unit: str, tensors: Mapping[str, Tensor], pretrained: Checkpoint
) -> Move:
    """A move to a ball around the anchor.

    With `unit="anchor"`, reads all tensors of `pretrained` once to compute the unit.
    """
    radii: Mapping[str, np.ndarray]
    radii = {name: np.full(t.radius_shape, radius, np.float64) for name, t in tensors.items()}
    if unit == "anchor":
        sums = {name: anchor_sums(pretrained.read(name), t, norm) for name, t in tensors.items()}
        radii = {name: radius * u for name, u in unit_sizes(sums, tensors, norm).items()}

    def move(name: str, anchor: np.ndarray, params: np.ndarray) -> tuple[np.ndarray, bool]:
        return project_tensor(params, anchor, tensors[name], radii[name], norm)

    return move


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
    """Writes the new checkpoint to `target`.

    Args:
        pretrained: the anchor.
        finetuned: the fine-tuned checkpoint. The output has its format, names, order, dtypes and
            metadata.
        found: entries of both, matched by name.
        movable: names of the entries to move; other entries are copied.
        move: computes the new tensor.
        target: the new path to write to.
        out: the path to show in the report.
        progress: called with the number of bytes processed.
    """
    report = Report(out, [], [], {}, found.only_pretrained, [], found.statistics, [])
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
        return new

    report.notes.extend(finetuned.save(target, replacement))
    return report
