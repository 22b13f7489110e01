"""Weights that PyTorch saved in the published formats, and its forward pass.

The other tests do not need PyTorch: `pip install 'tpgm-jax[torch]'` for these.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from examples.papers import models, weights
from examples.papers.resnet import CLIPResNet, ResNet
from examples.papers.vit import CLIPViT

torch: Any = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.slow,
    # PyTorch advises against TorchScript, in which OpenAI published its weights. (The loader
    # ignores the warning of `torch.jit.load` itself.)
    pytest.mark.filterwarnings(r"ignore:`torch.jit.\w+` is deprecated:FutureWarning"),
    # Tracing runs PyTorch's checks of shapes, which it cannot record.
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]
nn, functional = torch.nn, torch.nn.functional
modules: Any = pytest.importorskip("papers_torch")
CLIP, TorchResNet = modules.CLIP, modules.TorchResNet
TorchCLIPResNet, TorchViT = modules.TorchCLIPResNet, modules.TorchViT
WIDTH, DEPTHS, SIZE = modules.WIDTH, modules.DEPTHS, modules.SIZE
FEATURES, HEADS = modules.FEATURES, modules.HEADS
# Float32 rounds each of some 10 layers to 6e-8, relative to its largest output; sums of up to 300
# terms and batch norms of few numbers multiply that by up to 100.
TOLERANCE = 1e-4


def randomize(module):
    """Statistics and scales like a trained model's, and numbers in half precision."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if name.endswith(("running_var", "bn1.weight", "bn2.weight", "bn3.weight")):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif name.endswith(("running_mean", "bias")):
            tensor.normal_(generator=generator)
    return module.half().float()


def archive(visual, path):
    """A file like OpenAI's: TorchScript, in half precision."""
    clip = CLIP(visual).half().eval()
    example = torch.zeros(2, 3, SIZE, SIZE)
    torch.jit.save(torch.jit.trace(clip.float(), example).half(), str(path))


def moco(encoder, path):
    """A file like MoCoV3's: both encoders of a data-parallel model, with the state of training."""
    parts = nn.ModuleDict(
        {"base_encoder": encoder, "momentum_encoder": TorchResNet(nn.Linear(32 * WIDTH, 3))}
    )
    model = nn.ModuleDict({"module": parts})
    model["module"]["predictor"] = nn.Sequential(nn.Linear(3, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    saved = {"epoch": 1000, "arch": "resnet50", "state_dict": model.state_dict()}
    torch.save(saved | {"optimizer": optimizer.state_dict()}, path)


def open_clip(visual, path):
    state = CLIP(visual).state_dict()
    del state["input_resolution"]
    save_file({name: x.detach().contiguous().numpy() for name, x in state.items()}, path)


CASES = {
    "OpenAI's RN50.pt": (TorchCLIPResNet, archive, "weights.pt"),
    "OpenAI's ViT-B-16.pt": (TorchViT, archive, "weights.pt"),
    "open_clip's ViT": (TorchViT, open_clip, "weights.safetensors"),
    "open_clip's ResNet": (TorchCLIPResNet, open_clip, "weights.safetensors"),
    "MoCoV3": (lambda: TorchResNet(nn.Sequential(nn.Linear(32 * WIDTH, 3))), moco, "w.pth.tar"),
    "torchvision": (
        lambda: TorchResNet(nn.Linear(32 * WIDTH, 3)),
        lambda model, path: torch.save(model.state_dict(), path),
        "weights.pth",
    ),
}


def ours(kind) -> Any:
    rngs = nnx.Rngs(0)
    if kind is TorchViT:
        shape: dict[str, Any] = {"width": 24, "depth": 2, "heads": 3}
        return CLIPViT(5, features=FEATURES, size=SIZE, rngs=rngs, **shape)
    if kind is TorchCLIPResNet:
        shape: dict[str, Any] = {"heads": HEADS, "features": FEATURES, "size": SIZE}
        return CLIPResNet(5, width=WIDTH, depths=DEPTHS, rngs=rngs, **shape)
    return ResNet(5, width=WIDTH, depths=DEPTHS, rngs=rngs)


@pytest.mark.parametrize("name", CASES)
def test_published_formats_give_pytorchs_forward_pass(name, tmp_path):
    kind, save, file = CASES[name]
    torch.manual_seed(0)
    theirs, model = randomize(kind()), ours(kind)
    save(theirs, tmp_path / file)
    theirs.float()
    report = weights.load(model, tmp_path / file)
    assert sorted(report.new) == ["head.bias", "head.kernel"]
    x = np.random.default_rng(1).normal(size=(4, 3, SIZE, SIZE)).astype(np.float32)
    head = np.asarray(model.head.kernel[...], np.float64)
    for training in (False, True):
        (model.train if training else model.eval)()
        theirs.train(training)
        received = nnx.jit(lambda model, x: model(x))(model, x.transpose(0, 2, 3, 1))
        with torch.no_grad():
            expected = theirs(torch.from_numpy(x)).double().numpy() @ head
        error = np.abs(received - expected).max() / np.abs(expected).max()
        assert error < TOLERANCE, training
    if kind is not TorchViT:
        # The statistics after one batch in training mode. PyTorch stores the unbiased variance,
        # `n / (n - 1)` times Flax's, of n = 4 images of 32 x 32 positions.
        np.testing.assert_allclose(
            model.bn1.mean[...], theirs.bn1.running_mean.numpy(), rtol=1e-4, atol=1e-5
        )
        n = 4 * (SIZE // 2) ** 2
        np.testing.assert_allclose(model.bn1.var[...], theirs.bn1.running_var, rtol=1 / n)


def test_a_file_with_other_objects_is_refused(tmp_path):
    torch.save({"state_dict": {}, "code": print}, tmp_path / "weights.pt")
    network = models.network("resnet50", 5, shape={"width": WIDTH, "depths": DEPTHS})
    with pytest.raises(models.Refused, match="cannot be used, because of this: Weights only load"):
        models.pretrained(network, tmp_path / "weights.pt", None, 0)


def test_zero_shot_features_have_length_1():
    torch.manual_seed(0)
    theirs = randomize(TorchViT())
    shape: dict[str, Any] = {"width": 24, "depth": 2, "heads": 3}
    model = CLIPViT(5, features=FEATURES, size=SIZE, normalize=True, rngs=nnx.Rngs(0), **shape)
    weights.assign(model, {name: x.numpy() for name, x in theirs.state_dict().items()})
    x = np.random.default_rng(1).normal(size=(4, 3, SIZE, SIZE)).astype(np.float32)
    with torch.no_grad():
        features = functional.normalize(theirs(torch.from_numpy(x)), dim=-1).numpy()
    expected = features @ np.asarray(model.head.kernel[...])
    received = model(jnp.asarray(x.transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(received, expected, atol=TOLERANCE)
