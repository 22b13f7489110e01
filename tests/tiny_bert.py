"""A small random BERT made by `transformers`, and generated texts, for tests of the examples."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from examples.sentiment import texts
from examples.sentiment.texts import DOMAINS, Rated, Sentences

# Tensors, tokens, mask and hidden states `[1 + layers, n, length, width]` of a random BERT. Made by
# `transformers` 5.24: `BertModel` of these sizes after `torch.manual_seed(0)`, with 0.2 times
# normal numbers added to every parameter, because its biases start at 0 and its scales at 1; five
# texts of 1 to 9 tokens drawn by NumPy's generator 0.
STORED = Path(__file__).parent / "golden" / "bert.npz"
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}
CONFIG = {"model_type": "bert", "hidden_act": "gelu", **SIZES}
POSITIVE, NEGATIVE = ("good", "great", "fine"), ("bad", "poor", "dull")
VOCABULARY = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *POSITIVE, *NEGATIVE, *"abcdefghijklmnopqrst"]


def stored():
    with np.load(STORED) as file:
        arrays = {name: file[name] for name in file.files}
    tensors = {
        name.removeprefix("tensor/"): value
        for name, value in arrays.items()
        if name.startswith("tensor/")
    }
    return tensors, arrays["tokens"], arrays["mask"], arrays["states"]


def write_model(made):
    """Writes a Hugging Face folder of the stored BERT, with a tokenizer of whole words."""
    made.mkdir()
    (made / "config.json").write_text(json.dumps(CONFIG))
    save_file(stored()[0], made / "model.safetensors")
    tokenizer = Tokenizer(
        WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_padding(length=12)  # as in the file of MiniLM
    tokenizer.save(str(made / "tokenizer.json"))
    return made


def archive(folder, rows):
    """A source distribution with the rated sentences of each domain."""
    inner, path = io.BytesIO(), folder / "texts.tar.gz"
    with tarfile.open(fileobj=inner, mode="w:gz") as file:
        for domain, rated in rows.items():
            text = "".join(f"{i}\t{rating}\t{x}\r\n" for i, (x, rating) in enumerate(rated))
            _add(file, f"hutto_ICWSM_2014/{DOMAINS[domain]}_GroundTruth.txt", text.encode())
    with tarfile.open(path, "w:gz") as outer:
        _add(outer, f"vader-3/{texts.ARCHIVE}", inner.getvalue())
    return path


def _add(file, name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    file.addfile(entry, io.BytesIO(content))


def generated(count, seed):
    """Different sentences of six letters and one word that decides."""
    rng, made = np.random.default_rng(seed), {}
    while len(made) < count:
        positive = bool(rng.integers(2))
        letters = rng.choice(list("abcdefghijklmnopqrst"), 6)
        word = rng.choice(POSITIVE if positive else NEGATIVE)
        made[f"{' '.join(letters[:3])} {word} {' '.join(letters[3:])}"] = 2.0 if positive else -2.0
    return [Rated(*item) for item in made.items()]


def random_sentences(count, seed=0, longest=12):
    rng = np.random.default_rng(seed)
    mask = np.arange(32) < rng.integers(1, longest + 1, (count, 1))
    tokens = np.where(mask, rng.integers(1, 40, mask.shape), 0).astype(np.int32)
    labels = (tokens[:, 0] > 20).astype(np.int32)  # can be learned
    return Sentences(tokens, mask, labels)
