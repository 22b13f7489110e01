"""The probe, fine-tuning, and testing."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV

from examples.digits.training import MakeOptimizer, shuffled
from examples.sentiment.encoder import Classifier, Encoder
from examples.sentiment.texts import Sentences

HEAD = r"head/.*"
STEPS, BATCH, WARM_UP = 100, 16, 10
PROBE_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # inverse: 1 is scikit-learn's default
# Texts are tested in batches of similar length, padded to one of these, so that few programs are
# compiled and little padding is computed.
LENGTHS = (16, 20, 24, 28, 32)
TEST_BATCH = 50


def with_probe(encoder: Encoder, train: Sentences) -> Classifier:
    """The encoder with a head fitted by logistic regression on its features."""
    width = encoder.norm.num_features
    model = Classifier(encoder, nnx.Linear(width, 1, rngs=nnx.Rngs(0)))
    graph, params = nnx.split(model)

    @jax.jit
    def features(params: Any, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        return nnx.merge(graph, params).features(tokens, mask)

    # The least regularized probe has 10 points less in other domains, and its large weights leave
    # the encoder little to learn. So cross-validation on the training sentences decides.
    search = GridSearchCV(LogisticRegression(max_iter=3000), {"C": PROBE_STRENGTHS}, cv=5)
    fitted = search.fit(by_length(features, params, train), train.labels).best_estimator_
    set_head(model, fitted.coef_.T, fitted.intercept_)
    return model


def set_head(model: Classifier, kernel: np.ndarray, bias: np.ndarray) -> None:
    """Overwrites the head's weights `[width, 1]` and its bias `[1]`."""
    assert model.head.bias is not None
    model.head.kernel[...] = jnp.asarray(kernel, jnp.float32)
    model.head.bias[...] = jnp.asarray(bias, jnp.float32)


def loss(model: Classifier, batch: Sentences) -> jax.Array:
    """Mean cross-entropy over the sentences, in nats; `()`."""
    logits = model(batch.tokens, batch.mask)
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, jnp.asarray(batch.labels)))


def warm_up_then_linear(rate: Any, steps: int) -> Callable[[Any], Any]:
    """From 0 to `rate` in a tenth of the steps, then back to 0."""
    warm = max(steps // WARM_UP, 1)
    up, down = optax.linear_schedule(0, 1, warm), optax.linear_schedule(1, 0, steps - warm)
    shape = optax.join_schedules([up, down], [warm])
    return lambda step: rate * shape(step)


class Trained(NamedTuple):
    """Parameters and optimizer state after the last step."""

    params: Any
    state: Any


class Trainer:
    """Fine-tunes with one method; compiled once for all learning rates.

    Args:
        graph: the structure of the classifier.
        make: from a schedule of the learning rate to the optimizer.
        steps: of fine-tuning.
    """

    def __init__(self, graph: Any, make: MakeOptimizer, steps: int = STEPS):
        self.steps = steps

        def optimizer(rate: Any) -> optax.GradientTransformationExtraArgs:
            return optax.with_extra_args_support(make(warm_up_then_linear(rate, steps)))

        def loss_of(params: Any, batch: Sentences) -> jax.Array:
            return loss(nnx.merge(graph, params), batch)

        def step(params: Any, state: Any, rate: Any, batch: Sentences, held_out: Sentences):
            grads = jax.grad(loss_of)(params, batch)
            # Not computed if the optimizer ignores it.
            extra = {"held_out_loss": lambda params: loss_of(params, held_out)}
            updates, state = optimizer(rate).update(grads, state, params, **extra)
            return optax.apply_updates(params, updates), state

        self.optimizer = optimizer
        self.step: Any = jax.jit(step, donate_argnums=(0, 1))

    def __call__(
        self,
        params: Any,
        rate: float,
        train: Sentences,
        held_out: Sentences,
        rng: np.random.Generator,
        progress: Callable[[], Any] = lambda: None,
    ) -> Trained:
        """Trains from `params`.

        Args:
            params: initial parameters, and the anchor.
            rate: the highest learning rate.
            train: sentences to learn from.
            held_out: sentences on which TPGM learns radii.
            rng: determines the order of the sentences.
            progress: called after each step.
        """
        batches = shuffled(rng, len(train.labels), self.steps, BATCH)
        held_out_batches = shuffled(rng, len(held_out.labels), self.steps, BATCH)
        params = jax.tree.map(jnp.copy, params)  # the steps overwrite it
        state = self.optimizer(rate).init(params)
        for rows, held_out_rows in zip(batches, held_out_batches, strict=True):
            params, state = self.step(
                params, state, rate, train.take(rows), held_out.take(held_out_rows)
            )
            jax.block_until_ready(params)
            progress()
        return Trained(params, state)


class Tester:
    """Accuracy and area under the ROC curve of a classifier with other parameters."""

    def __init__(self, graph: Any):
        def logits(params: Any, tokens: jax.Array, mask: jax.Array) -> jax.Array:
            return nnx.merge(graph, params)(tokens, mask)

        self.logits: Any = jax.jit(logits)

    def __call__(
        self, params: Any, sets: Mapping[str, Sentences]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """By set the accuracy and the area under the curve, in per cent."""
        accuracy, area = {}, {}
        for name, sentences in sets.items():
            logits = by_length(self.logits, params, sentences)
            # A logit that is not a number answers nothing.
            right = np.where(np.isnan(logits), False, (logits > 0) == sentences.labels)
            accuracy[name] = 100 * float(right.mean())
            known = np.nan_to_num(logits)
            area[name] = 100 * float(roc_auc_score(sentences.labels, known))
        return accuracy, area


def by_length(program: Callable[..., jax.Array], params: Any, sentences: Sentences) -> np.ndarray:
    """What `program(params, tokens, mask)` returns for all sentences, in their order."""
    lengths = sentences.mask.sum(1)
    results: dict[int, np.ndarray] = {}
    for low, high in zip((0, *LENGTHS), LENGTHS, strict=False):
        (rows,) = np.nonzero((lengths > low) & (lengths <= high))
        for start in range(0, len(rows), TEST_BATCH):
            chosen = rows[start : start + TEST_BATCH]
            # Always as many rows; those beyond the chosen ones are computed and dropped.
            batch = sentences.take(np.resize(chosen, TEST_BATCH))
            made = np.asarray(program(params, batch.tokens[:, :high], batch.mask[:, :high]))
            results |= dict(zip(chosen.tolist(), made, strict=False))
    return np.stack([results[row] for row in range(len(lengths))])
