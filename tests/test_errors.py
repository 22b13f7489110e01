"""Errors on bad input. Their messages state the problem, its cause, and what to do."""

from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import tpgm_jax
from tpgm_jax import Axes, fit_radii, radii

# Untyped, because a type checker rejects most of the wrong calls below.
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


def update_tpgm(held_out_loss, jit=False, tx=TPGM, batch=None):
    def update(params):
        extra = {"held_out_loss": held_out_loss, "held_out_batch": batch}
        return tx.update(params, tx.init(params), params, **extra)

    return (jax.jit(update) if jit else update)(PARAMS)


def fit(loss=lambda params, batch: jnp.sum(params["head"]) * batch, batches=(1.0,), **options):
    options = {"anchor": PARAMS, **options}
    return fit_radii(loss, PARAMS, batches=batches, **options)


# The call, the type of the error, and the part of its message with the remedy.
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
        "'table' has dtype int32, and a projection moves floating-point numbers only: `exclude` it",
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
        lambda: TPGM.update(PARAMS, TPGM.init(PARAMS), held_out_loss=len),
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
        r"\('head', \(2, 2\)\) in the state and \('head', \(2, 5\)\) here.*call `init`",
    ),
    "anchor without the leaf": (
        lambda: TPGM.update(OTHER_TREE, TPGM.init(PARAMS), OTHER_TREE, held_out_loss=len),
        ValueError,
        r"parameters: None in the state and \('heads', \(2, 2\)\) here",
    ),
    "exclude widened since init": (
        lambda: ftp(SGD, exclude="head").update(PARAMS, STATE, PARAMS),
        ValueError,
        r"`exclude`: \('head', True\) in the state and \('head', False\) here",
    ),
    "axes changed since init": (
        lambda: ftp(SGD, axes={"head": Axes(layers=0)}).update(PARAMS, STATE, PARAMS),
        ValueError,
        r"rows, by `axes`: \('head', \(1,\)\) in the state and \('head', \(\)\) here",
    ),
    "leaves in another order": (
        lambda: FTP.update(REORDERED, STATE, REORDERED),
        ValueError,
        r"parameters: \('block/bias', .*\) in the state and \('head', .*\) here",
    ),
    "two leaves of one name": (
        lambda: FTP.init({"a": {"b": jnp.ones(2)}, "a/b": jnp.ones(2)}),
        ValueError,
        "because a key has a slash in it: rename the key",
    ),
    "a leaf that is no array": (
        lambda: FTP.init({"w": jnp.ones(2), "activation": jnp.tanh}),
        TypeError,
        "eqx.filter",
    ),
    # Held-out losses.
    "held-out loss missing": (lambda: update_tpgm(None), ValueError, "`optax.MultiSteps` inside"),
    "held-out loss dropped by linen": (
        lambda: update_tpgm(None),
        ValueError,
        "TrainState.apply_gradients",
    ),
    "held-out loss is a number": (lambda: update_tpgm(0.5), TypeError, "must be a function"),
    "held-out loss returns a vector": (
        lambda: update_tpgm(lambda params: params["block"]["bias"]),
        ValueError,
        r"shape \(2,\). Take its mean",
    ),
    "held-out loss returns a vector under jit": (
        lambda: update_tpgm(lambda params: params["block"]["bias"], jit=True),
        ValueError,
        "Take its mean",
    ),
    "held-out loss returns auxiliaries": (
        lambda: update_tpgm(lambda params: (jnp.sum(params["head"]), params)),
        TypeError,
        "without auxiliary outputs",
    ),
    "held-out loss returns nothing": (
        lambda: update_tpgm(lambda params: None),
        TypeError,
        "NoneType",
    ),
    "held-out batch forgotten": (
        lambda: update_tpgm(lambda params, batch: batch),
        TypeError,
        "missing 1 required positional argument: 'batch'",
    ),
    "held-out batches too few": (
        lambda: update_tpgm(lambda p, x: x, tx=tpgm(SGD, steps=3), batch=jnp.ones((2, 4))),
        ValueError,
        r"shape \(2, 4\), but with `steps=3` .* stack the batches",
    ),
    "held-out batch without an axis": (
        lambda: update_tpgm(lambda p, x: x, tx=tpgm(SGD, steps=3), batch=1.0),
        ValueError,
        r"shape \(\), but with `steps=3`",
    ),
    # Post hoc.
    "no batches": (lambda: fit(batches=[]), ValueError, "`batches` is empty"),
    "an iterator read before": (lambda: fit(batches=iter(())), ValueError, "empty the second"),
    "fit: held-out loss is a number": (lambda: fit(loss=1.0), TypeError, "must be a function"),
    "fit: held-out loss returns a vector": (
        lambda: fit(loss=lambda params, batch: params["head"]),
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
        "`anchor` of `fit_radii` lacks 'head'",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), CASES.values(), ids=CASES)
def test_bad_input_raises_an_error_with_the_remedy(call, error, message):
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
