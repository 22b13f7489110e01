"""Data for the scripts of this folder, and what each of them checks."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tpgm_jax

VOCABULARY = 16
HELD_OUT = 10**6  # a step that no training reaches


def sequences(step: int) -> np.ndarray:
    """Tokens `[8, 12]` that count up by 1, 2 or 3, modulo the vocabulary."""
    rng = np.random.default_rng(step)
    start, by = rng.integers(VOCABULARY, size=(8, 1)), rng.integers(1, 4, size=(8, 1))
    return ((start + by * np.arange(12)) % VOCABULARY).astype(np.int32)


def images(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Images `[16, 8, 8, 1]` with one bright quarter, and its index `[16]`."""
    rng = np.random.default_rng(step)
    labels = rng.integers(4, size=16)
    bright = np.eye(4).reshape(4, 2, 2).repeat(4, axis=1).repeat(4, axis=2)[labels]
    noise = rng.normal(size=(16, 8, 8))
    return (bright + 0.5 * noise)[..., None].astype(np.float32), labels.astype(np.int32)


def new_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="tpgm_jax_"))


def flat(tree: Any) -> dict[str, np.ndarray]:
    """Arrays by name, copied to the host. Names as in `tpgm_jax.radii`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    arrays = [np.array(leaf) for _, leaf in leaves]
    return dict(zip([name.removesuffix("/value") for name in names], arrays, strict=True))


def check_rows(axes: Mapping[str, tpgm_jax.Axes], expected: Mapping[str, Any]) -> None:
    """The rows that were read off the model must equal `expected`, by name."""
    print(axes, end="\n\n")
    for name, rows in expected.items():
        assert axes[name].rows == rows, (name, axes[name], rows)


def check_loss(losses: list[float]) -> None:
    """The mean loss of the second half of the steps must be below the mean of the first half."""
    assert len(losses) >= 6, losses
    half = len(losses) // 2
    assert np.all(np.isfinite(losses)), losses
    assert np.mean(losses[half:]) < np.mean(losses[:half]), losses


def check_equal(one: Any, other: Any) -> None:
    """Both trees must have the same names, dtypes and bits."""
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    assert one
    for name, array in one.items():
        assert array.dtype == other[name].dtype, name
        assert array.tobytes() == other[name].tobytes(), name


def check_radii(
    opt_state: Any, params: Any, anchor: Mapping[str, np.ndarray], axes: Mapping[str, Any]
) -> None:
    """Every row must be within its radius, and the last step must have pulled some of them back.

    Args:
        opt_state: the optimizer state.
        params: the fine-tuned parameters.
        anchor: copies of the pre-trained parameters, by name.
        axes: rows and layers by name, with axes counted from the front.
    """
    report = tpgm_jax.report(opt_state, params)
    print(report, end="\n\n")
    assert report.notes == (), report.notes
    assert any(group.pulled_back for group in report.groups)
    tuned = flat(params)
    radii = tpgm_jax.radii(opt_state, params)
    assert radii
    for name, radius in radii.items():
        eps = float(jnp.finfo(tuned[name].dtype).eps)
        w, w0 = (x[name].astype(np.float64) for x in (tuned, anchor))
        rows, layers = axes[name]
        inputs = tuple(i for i in range(w.ndim) if i not in (*rows, *layers))
        moved, size, size0 = (np.abs(x).sum(axis=inputs, keepdims=True) for x in (w - w0, w, w0))
        r = np.reshape(radius, [n if i in layers else 1 for i, n in enumerate(w.shape)])
        # Adding the update rounds each weight by at most half of `eps`, and the update's own sum of
        # three terms by as much. `1e-8` is added to all norms.
        assert np.all(moved <= r + eps * (size + size0 + r) + 1e-8), name
        assert np.any(moved > 0), name
