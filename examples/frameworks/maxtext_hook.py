"""Trains with MaxText's own loop and FTP: resumes, and starts from pre-trained parameters."""

import json
from pathlib import Path

import jax.numpy as jnp
import maxtext
import numpy as np
import optax
from flax import nnx
from maxtext.optimizers import optimizers
from maxtext.trainers.pre_train import train
from maxtext.utils import train_utils

import tpgm_jax
from examples.frameworks.checks import (
    check_equal,
    check_loss,
    check_radii,
    check_rows,
    flat,
    new_folder,
)

# [page]
get_optimizer, setup_train_loop = optimizers.get_optimizer, train_utils.setup_train_loop


def inferred_axes(model):
    """Rows and layers, read off MaxText's abstract model."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    tokens = jnp.zeros((1, 16), int)

    def forward(params, tokens):
        model = nnx.merge(graph, params, rest)
        return model(tokens, tokens, decoder_segment_ids=tokens, enable_dropout=False)

    return tpgm_jax.infer_axes(forward, params, tokens)


def get_ftp(config, schedule, model=None, mesh=None):
    """MaxText's optimizer, wrapped."""
    axes = inferred_axes(model)
    return tpgm_jax.ftp(get_optimizer(config, schedule, model, mesh), axes=axes)


def setup_with_anchor(config, recorder, devices=None):
    """MaxText loads `load_parameters_path` after it has made the optimizer state."""
    *rest, state = setup_train_loop(config, recorder, devices)
    params = nnx.state(state.model, nnx.Param)
    opt_state = state.optimizer.opt_state
    if int(optax.tree.get(opt_state, "FTPState").step[...]) == 0:
        state.optimizer.opt_state = tpgm_jax.set_anchor(opt_state, params)
    else:  # a resumed run
        tpgm_jax.check_state(opt_state, params)
    return (*rest, state)


optimizers.get_optimizer = get_ftp
train_utils.setup_train_loop = setup_with_anchor
# [/page]


def options(folder, name, steps, *others):
    """Arguments of `train.initialize`: a decoder with few units, and the same tokens every step."""
    return [
        "",
        str(Path(maxtext.__file__).parent / "configs" / "base.yml"),
        f"base_output_directory={folder}",
        f"run_name={name}",
        f"metrics_file={folder}/{name}.{steps}.json",
        f"steps={steps}",
        "learning_rate_schedule_steps=8",
        "warmup_steps_fraction=0.0",
        "learning_rate=0.01",
        "base_emb_dim=20",
        "base_mlp_dim=36",
        "base_num_decoder_layers=3",
        "base_num_query_heads=4",
        "base_num_kv_heads=2",
        "head_dim=6",
        "vocab_size=24",
        "max_target_length=16",
        "per_device_batch_size=4",
        "dtype=float32",
        "dataset_type=synthetic",
        "hardware=cpu",
        "attention=dot_product",
        "enable_goodput_recording=False",
        "enable_tensorboard=False",
        "enable_checkpoint_cloud_logger=False",
        "async_checkpointing=False",
        "checkpoint_period=4",
        "skip_jax_distributed_system=True",
        *others,
    ]


def run(*arguments):
    """The trained state, and the parameters from before the first step by name."""
    config, recorder = train.initialize(options(*arguments))
    setups = []

    def setup(*args):
        result = setup_with_anchor(*args)
        anchor = optax.tree.get(result[-1].optimizer.opt_state, "FTPState").anchor
        setups.append((result[-1], flat(nnx.state(result[-1].model, nnx.Param)), flat(anchor)))
        return result

    train_utils.setup_train_loop = setup
    final = train.train_loop(config, recorder)
    ((state, start, anchor),) = setups
    nnx.update(state, final)
    return state, start, anchor


def main():
    folder = new_folder()
    state, start, anchor = run(folder, "whole", 8, "enable_checkpointing=False")
    check_equal(anchor, start)
    params, opt_state = nnx.state(state.model, nnx.Param), state.optimizer.opt_state
    axes = inferred_axes(state.model)
    check_rows(
        axes,
        {
            "token_embedder/embedding": (0,),
            "decoder/layers/self_attention/query/kernel": (2, 3),
            "decoder/layers/self_attention/out/kernel": (3,),
            "decoder/layers/mlp/wo/kernel": (2,),
            "decoder/logits_dense/kernel": (1,),
            "decoder/decoder_norm/scale": (),
            "decoder/layers/pre_self_attention_layer_norm/scale": (),
        },
    )
    layers = {name: axes[name].layers for name in axes if "layers/" in name}
    assert set(layers.values()) == {(1,)}, layers
    losses = (folder / "whole.8.json").read_text().splitlines()
    check_loss([json.loads(line)["learning/loss"] for line in losses])
    check_radii(opt_state, params, start, axes)

    run(folder, "halves", 4)
    resumed, _, anchor = run(folder, "halves", 8)
    check_equal(anchor, start)
    tpgm_jax.check_state(resumed.optimizer.opt_state, nnx.state(resumed.model, nnx.Param))
    check_equal(nnx.state(resumed.model, nnx.Param), params)
    check_equal(resumed.optimizer.opt_state, opt_state)

    pretrained = f"load_parameters_path={folder}/halves/checkpoints/7/items"
    _, loaded, anchor = run(folder, "loaded", 2, pretrained)
    np.testing.assert_equal(loaded, flat(params))
    check_equal(anchor, loaded)


if __name__ == "__main__":
    main()
