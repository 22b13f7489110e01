"""Errors of `report`."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from transforms import PARTS, numbers

import tpgm_jax
from tpgm_jax import ftp

BASE = optax.sgd(0.1)
# Untyped, because optax types a state only as a tree.
report: Any = tpgm_jax.report

STATE = ftp(BASE, **PARTS).init(numbers())
CASES: Any = {
    "no state of ours": (
        lambda: report(BASE.init(numbers()), numbers()),
        "`report` found no state of this library",
    ),
    "another model": (lambda: report(STATE, {"gain": 1.0}), "`params` lacks 'layers/bias'"),
    "another shape": (
        lambda: report(STATE, numbers() | {"gain": jnp.ones(2)}),
        r"has 'gain' of shape \(2,\), where \(\) is expected",
    ),
    "several models": (
        lambda: report(jax.tree.map(lambda x: jnp.stack([x, x]), STATE), numbers()),
        r"pick one, `jax.tree.map",
    ),
    "an anchor too many": (lambda: report(STATE, numbers(), anchor=numbers()), "leave it out"),
    "an anchor too few": (
        lambda: report(ftp(BASE, anchor="argument").init(numbers()), numbers()),
        r"call `report\(opt_state, params, anchor=pretrained\)`",
    ),
    "an anchor without the leaf": (
        lambda: report(ftp(BASE, anchor="argument").init(numbers()), numbers(), anchor={}),
        "the `anchor` of `report` lacks 'gain'",
    ),
    "inside jit": (
        lambda: jax.jit(lambda state: report(state, numbers()).groups[0].radius)(STATE),
        "outside `jax.jit`",
    ),
}


@pytest.mark.parametrize(("call", "message"), CASES.values(), ids=CASES)
def test_bad_input_raises_an_error_with_the_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call()
