"""Recipes, optimizers, corrections, data sets and the report of `examples.papers`."""

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import papers_files
import pytest

from examples.papers import methods, published, recipes, sets, training
from examples.papers.evaluation import Evaluation
from examples.pod import sharding
from examples.pod.settings import Refused

# The weights have the names of a ResNet, so that no axes need be declared.
RECIPE = recipes.domainnet("finetune", "resnet50")


@pytest.fixture(scope="module")
def domainnet(tmp_path_factory):
    root = tmp_path_factory.mktemp("domainnet")
    papers_files.write_domainnet(root)
    return root


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenet")
    papers_files.write_imagenet(root)
    return root


def test_the_defaults_are_the_published_recipes():
    # Optimizer and percent to learning rate and epochs, from the papers.
    expected = {
        ("sgd", 100): (1e-2, 50),
        ("sgd", 10): (1e-1, 150),
        ("adam", 100): (1e-4, 50),
    }
    for (optimizer, percent), numbers in expected.items():
        for method in recipes.METHODS:
            recipe = recipes.domainnet(method, "resnet50", optimizer, percent)
            assert (recipe.learning_rate, recipe.epochs) == numbers
            assert recipe.batch == 256
    decays = {x: recipes.domainnet(x).weight_decay for x in ("ftp", "tpgm", "finetune")}
    assert decays == {"ftp": 0.0, "tpgm": 5e-4, "finetune": 5e-4}
    assert recipes.domainnet("tpgm").post_hoc == 0
    assert recipes.imagenet("tpgm").post_hoc == 200
    assert recipes.imagenet("ftp").post_hoc == 0


def test_a_head_is_trained_first_if_the_anchor_needs_one():
    assert recipes.imagenet("wise").probe_epochs == 1
    assert recipes.imagenet("wise", head=True).probe_epochs == 0
    assert recipes.imagenet("lpft", head=True).probe_epochs == 1
    assert recipes.domainnet("lpft").probe_epochs > 0
    assert recipes.domainnet("wise").probe_epochs == 0


def steps(tx: Any, params: Any, grads: Any) -> list[Any]:
    """Parameters after each step."""
    state = tx.init(params)
    update = jax.jit(tx.update)
    found = []
    for g in grads:
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
        found.append(params)
    return found


def test_sgd_has_nesterov_momentum_coupled_decay_and_a_cosine():
    recipe = dataclasses.replace(RECIPE, learning_rate=0.1, weight_decay=0.01)
    tx = methods.optimizer(recipe, 3, new_head=True)
    params = {"conv1": {"kernel": jnp.array([[1.0, 2.0]])}, "head": {"kernel": jnp.ones((1, 1))}}
    grads = [jax.tree.map(lambda x, i=i: x / (i + 1), params) for i in range(3)]
    w, m = np.array([[1.0, 2.0]]), 0.0
    for i, received in enumerate(steps(tx, params, grads)):
        g = np.array([[1.0, 2.0]]) / (i + 1) + 0.01 * w
        m = 0.9 * m + g
        w = w - 0.1 * (1 + math.cos(math.pi * i / 3)) / 2 * (g + 0.9 * m)
        # A few roundings of float32, 6e-8 each.
        np.testing.assert_allclose(received["conv1"]["kernel"], w, rtol=1e-6)


def test_adam_decays_apart_from_the_gradient_and_warms_up():
    recipe = dataclasses.replace(
        recipes.imagenet("finetune"), learning_rate=0.1, weight_decay=0.5, warmup=2, clip=0.0
    )
    tx = methods.optimizer(recipe, 20, new_head=False)
    params = {"proj": jnp.array([[4.0]]), "positional_embedding": jnp.ones((1, 1))}
    found = steps(tx, params, [params] * 3)
    # Adam's update is 1 for equal gradients; the learning rate is 0, 0.05, 0.1.
    w = 4.0
    for received, rate in zip(found, (0.0, 0.05, 0.1), strict=True):
        w -= rate * (1 + 0.5 * w)
        np.testing.assert_allclose(received["proj"], [[w]], rtol=1e-5)


def test_the_gradient_is_clipped_and_pulled_to_the_anchor_before_the_base_optimizer():
    recipe = dataclasses.replace(RECIPE, method="l2sp", learning_rate=1.0, weight_decay=0.0)
    recipe = dataclasses.replace(recipe, clip=1.0, strength=0.5)
    tx = methods.optimizer(recipe, 10**6, new_head=False)
    g, m, w = np.array([[0.6, 0.8]]), 0.0, np.zeros((1, 2))
    params = {"conv1": {"kernel": jnp.zeros((1, 2))}}
    found = steps(tx, params, [{"conv1": {"kernel": jnp.array([[30.0, 40.0]])}}] * 2)
    for received in found:  # the clipped gradient, plus half the distance from 0
        m = 0.9 * m + g + 0.5 * w
        w = w - (g + 0.5 * w + 0.9 * m)
        # The cosine is below 1 by 1e-12 in the second step; float32 rounds to 6e-8.
        np.testing.assert_allclose(received["conv1"]["kernel"], w, rtol=1e-6)


# SGD with Nesterov momentum at 0.1, from 0 with gradients of 1, 1 and -0.1, worked by hand: 1.9,
# 2.71 and 1.349 tenths. The last gradient points back to the anchor, and the step leads away.
SGD = (0.19, 0.461, 0.5959)


@pytest.mark.parametrize(
    ("method", "distances"),
    # FTP's first radius is 1e-8, SPD takes the last step back.
    [("finetune", SGD), ("ftp", (1e-8, None, None)), ("spd", (*SGD[:2], SGD[1]))],
)
def test_methods_wrap_the_base_optimizer_and_leave_a_new_head_alone(method, distances):
    recipe = dataclasses.replace(RECIPE, method=method, learning_rate=0.1, weight_decay=0.0)
    tx = methods.optimizer(dataclasses.replace(recipe, strength=1.0), 10**6, new_head=True)
    ones = {"conv1": {"kernel": jnp.ones((1, 1))}, "head": {"kernel": jnp.ones((1, 1))}}
    grads = [jax.tree.map(lambda x, g=g: g * x, ones) for g in (1.0, 1.0, -0.1)]
    found = steps(tx, jax.tree.map(jnp.zeros_like, ones), grads)
    for received, sgd, distance in zip(found, SGD, distances, strict=True):
        np.testing.assert_allclose(received["head"]["kernel"], [[-sgd]], rtol=1e-5)
        if distance is not None:
            np.testing.assert_allclose(received["conv1"]["kernel"], [[-distance]], rtol=1e-5)


def test_tpgm_in_training_uses_the_held_out_loss():
    recipe = dataclasses.replace(RECIPE, method="tpgm", learning_rate=0.1, weight_decay=0.0)
    tx = methods.optimizer(recipe, 10**6, new_head=True)
    params = {"conv1": {"kernel": jnp.zeros((1, 1))}, "head": {"kernel": jnp.zeros((1, 1))}}
    grads, moved = jax.tree.map(jnp.ones_like, params), []
    for sign in (1.0, -1.0):  # held-out data that want to stay, or to go further
        extra = {"held_out_loss": lambda p, s=sign: -s * p["conv1"]["kernel"].sum()}
        updates: Any = tx.update(grads, tx.init(params), params, **extra)[0]
        moved.append(float(updates["conv1"]["kernel"][0, 0]))
        np.testing.assert_allclose(updates["head"]["kernel"], [[-0.19]], rtol=1e-5)
    # The first radius is half of 0.19, and Adam's first step is 1e-2.
    np.testing.assert_allclose(moved, [-0.085, -0.105], rtol=1e-4)


def test_the_probe_trains_the_head_alone():
    params = {"conv1": {"kernel": jnp.ones((2, 2))}, "head": {"kernel": jnp.ones((2, 2))}}
    (*_, after) = steps(methods.probe(4), params, [params] * 3)
    np.testing.assert_array_equal(after["conv1"]["kernel"], params["conv1"]["kernel"])
    # Adam: three steps of the learning rate, 1e-3 along a cosine over four steps.
    rates = [1e-3 * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(3)]
    np.testing.assert_allclose(after["head"]["kernel"], 1 - sum(rates), rtol=1e-6)


TUNED: dict[str, Any] = {
    "conv1": {"kernel": jnp.full((1, 4), 2.0)},
    "head": {"kernel": jnp.full((4, 1), 3.0)},
}
ANCHOR: Any = jax.tree.map(jnp.zeros_like, TUNED)
STATS: Any = {"bn1": {"mean": jnp.array([4.0])}}, {"bn1": {"mean": jnp.array([0.0])}}


@pytest.mark.parametrize(("new_head", "head"), [(True, 3.0), (False, 0.75)])
def test_wise_averages_weights_and_statistics(new_head, head):
    recipe = dataclasses.replace(RECIPE, method="wise", strength=0.25)
    pairs = (TUNED, STATS[0]), (ANCHOR, STATS[1])
    params, stats = methods.correct(recipe, *pairs, new_head, lambda *_: jnp.zeros(()), ())
    np.testing.assert_allclose(params["conv1"]["kernel"], 0.5)
    np.testing.assert_allclose(params["head"]["kernel"], head)
    np.testing.assert_allclose(stats["bn1"]["mean"], 1.0)


def test_tpgm_after_training_moves_each_tensor_to_where_held_out_data_wants_it():
    recipe = dataclasses.replace(RECIPE, method="tpgm", post_hoc=300)

    def loss(params, given):
        stats, target = given
        return jnp.mean((params["conv1"]["kernel"] - target * stats["bn1"]["mean"]) ** 2)

    pairs = (TUNED, STATS[0]), (ANCHOR, STATS[1])
    batches = (jnp.float32(0.125) for _ in range(recipe.post_hoc))
    params, stats = methods.correct(recipe, *pairs, True, loss, batches)
    # 0.125 * 4 = 0.5, to which 300 steps of 1e-2 suffice; Adam ends within a step of it.
    np.testing.assert_allclose(params["conv1"]["kernel"], 0.5, atol=1e-2)
    np.testing.assert_array_equal(params["head"]["kernel"], TUNED["head"]["kernel"])
    np.testing.assert_array_equal(stats["bn1"]["mean"], STATS[0]["bn1"]["mean"])


def test_tpgm_holds_training_images_out_unless_as_published(domainnet):
    recipe = recipes.domainnet("tpgm", percent=10)
    ours = sets.find(recipe, domainnet)
    theirs = sets.find(dataclasses.replace(recipe, as_published=True), domainnet)
    plain = sets.find(recipes.domainnet("ftp", percent=10), domainnet)
    reported = {x.path for test in ours.tests.values() for x in test.images}
    held_out = {x.path for x in ours.held_out}
    assert len(held_out) == 8  # a tenth of 88
    assert not held_out & reported
    assert not held_out & {x.path for x in ours.train}
    assert held_out | {x.path for x in ours.train} == {x.path for x in plain.train}
    assert theirs.held_out == theirs.tests["real, validation"].images
    assert theirs.train == plain.train
    assert plain.held_out == []


def test_subsets_of_imagenet_keep_their_labels(imagenet):
    found = sets.find(recipes.imagenet("ftp"), imagenet)
    assert found.classes == 4
    assert found.tests["imagenet-a"].among == [1, 2]
    assert {x.label for x in found.tests["imagenet-a"].images} == {1, 2}
    assert found.tests["imagenet-v2"].among is None
    assert [x.label for x in found.tests["imagenet-v2"].images] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_corrupted_sets_are_added_to_the_report(imagenet):
    found = sets.find(recipes.imagenet("ftp"), imagenet)
    more = sets.corrupted(found, "imagenet", 3, papers_files.SIDE)
    added = {name: x for name, x in more.tests.items() if name not in found.tests}
    # Frost needs photographs, which may not be installed.
    frost = [text for text in more.missing if "imagenet, frost: " in text]
    assert len(added) + len(frost) == 15
    assert added["imagenet, fog"] == (found.tests["imagenet"].images, None, ("fog", 3))


def test_labels_that_domainnet_does_not_have_are_refused(domainnet, tmp_path):
    for path in domainnet.iterdir():
        (tmp_path / path.name).symlink_to(path)
    lists = tmp_path / "sketch_test.txt"
    text = lists.read_text().replace(".jpg 3", ".jpg 345")
    lists.unlink()
    lists.write_text(text)
    with pytest.raises(Refused, match="has the label 345, and DomainNet has 345 classes from 0"):
        sets.find(recipes.domainnet("ftp", percent=10), tmp_path)


def test_accuracy_counts_images_that_count_among_the_allowed_classes():
    # The "network" returns its images: logits of four classes.
    network: Any = SimpleNamespace(evaluate=lambda params, stats, image: image[:, 0, 0, :])
    logits = np.zeros((8, 1, 1, 4), np.float32)
    guesses = [0, 1, 2, 3, 3, 3, 3, 3]
    logits[range(8), 0, 0, guesses] = 2.0
    logits[..., 0] += 1.0
    batch = {
        "image": logits,
        "label": np.array([0, 1, 0, 0, 0, 0, 3, 3], np.int32),
        "mask": np.array([1, 1, 1, 1, 0, 0, 0, 1], bool),
    }
    evaluation = Evaluation(network, 4, sharding.mesh())
    # Five count, and the 1st, 2nd and 8th are right.
    assert evaluation.accuracy({}, {}, [batch, batch], "all", 2) == 60.0
    # Among 0 to 2, the 4th and the 8th become guesses of 0.
    assert evaluation.accuracy({}, {}, [batch], "subset", 1, among=[0, 1, 2]) == 60.0
    # Among 0 and 1, so does the 3rd.
    assert evaluation.accuracy({}, {}, [batch], "subset", 1, among=[0, 1]) == 80.0
    with pytest.raises(Refused, match="no image that can be read"):
        evaluation.accuracy({}, {}, [batch | {"mask": np.zeros(8, bool)}], "none", 1)


def test_the_loss_is_a_mean_over_the_images_that_count():
    logits = jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]]))
    label, mask = jnp.array([0, 1, 1]), jnp.array([True, True, False])
    batch = training.Batch(jnp.zeros(3), label, mask)
    expected = -(math.log(0.5) + math.log(0.75)) / 2
    np.testing.assert_allclose(training.cross_entropy(logits, batch), expected, rtol=1e-6)
    none = batch._replace(mask=jnp.zeros(3, bool))
    assert training.cross_entropy(logits, none) == 0.0


def test_the_table_has_the_published_rows_and_ours():
    names = published.SETS["domainnet"]
    ours = dict(zip(names, (80.0, 1.0, 2.0, 3.0, 4.0), strict=True))
    text = published.table("domainnet", "clip-resnet50", "ftp", 100, ours)
    _, *rows = text.splitlines()
    cells = {row.split(",")[0]: row.split()[-6:] for row in rows}
    assert cells["tpgm"] == ["82.41", "37.53", "45.71", "26.77", "46.07", "39.02"]
    assert cells["finetune"][-1] == "33.17"
    assert cells["ftp"] == ["80.00", "1.00", "2.00", "3.00", "4.00", "2.50"]
    few = published.table("domainnet", "clip-resnet50", "ftp", 10, {"real": 80.0})
    assert few.splitlines()[1:] == [few.splitlines()[-1]]
    assert few.split()[-6:] == ["80.00", "-", "-", "-", "-", "-"]


@pytest.mark.parametrize("key", published.TABLES)
def test_published_means_agree_with_the_papers(key):
    means = {
        ("domainnet", "clip-resnet50"): {"finetune": 33.17, "tpgm": 39.02},
        ("domainnet", "resnet50"): {"finetune": 35.26, "tpgm": 37.03},
        ("imagenet", "clip-vit-b16"): {},
    }
    for method, mean in means[key].items():
        # Both sides are rounded to 0.01.
        assert abs(np.mean(published.TABLES[key][method][1:]) - mean) <= 0.011
