"""Projects or interpolates a fine-tuned checkpoint, tensor by tensor."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from tpgm_jax._core.axes import Layout, Tensor
from tpgm_jax._core.unit import row_sums, unit_from_sums
from tpgm_jax.cli._checkpoint import Checkpoint, Entry
from tpgm_jax.cli._compare import Structure
from tpgm_jax.cli._errors import CommandError
from tpgm_jax.cli._move import interpolate_tensor, project_tensor, widen_float8
from tpgm_jax.cli._text import plural, printable

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
            f"{self.out}: {plural(len(self.moved), 'tensor')} {verb}, {len(self.changed)} changed."
        ]
        lines += [f"copied, {reason}: {printable(name)}" for name, reason in self.copied.items()]
        lines += [f"left out, only in PRETRAINED: {printable(name)}" for name in self.left_out]
        lines += [f"not finite: {printable(name)}" for name in self.not_finite]
        return "\n".join(lines) + "\n"


def check_structure(structure: Structure) -> None:
    """Checks that the checkpoints have parameters in common, and equal shapes.

    Raises:
        CommandError: shapes differ, or there is no parameter in common.
    """
    for name, (w0, w) in structure.shapes.items():
        raise CommandError(
            f"{printable(name)!r} cannot be moved, because it has shape {w0} in PRETRAINED and {w} "
            "in FINETUNED: pass --exclude with its name to copy it from FINETUNED, or pass "
            "checkpoints of one model."
        )
    if not structure.common:
        names = [x[0] for x in (structure.only_pretrained, structure.only_finetuned) if x]
        examples = " and ".join(repr(printable(name)) for name in names) or "nothing"
        raise CommandError(
            "no tensor can be moved, because the checkpoints have no parameter in common (they "
            f"have {examples}): pass checkpoints of one model."
        )


def interpolation(alpha: float) -> Move:
    """The move to `(1 - alpha) * W0 + alpha * W`."""

    def move(name: str, anchor: np.ndarray, params: np.ndarray) -> tuple[np.ndarray, bool]:
        del name
        new = interpolate_tensor(params, anchor, alpha)
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
    """The projection to a ball of this radius.

    With `unit="anchor"`, this reads all tensors of `pretrained` once to compute the unit.
    """
    layout = Layout(tuple(tensors.values()))
    wide = any(finetuned.entries[name].label == "float64" for name in tensors)
    dtype = jnp.dtype("float64" if wide else "float32")
    radii = np.asarray(radius * jnp.ones(layout.groups, dtype))
    if unit == "anchor":
        pretrained.expect(list(tensors))
        sums = [
            row_sums(jnp.asarray(widen_float8(pretrained.read(name))), tensor, norm, dtype)
            for name, tensor in tensors.items()
        ]
        radii = np.asarray(radius * unit_from_sums(sums, layout, norm, dtype))
    by_name, start = {}, 0
    for name, tensor in tensors.items():
        by_name[name] = radii[start : start + tensor.groups].reshape(tensor.radius_shape)
        start += tensor.groups

    def move(name: str, anchor: np.ndarray, params: np.ndarray) -> tuple[np.ndarray, bool]:
        return project_tensor(params, anchor, tensors[name], by_name[name], norm)

    return move


def project(
    pretrained: Checkpoint,
    finetuned: Checkpoint,
    structure: Structure,
    movable: Callable[[Entry], bool],
    move: Move,
    excluded: Collection[str],
    target: Path,
    out: Path,
    progress: Callable[[int], object],
) -> Report:
    """Writes the new checkpoint to `target`.

    Args:
        pretrained: the anchor.
        finetuned: the fine-tuned checkpoint. The output has its format, names, order, dtypes and
            metadata.
        structure: entries of both, matched by name.
        movable: whether an entry is moved; other entries are copied.
        move: computes the new tensor.
        excluded: names that are copied because of `--exclude`.
        target: the new path to write to.
        out: the path to show in the report.
        progress: called with the number of bytes processed.
    """
    report = Report(out, [], [], {}, structure.only_pretrained, [])
    only_finetuned = set(structure.only_finetuned)

    def replacement(entry: Entry) -> np.ndarray | None:
        progress(entry.size)
        name = entry.name
        if not movable(entry):
            if name in excluded:
                report.copied[name] = "excluded"
            elif name in only_finetuned:
                report.copied[name] = "only in FINETUNED"
            else:
                report.copied[name] = f"nothing to move ({entry.label})"
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
