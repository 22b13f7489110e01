"""The published networks in PyTorch, of small widths. Import it only if PyTorch is installed."""

from collections import OrderedDict
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional
WIDTH, DEPTHS, SIZE, FEATURES, HEADS = 8, (1, 2, 1, 1), 64, 16, 4


class Bottleneck(nn.Module):
    """torchvision's, or CLIP's with an average in place of a stride."""

    def __init__(self, inputs, width, stride, clip):
        super().__init__()
        outputs, inner = 4 * width, 1 if clip else stride
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, inner, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.average = nn.AvgPool2d(stride) if clip and stride > 1 else nn.Identity()
        self.downsample = None
        if stride > 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, inner, bias=False)
            parts = [("0", conv), ("1", nn.BatchNorm2d(outputs))]
            if clip:
                parts.insert(0, ("-1", nn.AvgPool2d(stride)))
            self.downsample = nn.Sequential(OrderedDict(parts))

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(self.average(y)))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


def stage(inputs, width, depth, stride, clip):
    blocks = [Bottleneck(inputs, width, stride, clip)]
    blocks += [Bottleneck(4 * width, width, 1, clip) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)


class TorchResNet(nn.Module):
    """torchvision's ResNet, of other widths; `fc` may be anything."""

    def __init__(self, fc):
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTH)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = [WIDTH, *(4 * WIDTH * 2**i for i in range(3))]
        for i, (a, depth) in enumerate(zip(inputs, DEPTHS, strict=True)):
            made = stage(a, WIDTH * 2**i, depth, 2 if i else 1, clip=False)
            setattr(self, f"layer{i + 1}", made)
        self.fc = fc

    def features(self, x):
        x = self.maxpool(functional.relu(self.bn1(self.conv1(x))))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return x.mean(dim=(2, 3))

    forward = features


class AttentionPool(nn.Module):
    """CLIP's, with PyTorch's own multi-head attention."""

    def __init__(self, width):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn((SIZE // 32) ** 2 + 1, width))
        self.k_proj, self.q_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, FEATURES)

    def forward(self, x):
        x = x.flatten(2).permute(2, 0, 1)  # positions, images, channels
        x = torch.cat([x.mean(dim=0, keepdim=True), x]) + self.positional_embedding[:, None, :]
        biases = [self.q_proj.bias, self.k_proj.bias, self.v_proj.bias]
        x, _ = functional.multi_head_attention_forward(
            query=x[:1],
            key=x,
            value=x,
            embed_dim_to_check=x.shape[-1],
            num_heads=HEADS,
            in_proj_weight=None,
            in_proj_bias=torch.cat(biases),
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0.0,
            out_proj_weight=self.c_proj.weight,
            out_proj_bias=self.c_proj.bias,
            use_separate_proj_weight=True,
            q_proj_weight=self.q_proj.weight,
            k_proj_weight=self.k_proj.weight,
            v_proj_weight=self.v_proj.weight,
            need_weights=False,
        )
        return x[0]


class TorchCLIPResNet(nn.Module):
    """CLIP's modified ResNet."""

    def __init__(self):
        super().__init__()
        half = WIDTH // 2
        self.conv1 = nn.Conv2d(3, half, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, WIDTH, 3, 1, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(WIDTH)
        inputs = [WIDTH, *(4 * WIDTH * 2**i for i in range(3))]
        for i, (a, depth) in enumerate(zip(inputs, DEPTHS, strict=True)):
            made = stage(a, WIDTH * 2**i, depth, 2 if i else 1, clip=True)
            setattr(self, f"layer{i + 1}", made)
        self.attnpool = AttentionPool(32 * WIDTH)

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.relu(self.bn2(self.conv2(x)))
        x = functional.avg_pool2d(functional.relu(self.bn3(self.conv3(x))), 2)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.attnpool(x)


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class TorchBlock(nn.Module):
    """A block of CLIP's transformers, with PyTorch's own attention."""

    def __init__(self, width, heads):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads)
        layers = [
            ("c_fc", nn.Linear(width, 4 * width)),
            ("gelu", QuickGELU()),
            ("c_proj", nn.Linear(4 * width, width)),
        ]
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class TorchTransformer(nn.Module):
    def __init__(self, width, heads, depth):
        super().__init__()
        self.resblocks = nn.Sequential(*(TorchBlock(width, heads) for _ in range(depth)))

    def forward(self, x):
        return self.resblocks(x)


class TorchViT(nn.Module):
    """CLIP's vision transformer."""

    def __init__(self, width=24, heads=3, depth=2, patch=16):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((SIZE // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = TorchTransformer(width, heads, depth)
        self.proj = nn.Parameter(torch.randn(width, FEATURES))

    def forward(self, x):
        x = self.conv1(x).flatten(2).permute(2, 0, 1)
        first = self.class_embedding.expand(1, x.shape[1], -1)
        x = torch.cat([first, x]) + self.positional_embedding[:, None, :]
        return self.ln_post(self.transformer(self.ln_pre(x))[0]) @ self.proj


class CLIP(nn.Module):
    """An image tower beside a text tower, in OpenAI's names."""

    def __init__(self, visual):
        super().__init__()
        self.visual = visual
        self.transformer = TorchTransformer(8, 2, 1)
        self.token_embedding = nn.Embedding(10, 8)
        self.ln_final = nn.LayerNorm(8)
        self.positional_embedding = nn.Parameter(torch.randn(7, 8))
        self.text_projection = nn.Parameter(torch.randn(8, FEATURES))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))
        self.register_buffer("input_resolution", torch.tensor(SIZE))

    def forward(self, images):
        text = self.ln_final(self.transformer(self.token_embedding.weight[:7, None, :]))
        text = (text[:, 0] + self.positional_embedding).mean(dim=0) @ self.text_projection
        scale = self.logit_scale.exp() * self.input_resolution
        return scale * (self.visual(images.to(scale.dtype)) @ text)
