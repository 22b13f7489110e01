"""Published weights, matched to a model by name.

| file | names | loaded |
|---|---|---|
| OpenAI's `RN50.pt`, `ViT-B-16.pt` (TorchScript) | `visual.layer1.0.conv1.weight` | `visual.` |
| open_clip, `.safetensors` or `.pt` | the same | `visual.` |
| MoCoV3, `r-50-1000ep.pth.tar` | `module.base_encoder.layer1.0.conv1.weight` | `base_encoder.` |
| timm's CLIP ViT, `.safetensors` | `blocks.0.attn.qkv.weight` | everything |
| torchvision's ResNet-50 | `layer1.0.conv1.weight` | all but `fc.` |

Every other name is an error, and so is a wrong shape or a tensor that the file lacks.
"""

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

# Tensors of the published files that a classifier of images has no use for.
_TEXT = r"transformer\.resblocks\..+|token_embedding\.weight|ln_final\.(weight|bias)"
_SCALARS = r"positional_embedding|text_projection|logit_scale|logit_bias"
_SIZES = r"input_resolution|context_length|vocab_size|attn_mask"
_LEFT_OVER = {
    "visual.": rf"{_TEXT}|{_SCALARS}|{_SIZES}",
    "base_encoder.": r"(momentum_encoder|predictor)\..+|base_encoder\.fc\..+",
    "": r"fc\.(weight|bias)",
}
_TIMM = (
    (r"cls_token", "class_embedding"),
    (r"pos_embed", "positional_embedding"),
    (r"patch_embed\.proj\.weight", "conv1.weight"),
    (r"norm_pre\.(.*)", r"ln_pre.\1"),
    (r"norm\.(.*)", r"ln_post.\1"),
    (r"blocks\.(\d+)\.norm([12])\.(.*)", r"transformer.resblocks.\1.ln_\2.\3"),
    (r"blocks\.(\d+)\.attn\.qkv\.(.*)", r"transformer.resblocks.\1.attn.in_proj.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(.*)", r"transformer.resblocks.\1.attn.out_proj.\2"),
    (r"blocks\.(\d+)\.mlp\.fc1\.(.*)", r"transformer.resblocks.\1.mlp.c_fc.\2"),
    (r"blocks\.(\d+)\.mlp\.fc2\.(.*)", r"transformer.resblocks.\1.mlp.c_proj.\2"),
)
_LEAVES = {
    "weight": ("kernel", "scale"),
    "bias": ("bias",),
    "running_mean": ("mean",),
    "running_var": ("var",),
}
HEAD = "head"  # always new


class Report(NamedTuple):
    """Result of `load`.

    Attributes:
        loaded: names of the model's tensors that have the file's values.
        new: names of the model's tensors that keep their initial values: the head.
        left_over: names of the file's tensors that the model has no use for.
    """

    loaded: list[str]
    new: list[str]
    left_over: list[str]

    def __str__(self) -> str:
        text = f"{len(self.loaded)} tensors loaded; new: {', '.join(self.new)}"
        return f"{text}; {len(self.left_over)} of the file left over"


def load(model: nnx.Module, path: str | Path) -> Report:
    """Puts a file's tensors into a model.

    Args:
        model: changed in place. Its attribute `head` keeps its initial values.
        path: file in one of the formats above.

    Raises:
        ValueError: the file's names or shapes do not match the model. The model is unchanged.
        ImportError: the file needs torch or safetensors, which is not installed.
    """
    return assign(model, read(path))


def read(path: str | Path) -> dict[str, np.ndarray]:
    """A file's tensors by name, floating-point numbers in float32."""
    if Path(path).suffix == ".safetensors":
        from safetensors.numpy import load_file

        return {name: np.asarray(x, np.float32) for name, x in load_file(path).items()}
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f"{path} needs PyTorch: pip install torch.") from error
    if _is_archive(path):
        with warnings.catch_warnings():
            # PyTorch advises against TorchScript, but OpenAI's weights are published in it.
            warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", FutureWarning)
            saved = torch.jit.load(path, map_location="cpu").state_dict()
    else:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    saved = saved.get("state_dict", saved)
    return {name: x.detach().float().numpy() for name, x in saved.items()}


def _is_archive(path: str | Path) -> bool:
    """Whether a file is a TorchScript archive, which alone has code in it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def assign(model: nnx.Module, tensors: Mapping[str, np.ndarray]) -> Report:
    """Puts tensors with PyTorch's names and layouts into a model. See `load`."""
    wanted, left_over = _select(tensors)
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    targets: dict[tuple[Any, ...], Any] = dict(nnx.to_flat_state(state))
    values, problems = {}, []
    for name, (inner, tensor) in wanted.items():
        path = _target(inner, targets)
        if path is None:
            problems.append(f"{name} is unknown to the model")
            continue
        value = _flax_layout(path, tensor)
        if inner in ("class_embedding", "positional_embedding"):
            value = value.reshape(value.shape[-targets[path][...].ndim :])  # timm: leading ones
        expected = targets[path][...].shape
        if value.shape != expected:
            problems.append(f"{name} has shape {value.shape}, and the model {expected}")
        values[path] = value
    new = [path for path in targets if path not in values]
    problems += [f"{_name(path)} is not in the file" for path in new if path[0] != HEAD]
    if problems:
        more = f", and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(f"these weights are not the model's: {'; '.join(problems[:8])}{more}.")
    for path, value in values.items():
        targets[path][...] = jnp.asarray(value, targets[path][...].dtype)
    nnx.update(model, nnx.from_flat_state(list(targets.items())))
    return Report([_name(x) for x in values], [_name(x) for x in new], left_over)


def _select(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], list[str]]:
    """Name in the file to name in the image model and tensor; and the names left over."""
    names = {name: name.removeprefix("module.") for name in tensors}
    prefixes = ("visual.", "base_encoder.")
    found = [p for p in prefixes if any(name.startswith(p) for name in names.values())]
    prefix = found[0] if found else ""
    timm = "patch_embed.proj.weight" in tensors
    left_over, wanted = [], {}
    for original, name in names.items():
        counts = name.endswith("num_batches_tracked")
        if counts or (not timm and re.fullmatch(_LEFT_OVER[prefix], name)):
            left_over.append(original)
            continue
        tensor = tensors[original]
        inner = name.removeprefix(prefix) if name.startswith(prefix) else f"?.{name}"
        if timm and inner == "head.weight":
            inner, tensor = "proj", tensor.T
        for pattern, replacement in _TIMM if timm else ():
            inner = re.sub(f"^{pattern}$", replacement, inner)
        wanted[original] = (inner.replace("in_proj_", "in_proj."), tensor)
    return wanted, left_over


def _target(name: str, targets: Mapping[tuple[Any, ...], Any]) -> tuple[Any, ...] | None:
    """Path of the model's tensor for a PyTorch name."""
    *parents, leaf = (int(x) if x.isdigit() else x for x in name.split("."))
    paths = [(*parents, x) for x in _LEAVES.get(str(leaf), (leaf,))]
    return next((path for path in paths if path in targets and path[0] != HEAD), None)


def _flax_layout(path: tuple[Any, ...], tensor: np.ndarray) -> np.ndarray:
    """PyTorch has outputs first, `(out, in, kh, kw)` and `(out, in)`; Flax has them last."""
    if path[-1] != "kernel":
        return tensor
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))
