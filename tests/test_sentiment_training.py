"""Texts, training and the whole program of `examples/sentiment`, on generated sentences."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from tiny_bert import SIZES, VOCABULARY, archive, generated, random_sentences, write_model

from examples.digits.data import generator
from examples.digits.training import shuffled
from examples.sentiment import data, demo, download, texts, training
from examples.sentiment.encoder import Classifier, Config, Encoder
from examples.sentiment.methods import OPTIMIZERS, adamw
from examples.sentiment.texts import DOMAINS, Rated, Sentences


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "model")


def test_texts_are_read_and_unclear_or_repeated_ones_left_out(tmp_path):
    rows = {domain: generated(3, i) for i, domain in enumerate(DOMAINS)}
    rows["nyt"] += [Rated("unclear", 0.5), Rated("clear", -0.6), Rated("TWICE &amp; more", 2.0)]
    rows["tweets"].append(Rated("twice & more", 3.0))
    chosen = texts.clear(texts.read(archive(tmp_path, rows)))
    assert chosen["movie"] == rows["movie"]
    assert chosen["nyt"] == [*rows["nyt"][:3], Rated("clear", -0.6)]
    assert chosen["tweets"] == rows["tweets"][:3]


def test_long_sentences_are_left_out_and_short_ones_padded(folder):
    rated = [Rated("a good b", 1.0), Rated("a " * 6, 1.0), Rated("bad", -3.0)]
    made = texts.encode(rated, texts.tokenizer(folder), longest=7)
    word = VOCABULARY.index
    expected = [[1, word("a"), word("good"), word("b"), 2, 0, 0], [1, word("bad"), 2, 0, 0, 0, 0]]
    np.testing.assert_array_equal(made.tokens, expected)
    np.testing.assert_array_equal(made.mask, np.array(expected) > 0)
    np.testing.assert_array_equal(made.labels, [1, 0])


def numbered(count):
    """Sentences that differ in their first token."""
    tokens = np.arange(count, dtype=np.int32)[:, None] * np.array([[1, 0]], np.int32)
    return Sentences(tokens, tokens >= 0, np.zeros(count, np.int32))


def test_splits_are_disjoint_and_tests_do_not_depend_on_the_source():
    domains = {domain: numbered(100) for domain in DOMAINS}
    sizes = data.Sizes(test=10, validation=20, held_out=5, train=100)
    first, second = (data.split(domains, source, sizes) for source in ("movie", "amazon"))
    used = [first.tests["movie"], first.validation, first.held_out, first.train]
    assert [len(x.labels) for x in used] == [10, 20, 5, 65]
    assert sorted(np.concatenate([x.tokens[:, 0] for x in used])) == list(range(100))
    for domain in DOMAINS:
        np.testing.assert_array_equal(first.tests[domain].tokens, second.tests[domain].tokens)


@pytest.mark.parametrize("count", [7, training.TEST_BATCH, 2 * training.TEST_BATCH + 1])
def test_results_come_in_the_order_of_the_sentences(count):
    sentences = random_sentences(count, longest=32)
    shapes = set()

    def program(params, tokens, mask):
        shapes.add(tokens.shape)
        return jnp.asarray(params * tokens.sum(1) + mask.sum(1))

    made = training.by_length(program, 2, sentences)
    np.testing.assert_array_equal(made, 2 * sentences.tokens.sum(1) + sentences.mask.sum(1))
    assert shapes <= {(training.TEST_BATCH, length) for length in training.LENGTHS}


def test_the_head_is_the_logistic_regression_on_means_over_real_tokens():
    encoder = Encoder(Config(**SIZES), nnx.Rngs(0))
    sentences = random_sentences(40)
    model = training.with_probe(encoder, sentences)
    last = np.asarray(encoder(sentences.tokens, sentences.mask)[-1])
    means = [x[real].mean(0) for x, real in zip(last, sentences.mask, strict=True)]
    # The strength with the most right answers in five parts of the sentences, each left out once.
    scores = [
        cross_val_score(LogisticRegression(C=c), np.stack(means), sentences.labels, cv=5).mean()
        for c in training.PROBE_STRENGTHS
    ]
    best = training.PROBE_STRENGTHS[int(np.argmax(scores))]
    fitted = LogisticRegression(C=best).fit(np.stack(means), sentences.labels)
    logits = model(sentences.tokens, sentences.mask)
    # The fits start from features that differ by roundings, and stop at a gradient of 1e-4.
    np.testing.assert_allclose(logits, fitted.decision_function(np.stack(means)), atol=5e-3)


def test_the_rate_rises_in_a_tenth_of_the_steps_and_falls_to_zero():
    rate = training.warm_up_then_linear(2.0, 100)
    np.testing.assert_allclose([rate(i) for i in (0, 5, 10, 55, 100)], [0, 1, 2, 1, 0], rtol=1e-6)


def test_fine_tuning_is_a_plain_loop_of_optax_and_compiles_once():
    encoder = Encoder(Config(**SIZES), nnx.Rngs(0))
    train, held_out = random_sentences(40), random_sentences(16, seed=1)
    graph, anchor = nnx.split(training.with_probe(encoder, train))
    trainer = training.Trainer(graph, adamw, steps=5)
    calls = []
    trained = trainer(anchor, 1e-2, train, held_out, generator(0, "x"), lambda: calls.append(1))
    other = trainer(anchor, 1e-3, train, held_out, generator(0, "x"))
    assert trainer.step._cache_size() == 1
    assert len(calls) == 5

    tx = optax.adamw(training.warm_up_then_linear(1e-2, 5), weight_decay=0.01)
    params, state = anchor, tx.init(anchor)

    @jax.jit
    def gradient(params, tokens, mask, labels):
        def loss(params):
            z = nnx.merge(graph, params)(tokens, mask)
            return jnp.mean(jnp.log1p(jnp.exp(-jnp.where(labels == 1, z, -z))))

        return jax.grad(loss)(params)

    for rows in shuffled(generator(0, "x"), 40, 5, training.BATCH):
        grads = gradient(params, *train.take(rows))
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    # Adam divides by the gradient's size, so roundings of tiny gradients can change an entry by
    # some of its steps of at most 1e-2. Most entries agree to float32. The bias of the keys changes
    # no output, so its gradient is rounding alone.
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(trained.params), jax.tree.leaves(params), strict=True
    )
    far = {
        name: np.mean(np.abs(np.asarray(a) - np.asarray(b)) > 1e-5)
        for (path, a), b in pairs
        if "key/bias" not in (name := jax.tree_util.keystr(path, simple=True, separator="/"))
    }
    assert len(far) == 5 + 2 * 15 + 2
    assert max(far.values()) < 0.05, far
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), trained.params, other.params)
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_testing_counts_right_answers_and_pairs_in_order():
    sentences = random_sentences(60)
    classifier = Classifier(
        Encoder(Config(**SIZES), nnx.Rngs(0)), nnx.Linear(16, 1, rngs=nnx.Rngs(0))
    )
    test = training.Tester(nnx.split(classifier)[0])
    test.logits = lambda params, tokens, mask: params * (jnp.asarray(tokens[:, 0]) - 20.5)
    labels = sentences.labels
    for params, accuracy, area in ((1.0, 100, 100), (-1.0, 0, 0), (jnp.nan, 0, 50)):
        assert test(params, {"x": sentences}) == ({"x": accuracy}, {"x": area})
    half = sentences._replace(labels=np.where(np.arange(60) < 30, labels, 1 - labels))
    assert test(1.0, {"x": half})[0] == {"x": 50}


@pytest.mark.slow
def test_the_demo_runs_from_end_to_end(folder, tmp_path, monkeypatch, capsys):
    rows = {domain: generated(180, i) for i, domain in enumerate(DOMAINS)}
    monkeypatch.setattr(download, "texts_archive", lambda cache: archive(tmp_path, rows))
    output = tmp_path / "output"
    returned = demo.main(["--fast", "--model", str(folder), "--output", str(output)])
    assert json.loads((output / "results.json").read_text()) == returned
    for theme in ("light", "dark"):
        assert "<svg" in (output / f"figure-{theme}.svg").read_text()
    printed = capsys.readouterr().out
    assert "pooler.dense.weight" in printed
    assert list(returned["methods"]) == ["finetune", "wise", "l2sp", "ftp"]
    assert set(OPTIMIZERS) == {"finetune", "l2sp", "ftp"}
    for entries in returned["methods"].values():
        assert [entry["learning_rate"] for entry in entries] == list(demo.RATES)
        assert sum(entry["chosen"] for entry in entries) == 1
        for entry in entries:
            assert set(entry["accuracy"]) == set(entry["area"]) == {"validation", *DOMAINS}
            assert f"{entry['accuracy']['movie']:.1f}" in printed
    sizes = data.FAST._asdict()
    assert returned["sentences"] == dict.fromkeys(DOMAINS, sizes["test"]) | {
        name: sizes[name] for name in ("train", "validation")
    }
