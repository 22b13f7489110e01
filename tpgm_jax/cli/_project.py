"""A fine-tuned checkpoint, projected or interpolated, tensor by tensor."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from tpgm_jax._axes import Layout, Tensor
from tpgm_jax._unit import from_sums, row_sums
from tpgm_jax.cli._checkpoint import Checkpoint, Entry
from tpgm_jax.cli._compare import Structure
from tpgm_jax.cli._errors import CommandError
from tpgm_jax.cli._move import interpolated, known, projected
from tpgm_jax.cli._text import plural, printable

# An anchor and a fine-tuned tensor to the new one, and whether it is another.
Move = Callable[[str, np.ndarray, np.ndarray], tuple[np.ndarray, bool]]


class Report(NamedTuple):
    """What was written.

    Attributes:
        out: where.
        moved: tensors that were projected or interpolated.
        changed: those of them that are not as they were: outside their ball, for a projection.
        copied: tensors that are those of the fine-tuned checkpoint: name to why.
        left_out: what only the pre-trained checkpoint has.
        not_finite: moved tensors with NaN or infinity in them.
    """

    out: Path
    moved: list[str]
    changed: list[str]
    copied: dict[str, str]
    left_out: list[str]
    not_finite: list[str]

    def as_json(self) -> dict[str, Any]:
        return {**self._asdict(), "out": str(self.out)}

    def as_text(self, verb: str) -> str:
        lines = [
            f"{self.out}: {plural(len(self.moved), 'tensor')} {verb}, of which "
            f"{len(self.changed)} changed."
        ]
        lines += [f"copied, {why}: {printable(name)}" for name, why in self.copied.items()]
        lines += [f"left out, only in PRETRAINED: {printable(name)}" for name in self.left_out]
        lines += [f"not finite: {printable(name)}" for name in self.not_finite]
        return "\n".join(lines) + "\n"


def check_structure(found: Structure) -> None:
    """Shapes that differ can not be measured, and nothing in common is a mistake."""
    for name, (w0, w) in found.shapes.items():
        raise CommandError(
            f"{printable(name)!r} has shape {w0} in PRETRAINED and {w} in FINETUNED: pass "
            "--exclude with its name, to copy that of FINETUNED, or checkpoints of one model."
        )
    if not found.common:
        names = [x[0] for x in (found.only_pretrained, found.only_finetuned) if x]
        examples = " and ".join(repr(printable(name)) for name in names) or "nothing"
        raise CommandError(f"the checkpoints have no parameter in common; they have {examples}.")


def interpolation(alpha: float) -> Move:
    """To the straight line between both."""

    def move(name: str, anchor: np.ndarray, params: np.ndarray) -> tuple[np.ndarray, bool]:
        del name
        new = interpolated(params, anchor, alpha)
        return new, new.tobytes() != params.tobytes()

    return move


def projection(
    radius: float,
    norm: str,
    unit: str,
    tensors: Mapping[str, Tensor],
    pretrained: Checkpoint,
    finetuned: Checkpoint,
) -> Move:
    """To the ball of this radius. With the unit "anchor" it reads all of `pretrained` first."""
    parts = Layout(tuple(tensors.values()))
    wide = any(finetuned.entries[name].label == "float64" for name in tensors)
    dtype = jnp.dtype("float64" if wide else "float32")
    radii = np.asarray(radius * jnp.ones(parts.groups, dtype))
    if unit == "anchor":
        pretrained.expect(list(tensors))
        sums = [
            row_sums(jnp.asarray(known(pretrained.read(name))), tensor, norm, dtype)
            for name, tensor in tensors.items()
        ]
        radii = np.asarray(radius * from_sums(sums, parts, norm, dtype))
    by_name, start = {}, 0
    for name, tensor in tensors.items():
        by_name[name] = radii[start : start + tensor.groups].reshape(tensor.radius_shape)
        start += tensor.groups

    def move(name: str, anchor: np.ndarray, params: np.ndarray) -> tuple[np.ndarray, bool]:
        return projected(params, anchor, tensors[name], by_name[name], norm)

    return move


def project(
    pretrained: Checkpoint,
    finetuned: Checkpoint,
    found: Structure,
    movable: Callable[[Entry], bool],
    move: Move,
    excluded: Collection[str],
    target: Path,
    out: Path,
    told: Callable[[int], object],
) -> Report:
    """Writes to `target` what `out` is to be.

    Args:
        pretrained: the anchor.
        finetuned: whose format, names, order, dtypes and metadata the output has.
        found: how they pair.
        movable: whether an entry is moved; the others are copied.
        move: how.
        excluded: names that are copied because the caller said so.
        target: a new path.
        out: the path to report.
        told: is told of the bytes that are done.
    """
    report = Report(out, [], [], {}, found.only_pretrained, [])
    alone = set(found.only_finetuned)

    def replacement(entry: Entry) -> np.ndarray | None:
        told(entry.size)
        name = entry.name
        if not movable(entry):
            why = "excluded" if name in excluded else "only in FINETUNED"
            fixed = name not in excluded and name not in alone
            report.copied[name] = f"nothing to move ({entry.label})" if fixed else why
            return None
        params = finetuned.read(name)
        new, changed = move(name, pretrained.read(name), params)
        report.moved.append(name)
        if changed:
            report.changed.append(name)
        if not np.all(np.isfinite(new)):
            report.not_finite.append(name)
        return new

    pretrained.expect([name for name, entry in finetuned.entries.items() if movable(entry)])
    finetuned.save(target, replacement)
    return report
