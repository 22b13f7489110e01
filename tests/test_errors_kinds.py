"""Arguments of the wrong kind: text, functions, arrays, dicts, and iterators used twice."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tpgm_jax
from tpgm_jax import Axes

# Untyped, because a type checker rejects most of the wrong calls below.
api: Any = tpgm_jax
AnyAxes: Any = Axes

PARAMS = {"block": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}, "head": jnp.ones((2, 2))}
SGD = optax.sgd(0.1)


def loss(params, batch=1.0):
    return batch * sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(params))


def init(**options):
    return api.ftp(SGD, **options).init(PARAMS)


def rows(value):
    return init(axes={"head": AnyAxes(rows=value)})


def layers(value):
    return init(axes={"head": AnyAxes(layers=value)})


def fit(**options):
    defaults = {"held_out_loss": loss, "params": PARAMS, "anchor": PARAMS, "batches": [1.0]}
    return api.fit_radii(**(defaults | options))


# The call, the type of the error, and the part of its message with the remedy.
CASES: Any = {
    "rows of a fraction": (lambda: rows(1.5), TypeError, r"`rows=1.5` for 'head'.*`Axes\(rows=0"),
    "rows of text": (lambda: rows("in"), TypeError, "`rows='in'` for 'head'"),
    "rows of a bool": (lambda: rows(True), TypeError, "`rows=True` for 'head'"),
    "rows of several fractions": (lambda: rows((0, 0.5)), TypeError, r"`rows=\(0, 0.5\)`"),
    "no layers": (lambda: layers(None), TypeError, "`layers=None` for 'head'.*leave it out"),
    # `update` reads the axes again, when a generator is empty.
    "a generator of layers": (lambda: layers(iter([0])), TypeError, "a tuple of them"),
    "a number as a pattern": (lambda: init(axes={3: Axes()}), TypeError, "pattern 3, which is not"),
    "bytes as a pattern": (lambda: init(axes={b"head": Axes()}), TypeError, "which is not text"),
    "exclude returns an array": (
        lambda: init(exclude=lambda path, leaf: leaf),
        TypeError,
        r"array of shape \(2,\) for 'block/bias': return one bool",
    ),
    "a generator of patterns": (lambda: init(exclude=iter(["head"])), TypeError, "a sequence of"),
    "k is an array of text": (lambda: api.ftp(SGD, k=np.array("a")), TypeError, "must be a number"),
    "k is complex": (lambda: api.ftp(SGD, k=jnp.array(1j)), TypeError, "must be a number"),
    "anchor dtype is an array": (
        lambda: api.ftp(SGD, anchor_dtype=jnp.ones(3)),
        TypeError,
        "`anchor_dtype` must be a real floating-point dtype",
    ),
    "axis name is a number": (lambda: api.tpgm(SGD, axis_name=0), TypeError, "name of an axis of"),
    "parameters are text": (
        lambda: api.ftp(SGD).init({"name": np.array(["a"])}),
        TypeError,
        "'name' is an array of <U1: pass only the trainable arrays",
    ),
    "reset is text": (
        lambda: api.set_anchor(init(), PARAMS, reset="no"),
        TypeError,
        "`reset` must be True or False; got 'no'",
    ),
    "infer: no function": (
        lambda: api.infer_axes(PARAMS, loss),
        TypeError,
        r"needs a function.*got dict: call `infer_axes\(loss_fn, params, batch\)`",
    ),
    "infer: combined with a list": (
        lambda: api.infer_axes(loss, PARAMS) | [Axes()],
        TypeError,
        "needs a mapping from patterns to `Axes`; got list",
    ),
    "fit: no held-out loss": (lambda: fit(held_out_loss=None), TypeError, r"a function `\(params,"),
    "fit: swapped": (
        lambda: api.fit_radii(PARAMS, loss, PARAMS, [1.0]),
        TypeError,
        r"`held_out_loss` must be a function `\(params, batch\)`.*got dict",
    ),
    "a model as the optimizer": (
        lambda: api.ftp(PARAMS),
        TypeError,
        r"such as `optax.adamw\(1e-4\)`; got an object of type dict",
    ),
    "fit: one number": (lambda: fit(batches=5), TypeError, "iterable of batches.*got int: pass a"),
    "fit: one array": (lambda: fit(batches=jnp.array(1.0)), TypeError, "iterable of batches"),
    # Iterating over a dict would give its keys.
    "fit: one batch": (lambda: fit(batches={"x": 1.0}), TypeError, "got dict: pass a list of"),
    "fit: a path": (lambda: fit(batches="held_out.npz"), TypeError, "got str: pass a list of"),
    "fit: nothing to project": (lambda: fit(params={}), ValueError, "pass the fine-tuned"),
}


@pytest.mark.parametrize(("call", "error", "message"), CASES.values(), ids=CASES)
def test_arguments_of_the_wrong_kind_raise_an_error_with_the_remedy(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_axes_may_be_lists_and_numpy_integers():
    one = init(axes={"head": AnyAxes(rows=[np.int64(-2)], layers=range(1, 2))})
    assert one.spec == init(axes={"head": Axes(rows=0, layers=1)}).spec


@pytest.mark.parametrize("kind", [bool, np.bool_, jnp.bool_, np.array], ids=lambda x: x.__name__)
def test_a_tree_of_bools_may_hold_arrays_of_one_bool(kind):
    exclude = {"block": kind(True), "head": kind(False)}
    state = init(exclude=exclude)
    assert list(tpgm_jax.radii(state, PARAMS)) == ["head"]
    jitted = jax.jit(lambda params: api.ftp(SGD, exclude=exclude).init(params))
    assert jitted(PARAMS).spec == state.spec


@pytest.mark.parametrize("flags", [jnp.ones(2, bool), jnp.array(1.0)])
def test_a_tree_of_other_arrays_is_not_a_tree_of_bools(flags):
    with pytest.raises(TypeError, match="or a tree of bools; got"):
        init(exclude={"block": flags, "head": True})


def test_a_tree_of_traced_bools_is_refused():
    with pytest.raises(TypeError, match="or a tree of bools; got"):
        jax.jit(lambda flag: init(exclude={"block": flag, "head": True}).radii)(True)
