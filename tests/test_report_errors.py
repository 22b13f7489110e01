"""What reports refuse."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from transforms import PARTS, numbers

import tpgm_jax
from tpgm_jax import Axes, ftp

BASE = optax.sgd(0.1)
# Untyped, as optax types a state no closer than as a tree.
report: Any = tpgm_jax.report

STATE = ftp(BASE, **PARTS).init(numbers())
CASES: Any = {
    "no state of ours": (lambda: report(BASE.init(numbers()), numbers()), "nothing to report"),
    "another norm": (lambda: report(STATE, numbers(), norm="l1"), "`norm` must be one of"),
    "another model": (lambda: report(STATE, {"gain": 1.0}), "`params` lacks 'head/kernel'"),
    "another shape": (
        lambda: report(STATE, numbers() | {"gain": jnp.ones(2)}),
        r"has 'gain' of shape \(2,\), but its anchor has shape \(\)",
    ),
    "several models": (
        lambda: report(jax.tree.map(lambda x: jnp.stack([x, x]), STATE), numbers()),
        r"pick one, `jax.tree.map",
    ),
    "an anchor too many": (lambda: report(STATE, numbers(), anchor=numbers()), "leave it out"),
    "an anchor too few": (
        lambda: report(ftp(BASE, anchor="argument").init(numbers()), numbers()),
        "pass `anchor=pretrained`",
    ),
    "another word for it": (
        lambda: report(ftp(BASE, anchor="argument").init(numbers()), numbers(), anchor="init"),
        "`anchor` must be one of 'zero'",
    ),
    "an anchor without the leaf": (
        lambda: report(ftp(BASE, anchor="argument").init(numbers()), numbers(), anchor={}),
        "its anchor has none",
    ),
    "axes of nothing": (
        lambda: report(STATE, numbers(), axes={"layer/.*": Axes(layers=0)}),
        "matches no parameter",
    ),
    "other axes": (
        lambda: report(STATE, numbers(), axes={"layers/kernel": Axes(layers=1)}),
        "`axes` make 1 groups of 'layers/bias', and `opt_state` has 2",
    ),
    "axes that are not told": (
        lambda: report(
            ftp(BASE, axes={"w": Axes(layers=1)}).init({"w": jnp.ones((3, 3))}),
            {"w": jnp.ones((3, 3))},
        ),
        r"along which of the axes \[\(0,\), \(1,\)\]: pass the `axes`",
    ),
    "inside jit": (
        lambda: jax.jit(lambda state: report(state, numbers()).groups[0].radius)(STATE),
        "outside `jax.jit`",
    ),
}


@pytest.mark.parametrize(("call", "message"), CASES.values(), ids=CASES)
def test_bad_input_gets_an_error_that_says_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()
