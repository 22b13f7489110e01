"""Rows by name, the table of `layout`, and the warning of `init` about guesses."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checkpoint_files import command, load, save

import tpgm_jax
from tpgm_jax import Axes

# Shape, rows and whether rows are a guess, from the documentation of the modules.
LEAVES = {
    "flax/dense/kernel": ((3, 4), (1,), False),
    "flax/conv/kernel": ((2, 2, 3, 4), (3,), False),
    "flax/conv1d/kernel": ((2, 3, 4), (2,), False),
    "flax/conv1d/bias": ((4,), (), False),
    "flax/conv1d_without_bias/kernel": ((2, 3, 4), (2,), True),
    "flax/attention/out/kernel": ((2, 3, 4), (2,), False),
    "flax/attention/key/kernel": ((4, 2, 3), (1, 2), False),
    "flax/attention/key/bias": ((2, 3), (), False),
    "flax/embed/embedding": ((5, 4), (0,), False),
    "flax/dense/lora_a": ((3, 2), (1,), False),
    "torch.linear.weight": ((4, 3), (0,), False),
    "torch.conv.weight": ((4, 3, 2, 2), (0,), False),
    "torch.norm.weight": ((4,), (), False),
    "torch.attention.in_proj_weight": ((9, 3), (0,), False),
    "equinox/layers/0/weight": ((4, 3), (0,), False),
    "h.0.attn.c_attn.weight": ((3, 9), (1,), False),
    "h.0.mlp.c_proj.weight": ((4, 3), (1,), False),
    "haiku/linear/w": ((3, 4), (1,), True),
    "keras/embeddings": ((5, 4), (1,), True),
    "scale_of_three": ((3, 1, 4), (2,), True),
    "weights": ((3, 4), (1,), True),
}
PARAMS = {name: jnp.ones(shape) for name, (shape, _, _) in LEAVES.items()}


def test_rows_follow_the_names_of_flax_pytorch_and_equinox():
    table = tpgm_jax.layout(PARAMS)
    assert {x.name: x.rows for x in table.leaves} == {x: v[1] for x, v in LEAVES.items()}
    assert set(table.guessed) == {name for name, (_, _, guess) in LEAVES.items() if guess}


def test_weights_of_stacked_layers_have_rows_on_the_first_axis_after_the_layers():
    (tensor,) = tpgm_jax.layout({"weight": jnp.ones((2, 4, 3))}, axes={".*": Axes(layers=0)}).leaves
    assert (tensor.rows, tensor.inputs, tensor.groups) == ((1,), (2,), 2)


def test_linear_layers_with_the_names_of_gpt2_have_outputs_first():
    # nanoGPT: `c_attn` has 9 outputs of 3 inputs, so no tensor of this model is a `Conv1D`.
    params = {"c_attn.weight": jnp.ones((9, 3)), "c_proj.weight": jnp.ones((3, 3))}
    assert [x.rows for x in tpgm_jax.layout(params).leaves] == [(0,), (0,)]


def test_the_table_shows_shapes_as_arrays_do_and_names_what_is_excluded():
    shapes = jax.eval_shape(lambda: PARAMS)
    table = tpgm_jax.layout(shapes, exclude="flax/.*", axes={"haiku/.*": Axes(rows=0)})
    assert repr(table) == repr(
        tpgm_jax.layout(PARAMS, exclude="flax/.*", axes={"haiku/.*": Axes(rows=0)})
    )
    lines = {line.split()[0]: line.split() for line in repr(table).splitlines()}
    assert lines["flax/dense/kernel"][-1] == "excluded"
    assert lines["haiku/linear/w"] == ["haiku/linear/w", "(3,", "4)", "(0,)", "(1,)", "-", "1"]
    assert lines["keras/embeddings"][-4:] == ["rows", "are", "a", "guess"]
    assert "haiku/linear/w" not in table.guessed


def test_a_bare_array_is_called_parameters():
    assert "(parameters)" in repr(tpgm_jax.layout(jnp.ones(3)))


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("make", [tpgm_jax.ftp, tpgm_jax.tpgm])
def test_init_warns_of_guesses_at_the_line_that_calls_it(make):
    tx = make(optax.sgd(0.1), norm="mars")
    with pytest.warns(tpgm_jax.GuessedRowsWarning, match=r"'haiku/linear/w' \(3, 4\)") as caught:
        tx.init(PARAMS)
    (warning,) = caught
    assert warning.filename == __file__
    assert "infer_axes" in str(warning.message)
    assert "and 2 more" in str(warning.message)


@pytest.mark.filterwarnings("error::UserWarning")
def test_init_does_not_warn_if_rows_are_known_given_or_not_used():
    guessed = {"w": jnp.ones((3, 4))}
    tpgm_jax.ftp(optax.sgd(0.1)).init({"kernel": jnp.ones((3, 4)), "w": jnp.ones(3)})
    tpgm_jax.ftp(optax.sgd(0.1), axes={"w": Axes(rows=0)}).init(guessed)
    tpgm_jax.ftp(optax.sgd(0.1), exclude="w").init(guessed | {"kernel": jnp.ones((3, 4))})
    tpgm_jax.ftp(optax.sgd(0.1), norm="l2").init(guessed)
    axes = tpgm_jax.infer_axes(lambda p, x: x @ p["w"], guessed, jnp.ones((2, 3)))
    tpgm_jax.ftp(optax.sgd(0.1), axes=axes).init(guessed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tpgm_jax.GuessedRowsWarning)
        state = tpgm_jax.ftp(optax.sgd(0.1)).init(guessed)
    tpgm_jax.ftp(optax.sgd(0.1)).update(guessed, state, guessed)  # `init` has warned


WRONG: Any = {
    "no such axis": ({"axes": {"haiku/linear/w": Axes(rows=2)}}, ["haiku/linear/w"]),
    "layers overlap": ({"axes": {"keras/.*": Axes(rows=0, layers=0)}}, ["keras/embeddings"]),
    # The three closest paths, which the message lists.
    "no such name": (
        {"exclude": "weight"},
        ["weights", "torch.norm.weight", "torch.conv.weight"],
    ),
    "everything excluded": ({"exclude": ".*"}, sorted(LEAVES)[:10]),
}


@pytest.mark.parametrize(("options", "names"), WRONG.values(), ids=WRONG)
def test_an_error_of_init_shows_the_rows_of_the_tensors_that_it_names(options, names):
    for call in (
        tpgm_jax.ftp(optax.sgd(0.1), **options).init,
        lambda x: tpgm_jax.layout(x, **options),
    ):
        with pytest.raises(ValueError, match=r"`axes`|`exclude`") as caught:
            call(PARAMS)
        (note,) = caught.value.__notes__
        title, _, *lines = note.splitlines()
        assert f"{len(names)} of {len(PARAMS)} parameters" in title
        assert "`tpgm_jax.layout` prints all" in title
        whole = {" ".join(line.split()) for line in repr(tpgm_jax.layout(PARAMS)).splitlines()}
        assert {" ".join(line.split()) for line in lines} <= whole
        assert {line.split()[0] for line in lines} == set(names)


def test_an_error_of_init_shows_all_of_a_few_tensors():
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    with pytest.raises(TypeError, match="`exclude` must be") as caught:
        tpgm_jax.ftp(optax.sgd(0.1), exclude=3).init(params)  # pyright: ignore[reportArgumentType]
    assert caught.value.__notes__[0].endswith("\n" + repr(tpgm_jax.layout(params)))


def test_the_command_line_and_the_library_project_a_pytorch_file_alike(tmp_path, capsys):
    rng = np.random.default_rng(0)
    names = [x for x in LEAVES if x.split(".")[0] in ("torch", "h")]
    before, after = (
        {x: rng.normal(size=LEAVES[x][0]).astype(np.float32) for x in names} for _ in range(2)
    )
    paths = [save(tmp_path / f"{i}.safetensors", x) for i, x in enumerate((before, after))]
    command(
        capsys,
        "project",
        *paths,
        "--radius",
        "0.1",
        "--norm",
        "mars",
        "-o",
        tmp_path / "o.safetensors",
    )
    tx = tpgm_jax.project_to_anchor(0.1)
    params = jax.tree.map(jnp.asarray, after)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(jax.tree.map(jnp.asarray, before)), params)
    projected: Any = optax.apply_updates(params, updates)
    for name, x in projected.items():
        # Weights of size 1 in float32: each is rounded a few times, to 6e-8.
        np.testing.assert_allclose(load(tmp_path / "o.safetensors")[name], x, atol=4 * 6e-8)
