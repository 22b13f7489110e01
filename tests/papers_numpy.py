"""The papers' models in NumPy and float64, from tensors with PyTorch's names and layouts.

Written from the papers' descriptions and PyTorch's documentation, apart from `examples.papers`.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def random_resnet(seed, width, depths, clip, size=64, features=8):
    """Random tensors with the names of torchvision's or CLIP's ResNet."""
    rng = np.random.default_rng(seed)
    tensors = {}

    def conv(name, outputs, inputs, kernel):
        scale = (2 / (inputs * kernel**2)) ** 0.5
        tensors[f"{name}.weight"] = scale * rng.normal(size=(outputs, inputs, kernel, kernel))

    def norm(name, channels):
        tensors[f"{name}.weight"] = rng.uniform(0.5, 1.5, channels)
        tensors[f"{name}.bias"] = rng.normal(size=channels)
        tensors[f"{name}.running_mean"] = rng.normal(size=channels)
        tensors[f"{name}.running_var"] = rng.uniform(0.5, 2.0, channels)
        tensors[f"{name}.num_batches_tracked"] = np.array(3)

    half = width // 2
    stem = [(half, 3, 3), (half, half, 3), (width, half, 3)] if clip else [(width, 3, 7)]
    for i, shape in enumerate(stem, 1):
        conv(f"conv{i}", *shape)
        norm(f"bn{i}", shape[0])
    inputs = width
    for stage, depth in enumerate(depths):
        for index in range(depth):
            name, inner = f"layer{stage + 1}.{index}", width * 2**stage
            shapes = [(inner, inputs, 1), (inner, inner, 3), (4 * inner, inner, 1)]
            for i, shape in enumerate(shapes, 1):
                conv(f"{name}.conv{i}", *shape)
                norm(f"{name}.bn{i}", shape[0])
            if index == 0:
                conv(f"{name}.downsample.0", 4 * inner, inputs, 1)
                norm(f"{name}.downsample.1", 4 * inner)
            inputs = 4 * inner
    if clip:
        rows = (size // 32) ** 2 + 1
        tensors["attnpool.positional_embedding"] = rng.normal(size=(rows, inputs))
        for name, outputs in (("q", inputs), ("k", inputs), ("v", inputs), ("c", features)):
            tensors[f"attnpool.{name}_proj.weight"] = rng.normal(size=(outputs, inputs)) / 8
            tensors[f"attnpool.{name}_proj.bias"] = rng.normal(size=outputs)
    return {name: np.asarray(x, np.float32) for name, x in tensors.items()}


def random_vit(seed, width, depth, patch, size, features):
    """Random tensors with the names of CLIP's image tower."""
    rng = np.random.default_rng(seed)
    shapes = {
        "class_embedding": (width,),
        "positional_embedding": ((size // patch) ** 2 + 1, width),
        "proj": (width, features),
        "conv1.weight": (width, 3, patch, patch),
    }
    for name in ("ln_pre", "ln_post"):
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    for i in range(depth):
        shapes |= {
            f"transformer.resblocks.{i}.{name}": shape
            for name, shape in {
                "ln_1.weight": (width,),
                "ln_1.bias": (width,),
                "ln_2.weight": (width,),
                "ln_2.bias": (width,),
                "attn.in_proj_weight": (3 * width, width),
                "attn.in_proj_bias": (3 * width,),
                "attn.out_proj.weight": (width, width),
                "attn.out_proj.bias": (width,),
                "mlp.c_fc.weight": (4 * width, width),
                "mlp.c_fc.bias": (4 * width,),
                "mlp.c_proj.weight": (width, 4 * width),
                "mlp.c_proj.bias": (width,),
            }.items()
        }
    return {name: rng.normal(size=s).astype(np.float32) * 0.3 for name, s in shapes.items()}


def timm_names(tensors):
    """The same tensors as timm stores them."""
    renamed = {}
    for name, x in tensors.items():
        name = name.replace("transformer.resblocks", "blocks").replace("ln_1", "norm1")
        name = name.replace("ln_2", "norm2").replace("ln_pre", "norm_pre")
        name = name.replace("ln_post", "norm").replace("attn.in_proj_", "attn.qkv.")
        name = name.replace("out_proj", "proj").replace("c_fc", "fc1").replace("c_proj", "fc2")
        name = "patch_embed.proj.weight" if name == "conv1.weight" else name
        if name == "proj":
            name, x = "head.weight", np.ascontiguousarray(x.T)
        elif name == "class_embedding":
            name, x = "cls_token", x[None, None]
        elif name == "positional_embedding":
            name, x = "pos_embed", x[None]
        renamed[name] = x
    return renamed


def conv(x, kernel, stride=1, padding=0):
    """`x` is (batch, channels, height, width), `kernel` (outputs, inputs, height, width)."""
    p = padding
    windows = sliding_window_view(
        np.pad(x, [(0, 0), (0, 0), (p, p), (p, p)]), kernel.shape[2:], axis=(2, 3)
    )
    return np.einsum("nchwij,ocij->nohw", windows[:, :, ::stride, ::stride], kernel)


def pool(x, stride):
    n, c, h, w = x.shape
    return x.reshape(n, c, h // stride, stride, w // stride, stride).mean(axis=(3, 5))


def batch_norm(x, t, name, training):
    mean, var = t[f"{name}.running_mean"], t[f"{name}.running_var"]
    if training:
        mean, var = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))

    def wide(v):
        return v[:, None, None]

    unit = (x - wide(mean)) / np.sqrt(wide(var) + 1e-5)
    return unit * wide(t[f"{name}.weight"]) + wide(t[f"{name}.bias"])


def resnet_features(tensors, x, depths, clip, heads=None, training=False):
    """Images (batch, 3, height, width) to what the head receives."""
    t = {name: np.asarray(value, np.float64) for name, value in tensors.items()}

    def norm(x, name):
        return batch_norm(x, t, name, training)

    def relu(x):
        return np.maximum(x, 0)

    x = np.asarray(x, np.float64)
    for i in (1, 2, 3) if clip else (1,):
        kernel = t[f"conv{i}.weight"]
        x = relu(norm(conv(x, kernel, 2 if i == 1 else 1, kernel.shape[2] // 2), f"bn{i}"))
    if clip:
        x = pool(x, 2)
    else:
        padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)], constant_values=-np.inf)
        x = sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2].max(axis=(4, 5))
    for stage, depth in enumerate(depths):
        for index in range(depth):
            name, stride = f"layer{stage + 1}.{index}", 2 if stage and not index else 1
            y = relu(norm(conv(x, t[f"{name}.conv1.weight"]), f"{name}.bn1"))
            y = conv(y, t[f"{name}.conv2.weight"], 1 if clip else stride, 1)
            y = relu(norm(y, f"{name}.bn2"))
            y = pool(y, stride) if clip else y
            y = norm(conv(y, t[f"{name}.conv3.weight"]), f"{name}.bn3")
            if index == 0:
                x = pool(x, stride) if clip else x[:, :, ::stride, ::stride]
                x = norm(conv(x, t[f"{name}.downsample.0.weight"]), f"{name}.downsample.1")
            x = relu(x + y)
    if not clip:
        return x.mean(axis=(2, 3))
    tokens = x.reshape(*x.shape[:2], -1).transpose(0, 2, 1)
    tokens = np.concatenate([tokens.mean(axis=1, keepdims=True), tokens], axis=1)
    tokens = tokens + t["attnpool.positional_embedding"]

    def linear(x, name):
        return x @ t[f"attnpool.{name}_proj.weight"].T + t[f"attnpool.{name}_proj.bias"]

    y = attention(linear(tokens[:, :1], "q"), linear(tokens, "k"), linear(tokens, "v"), heads)
    return linear(y[:, 0], "c")


def attention(query, key, value, heads):
    """Each is (batch, tokens, width)."""

    def split(x):
        return x.reshape(*x.shape[:2], heads, -1)

    query, key, value = split(query), split(key), split(value)
    scores = np.einsum("nqhd,nkhd->nhqk", query, key) / np.sqrt(query.shape[-1])
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares = scores / scores.sum(axis=-1, keepdims=True)
    y = np.einsum("nhqk,nkhd->nqhd", shares, value)
    return y.reshape(*y.shape[:2], -1)


def vit_features(tensors, x, depth, heads):
    """Images (batch, 3, height, width) to what the head receives."""
    t = {name: np.asarray(value, np.float64) for name, value in tensors.items()}
    patch = t["conv1.weight"].shape[2]

    def norm(x, name):
        unit = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
        return unit * t[f"{name}.weight"] + t[f"{name}.bias"]

    x = conv(np.asarray(x, np.float64), t["conv1.weight"], patch)
    x = x.reshape(*x.shape[:2], -1).transpose(0, 2, 1)
    first = np.broadcast_to(t["class_embedding"], (len(x), 1, x.shape[-1]))
    x = norm(np.concatenate([first, x], axis=1) + t["positional_embedding"], "ln_pre")
    for i in range(depth):
        name = f"transformer.resblocks.{i}"
        y = norm(x, f"{name}.ln_1") @ t[f"{name}.attn.in_proj_weight"].T
        y = attention(*np.split(y + t[f"{name}.attn.in_proj_bias"], 3, axis=-1), heads)
        x = x + y @ t[f"{name}.attn.out_proj.weight"].T + t[f"{name}.attn.out_proj.bias"]
        y = norm(x, f"{name}.ln_2") @ t[f"{name}.mlp.c_fc.weight"].T + t[f"{name}.mlp.c_fc.bias"]
        y = y / (1 + np.exp(-1.702 * y))
        x = x + y @ t[f"{name}.mlp.c_proj.weight"].T + t[f"{name}.mlp.c_proj.bias"]
    return norm(x[:, 0], "ln_post") @ t["proj"]
