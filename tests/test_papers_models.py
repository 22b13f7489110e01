"""The papers' models and their weights, against NumPy in float64 and against PyTorch."""

from typing import Any

import numpy as np
import papers_numpy
import pytest
from flax import nnx
from safetensors.numpy import save_file

from examples.papers import weights
from examples.papers.resnet import CLIPResNet, ResNet
from examples.papers.vit import CLIPViT

pytestmark = pytest.mark.slow
DEPTHS = (1, 2, 1, 1)
# Float32 rounds each of some 10 layers to 6e-8, relative to its largest output; sums of up to 300
# terms and batch norms of few numbers multiply that by up to 100.
TOLERANCE = 1e-4


def make(kind, size=64):
    """A tiny model, tensors for it with PyTorch's names, and its forward pass in NumPy."""
    if kind == "vit":
        shape: dict[str, Any] = {"width": 12, "depth": 2, "patch": 16, "size": size, "features": 8}
        model = CLIPViT(5, heads=3, rngs=nnx.Rngs(0), **shape)
        tensors = papers_numpy.random_vit(0, **shape)

        def vit_features(x, training):
            del training
            return papers_numpy.vit_features(tensors, x, depth=2, heads=3)

        return model, tensors, vit_features
    clip = kind == "clip"
    more = {"heads": 4, "features": 8, "size": size} if clip else {}
    cls = CLIPResNet if clip else ResNet
    model = cls(5, width=4, depths=DEPTHS, rngs=nnx.Rngs(0), **more)
    tensors = papers_numpy.random_resnet(0, 4, DEPTHS, clip, size)

    def features(x, training):
        heads = 4 if clip else None
        return papers_numpy.resnet_features(tensors, x, DEPTHS, clip, heads, training)

    return model, tensors, features


def images(size=64):
    return np.random.default_rng(1).normal(size=(4, 3, size, size)).astype(np.float32)


def check(model, features, training):
    """Compares logits; the head is the model's own."""
    x = images()
    (model.train if training else model.eval)()
    received = nnx.jit(lambda model, x: model(x))(model, x.transpose(0, 2, 3, 1))
    head = np.asarray(model.head.kernel[...], np.float64)
    expected = features(x, training) @ head
    error = np.abs(received - expected).max() / np.abs(expected).max()
    assert error < TOLERANCE


PUBLISHED = {
    "resnet": ("resnet", lambda t: t | {"fc.weight": np.zeros((9, 128), np.float32)}),
    "moco": (
        "resnet",
        lambda t: (
            {f"module.base_encoder.{k}": v for k, v in t.items()}
            | {f"module.momentum_encoder.{k}": v + 1 for k, v in t.items()}
            | {"module.base_encoder.fc.0.weight": np.zeros((9, 128), np.float32)}
            | {"module.predictor.0.weight": np.zeros((9, 9), np.float32)}
        ),
    ),
    "clip": (
        "clip",
        lambda t: (
            {f"visual.{k}": v for k, v in t.items()}
            | {"transformer.resblocks.0.ln_1.weight": np.zeros(3, np.float32)}
            | {"positional_embedding": np.zeros((7, 3), np.float32)}
            | {"logit_scale": np.array(4.6, np.float32)}
        ),
    ),
    "vit": ("vit", lambda t: {f"visual.{k}": v for k, v in t.items()}),
    "timm": ("vit", papers_numpy.timm_names),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", PUBLISHED)
def test_forward_passes_agree_with_numpy(name, training, tmp_path):
    kind, publish = PUBLISHED[name]
    model, tensors, features = make(kind)
    published = publish(tensors)
    save_file(
        {name: np.asarray(x) for name, x in published.items()}, tmp_path / "weights.safetensors"
    )
    report = weights.load(model, tmp_path / "weights.safetensors")
    counts = [x for x in tensors if x.endswith("num_batches_tracked")]
    assert sorted(report.new) == ["head.bias", "head.kernel"]
    assert len(report.loaded) == len(tensors) - len(counts)
    assert len(report.left_over) == len(published) - len(report.loaded)
    check(model, features, training)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("resnet", lambda t: t | {"layer5.weight": np.zeros(1)}, "layer5.weight is unknown"),
        ("clip", lambda t: t | {"text.weight": np.zeros(1)}, "text.weight is unknown"),
        ("moco", lambda t: t | {"head.weight": np.zeros(1)}, "head.weight is unknown"),
        ("vit", lambda t: t | {"visual.head.bias": np.zeros(5)}, "head.bias is unknown"),
        ("timm", lambda t: t | {"patch_embed.proj.bias": np.zeros(12)}, "proj.bias is unknown"),
        ("resnet", lambda t: t | {"bn1.weight": np.zeros(3)}, r"shape \(3,\), and the model \(4,"),
        (
            "resnet",
            lambda t: {k: v for k, v in t.items() if k != "bn1.running_var"},
            "bn1.var is not in the file",
        ),
        ("clip", lambda t: {k: v for k, v in t.items() if "visual" not in k}, "not in the file"),
    ],
)
def test_other_weights_are_refused(name, change, message):
    kind, publish = PUBLISHED[name]
    model, tensors, _ = make(kind)
    before = nnx.to_pure_dict(nnx.state(model))
    with pytest.raises(ValueError, match=message):
        weights.assign(model, change(publish(tensors)))
    after = nnx.to_pure_dict(nnx.state(model))
    assert str(before) == str(after)


def test_full_sizes_have_the_published_numbers_of_parameters():
    # torchvision's ResNet-50 has 25,557,032 parameters with its head of 1000 classes; the image
    # towers of CLIP's RN50 and ViT-B/16 have 38,316,896 and 86,192,640, and the heads are new.
    expected = {ResNet: 25_557_032, CLIPResNet: 38_316_896, CLIPViT: 86_192_640}
    for cls, count in expected.items():
        model = nnx.eval_shape(lambda cls=cls: cls(1000, rngs=nnx.Rngs(0)))
        params = nnx.to_flat_state(nnx.state(model, nnx.Param))
        head = {ResNet: 0, CLIPResNet: 1024 * 1000 + 1000, CLIPViT: 512 * 1000 + 1000}[cls]
        assert sum(x.size for _, x in params) - head == count
