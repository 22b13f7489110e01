"""Bad input: what is wrong, because of what, and what to do."""

from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import tpgm_jax
from tpgm_jax import Axes, fit_radii, radii, set_anchor

# Untyped, since a type checker would refuse much of what follows before it runs.
ftp: Any = tpgm_jax.ftp
tpgm: Any = tpgm_jax.tpgm
project_to_anchor: Any = tpgm_jax.project_to_anchor

PARAMS = {"block": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}, "head": jnp.ones((2, 2))}
SGD = optax.sgd(0.1)
FTP = ftp(SGD)
TPGM = tpgm(SGD)
STATE = FTP.init(PARAMS)
OTHER_SHAPE = {**PARAMS, "head": jnp.ones((2, 5))}
REORDERED = OrderedDict(head=PARAMS["head"], block=PARAMS["block"])
OTHER_TREE = {**PARAMS, "heads": jnp.ones((2, 2))}


def init(**options):
    return ftp(SGD, **options).init(PARAMS)


def update_tpgm(value_fn, jit=False):
    def update(params):
        return TPGM.update(params, TPGM.init(params), params, value_fn=value_fn)

    return (jax.jit(update) if jit else update)(PARAMS)


def fit(value_fn=lambda params, batch: jnp.sum(params["head"]) * batch, batches=(1.0,), **options):
    options = {"anchor": PARAMS, **options}
    return fit_radii(value_fn, PARAMS, batches=batches, **options)


# What is done, the kind of error, and the part of its message that says what to do.
CASES = {
    # The factories.
    "base optimizer is a learning rate": (lambda: ftp(1e-3), TypeError, "optax.adamw"),
    "base optimizer is a factory": (lambda: tpgm(optax.adamw), TypeError, "`base_optimizer` must"),
    "radius optimizer is a number": (
        lambda: ftp(SGD, radius_optimizer=0.1),
        TypeError,
        "`radius_optimizer` must be an optax transformation",
    ),
    "k below 0": (lambda: ftp(SGD, k=-0.1), ValueError, "between 0 and 1; got -0.1"),
    "k above 1": (lambda: ftp(SGD, k=2), ValueError, "between 0 and 1; got 2"),
    "k is not a number": (lambda: ftp(SGD, k=float("nan")), ValueError, "between 0 and 1"),
    "initial radius zero": (lambda: ftp(SGD, initial_radius=0), ValueError, "must be positive"),
    "radius negative": (lambda: project_to_anchor(-1.0), ValueError, "must be positive; got -1.0"),
    "radius not a number": (lambda: project_to_anchor(float("nan")), ValueError, "positive"),
    "steps zero": (lambda: tpgm(SGD, steps=0), ValueError, "`steps` must be a whole number"),
    "steps fractional": (lambda: tpgm(SGD, steps=1.5), ValueError, "`steps` must be a whole"),
    "every negative": (lambda: tpgm(SGD, every=-1), ValueError, "`every` must be a whole number"),
    "k is a word": (lambda: ftp(SGD, k="a"), TypeError, "must be a number; got 'a'"),
    "radius is missing": (lambda: project_to_anchor(None), TypeError, "must be a number; got None"),
    "initial radius is a schedule": (
        lambda: ftp(SGD, initial_radius=lambda step: 1.0),
        TypeError,
        "optax.inject_hyperparams",
    ),
    "unknown norm": (lambda: ftp(SGD, norm="l1"), ValueError, "one of 'mars', 'l2'; got 'l1'"),
    "unknown norm, tpgm": (lambda: tpgm(SGD, norm="L2"), ValueError, "one of 'mars', 'l2'"),
    "unknown norm, ball": (lambda: project_to_anchor(1.0, norm=""), ValueError, "one of 'mars'"),
    "unknown norm, fit": (lambda: fit(norm="inf"), ValueError, "one of 'mars', 'l2'"),
    # What to constrain.
    "exclude matches nothing": (lambda: init(exclude="haed"), ValueError, "paths: 'head'"),
    "one of several matches nothing": (
        lambda: init(exclude=["head", "blok/.*"]),
        ValueError,
        "closest paths: 'block/",
    ),
    "exclude is no regular expression": (
        lambda: init(exclude="head/("),
        ValueError,
        "not a regular expression",
    ),
    "exclude is a number": (lambda: init(exclude=3), TypeError, "regular expression, a sequence"),
    "exclude is a tree of numbers": (
        lambda: init(exclude={"block": 1, "head": 0}),
        TypeError,
        "a tree of bools",
    ),
    "exclude is an incomplete tree": (
        lambda: init(exclude={"block": True}),
        ValueError,
        "without an entry for 'head'",
    ),
    "everything excluded": (lambda: init(exclude=".*"), ValueError, "Exclude less"),
    "axes match nothing": (
        lambda: init(axes={"layer.*": Axes(layers=0)}),
        ValueError,
        "`axes` has a pattern that matches no parameter",
    ),
    "axes out of range": (
        lambda: init(axes={"head": Axes(rows=2)}),
        ValueError,
        "out of range because its shape is",
    ),
    "layers out of range": (
        lambda: init(axes={"head": Axes(layers=-3)}),
        ValueError,
        "out of range because its shape is",
    ),
    "axes overlap": (
        lambda: init(axes={"head": Axes(rows=1, layers=-1)}),
        ValueError,
        "name each axis once",
    ),
    "axis named twice": (lambda: init(axes={"head": Axes(rows=(0, -2))}), ValueError, "twice"),
    "axes are not Axes": (lambda: init(axes={"head": 0}), TypeError, "give a `tpgm_jax.Axes`"),
    "axes are a list": (lambda: init(axes=[Axes(rows=0)]), TypeError, "must be a dict"),
    "integer leaf": (
        lambda: FTP.init({"w": jnp.ones(2), "table": jnp.ones(2, int)}),
        TypeError,
        "'table' has dtype int32, which no projection can move: `exclude` it",
    ),
    "complex leaf": (
        lambda: FTP.init({"w": jnp.ones(2, complex)}),
        TypeError,
        "split_real_and_imaginary",
    ),
    # Updates.
    "params missing, ftp": (
        lambda: FTP.update(PARAMS, STATE),
        ValueError,
        r"call `update\(updates, state, params\)`",
    ),
    "params missing, tpgm": (
        lambda: TPGM.update(PARAMS, TPGM.init(PARAMS), value_fn=len),
        ValueError,
        r"call `update\(updates, state, params\)`",
    ),
    "params missing, ball": (
        lambda: project_to_anchor(1.0).update(PARAMS, project_to_anchor(1.0).init(PARAMS)),
        ValueError,
        r"call `update\(updates, state, params\)`",
    ),
    "a gradient too few": (
        lambda: FTP.update({"block": PARAMS["block"]}, STATE, PARAMS),
        ValueError,
        "'head' is missing from the gradients",
    ),
    "a gradient too many": (
        lambda: FTP.update(OTHER_TREE, STATE, PARAMS),
        ValueError,
        "'heads' is missing from the parameters",
    ),
    "gradient of another shape": (
        lambda: FTP.update(OTHER_SHAPE, STATE, PARAMS),
        ValueError,
        r"differ at 'head': their shapes are \(2, 5\) and \(2, 2\)",
    ),
    "gradients in another container": (
        lambda: project_to_anchor(1.0).update([1.0], project_to_anchor(1.0).init((1.0,)), (1.0,)),
        ValueError,
        r"containers \(at the root list and tuple\)",
    ),
    "anchor of another shape": (
        lambda: FTP.update(OTHER_SHAPE, STATE, OTHER_SHAPE),
        ValueError,
        "'head' of shape .* but its anchor has shape .* call `init`",
    ),
    "anchor without the leaf": (
        lambda: TPGM.update(OTHER_TREE, TPGM.init(PARAMS), OTHER_TREE, value_fn=len),
        ValueError,
        "unlike its anchor, in 'heads'",
    ),
    "exclude widened since init": (
        lambda: ftp(SGD, exclude="head").update(PARAMS, STATE, PARAMS),
        ValueError,
        "of other `exclude`, `axes`",
    ),
    "axes changed since init": (
        lambda: ftp(SGD, axes={"head": Axes(layers=0)}).update(PARAMS, STATE, PARAMS),
        ValueError,
        "constrains 4 groups, but the state has radii of shape",
    ),
    "leaves in another order": (
        lambda: FTP.update(REORDERED, STATE, REORDERED),
        ValueError,
        "the order of the leaves",
    ),
    "two leaves of one name": (
        lambda: FTP.init({"a": {"b": jnp.ones(2)}, "a/b": jnp.ones(2)}),
        ValueError,
        "rename a key that has a slash",
    ),
    "a leaf that is no array": (
        lambda: FTP.init({"w": jnp.ones(2), "activation": jnp.tanh}),
        TypeError,
        "eqx.filter",
    ),
    # Held-out losses.
    "value_fn missing": (lambda: update_tpgm(None), ValueError, "`optax.MultiSteps` inside"),
    "value_fn names linen": (lambda: update_tpgm(None), ValueError, "TrainState.apply_gradients"),
    "value_fn is a number": (lambda: update_tpgm(0.5), TypeError, "must be a function"),
    "value_fn returns a vector": (
        lambda: update_tpgm(lambda params: params["block"]["bias"]),
        ValueError,
        r"shape \(2,\). Take its mean",
    ),
    "value_fn returns a vector under jit": (
        lambda: update_tpgm(lambda params: params["block"]["bias"], jit=True),
        ValueError,
        "Take its mean",
    ),
    "value_fn returns auxiliaries": (
        lambda: update_tpgm(lambda params: (jnp.sum(params["head"]), params)),
        TypeError,
        "without auxiliary outputs",
    ),
    "value_fn returns nothing": (lambda: update_tpgm(lambda params: None), TypeError, "NoneType"),
    # Post hoc.
    "no batches": (lambda: fit(batches=[]), ValueError, "`batches` is empty"),
    "an iterator read before": (lambda: fit(batches=iter(())), ValueError, "empty the second"),
    "fit: value_fn is a number": (lambda: fit(value_fn=1.0), TypeError, "must be a function"),
    "fit: value_fn returns a vector": (
        lambda: fit(value_fn=lambda params, batch: params["head"]),
        ValueError,
        "Take its mean",
    ),
    "fit: anchor of another shape": (
        lambda: fit(anchor=OTHER_SHAPE),
        ValueError,
        r"`anchor` of `fit_radii` has 'head' of shape \(2, 5\), where \(2, 2\) is expected",
    ),
    "fit: anchor without the leaf": (
        lambda: fit(anchor={"block": PARAMS["block"]}),
        ValueError,
        "`anchor` of `fit_radii` has 'head' missing",
    ),
    # States.
    "radii of a state without ours": (
        lambda: radii(SGD.init(PARAMS), PARAMS),
        ValueError,
        "no state of `ftp` or `tpgm`",
    ),
    "radii of a fixed radius": (
        lambda: radii(project_to_anchor(1.0).init(PARAMS), PARAMS),
        ValueError,
        "no learned radii",
    ),
    "radii of another model": (
        lambda: radii(STATE, {"block": PARAMS["block"]}),
        ValueError,
        "`params` lacks 'head'",
    ),
    "radii of several models": (
        lambda: radii(jax.tree.map(lambda x: jnp.stack([x, x]), STATE), PARAMS),
        ValueError,
        r"pick one, `jax.tree.map\(lambda x: x\[i\], opt_state\)`",
    ),
    "set_anchor on a state without ours": (
        lambda: set_anchor(SGD.init(PARAMS), PARAMS),
        ValueError,
        "holds no state of this library",
    ),
    "set_anchor to another model": (
        lambda: set_anchor(STATE, {"block": PARAMS["block"]}),
        ValueError,
        "`params` lacks 'head'",
    ),
    "set_anchor to another shape": (
        lambda: set_anchor(STATE, OTHER_SHAPE),
        ValueError,
        r"has 'head' of shape \(2, 5\), but the state's has shape \(2, 2\)",
    ),
    "set_anchor with importances that there are none of": (
        lambda: set_anchor(STATE, PARAMS, importance=PARAMS),
        ValueError,
        "holds none to exchange",
    ),
    "set_anchor with importances of another shape": (
        lambda: set_anchor(
            tpgm_jax.add_anchor_decay(1.0, importance=PARAMS).init(PARAMS),
            PARAMS,
            importance=OTHER_SHAPE,
        ),
        ValueError,
        r"`importance` has 'head' of shape \(2, 5\)",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), CASES.values(), ids=CASES)
def test_bad_input_gets_an_error_that_says_what_to_do(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_refused_update_leaves_the_state_as_it_was():
    before = jax.tree.map(jnp.copy, STATE)
    with pytest.raises(ValueError, match="Pass trees of the same model"):
        FTP.update(OTHER_SHAPE, STATE, PARAMS)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, before, STATE))


def test_integer_leaves_may_be_excluded():
    params = {"w": jnp.ones(2), "table": jnp.ones(2, int)}
    tx = ftp(SGD, exclude="table")
    assert list(radii(tx.init(params), params)) == ["w"]


def test_every_public_name_has_a_docstring():
    for name in dir(tpgm_jax):
        if not name.startswith("_"):
            assert getattr(tpgm_jax, name).__doc__, name
