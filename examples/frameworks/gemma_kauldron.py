"""Fine-tunes the Gemma library's Gemma 3 with kauldron's `Trainer` and FTP; resumes."""

import jax
import jax.numpy as jnp
import optax
from gemma import gm
from kauldron import kd

import tpgm_jax
from examples.frameworks.checks import (
    HELD_OUT,
    check_equal,
    check_radii,
    check_rows,
    flat,
    new_folder,
    sequences,
)

# The published Gemma 3 models have these options, and more units.
CONFIG = gm.nn.config.TransformerConfig(
    num_embed=24,
    embed_dim=20,
    hidden_dim=36,
    num_heads=4,
    head_dim=6,
    num_kv_heads=2,
    final_logit_softcap=None,
    use_post_attn_norm=True,
    use_post_ffw_norm=True,
    use_qk_norm=True,
    attention_types=(gm.nn.AttentionType.LOCAL_SLIDING, gm.nn.AttentionType.GLOBAL),
    attn_logits_soft_cap=None,
    sliding_window_size=8,
    transpose_gating_einsum=True,
)


def make_model():
    return gm.nn.Transformer(config=CONFIG, dtype=jnp.float32, tokens="batch.tokens")


class Examples:
    """Sequences one by one, and the same ones a token later."""

    def __len__(self):
        return 8 * 32

    def __getitem__(self, i):
        tokens = sequences(i // 8)[i % 8]
        return {"tokens": tokens[:-1], "next": tokens[1:, None]}


# [page]
def inferred_axes(params):
    def forward(params, tokens):
        return make_model().apply({"params": params}, tokens).logits

    return tpgm_jax.infer_axes(forward, params, sequences(0))


def make_trainer(optimizer, folder, steps):
    return kd.train.Trainer(
        model=make_model(),
        optimizer=optimizer,
        train_ds=kd.data.py.DataSource(
            data_source=Examples(), shuffle=False, batch_size=8, num_workers=0
        ),
        train_losses={
            "cross_entropy": kd.losses.SoftmaxCrossEntropyWithIntLabels(
                logits="preds.logits", labels="batch.next"
            )
        },
        num_train_steps=steps,
        # Pre-trained weights come before `tx.init`, so they are the anchor:
        # init_transform=gm.ckpts.LoadCheckpoint(path=gm.ckpts.CheckpointPath.GEMMA3_4B_IT),
        checkpointer=kd.ckpts.Checkpointer(save_interval_steps=6),
        workdir=folder,
    )


# [/page]


def loss(params):
    tokens = sequences(HELD_OUT)
    logits = make_model().apply({"params": params}, tokens[:, :-1]).logits
    return float(optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean())


def main():
    initial = make_trainer(optax.sgd(0.0), new_folder(), 12).init_state().params
    anchor = flat(initial)
    axes = inferred_axes(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), initial))
    check_rows(
        axes,
        {
            "embedder/input_embedding": (0,),
            "layer_0/attn/q_einsum/w": (0, 2),
            "layer_0/attn/kv_einsum/w": (0, 1, 3),
            "layer_0/attn/attn_vec_einsum/w": (2,),
            "layer_1/mlp/gating_einsum": (0, 1),
            "layer_1/mlp/linear": (1,),
            "final_norm/scale": (),
        },
    )
    tx = tpgm_jax.ftp(optax.adam(1e-2), axes=axes)
    state, _ = make_trainer(tx, new_folder(), 12).train()
    assert loss(state.params) < loss(initial)
    check_radii(state.opt_state, state.params, anchor, axes)

    folder = new_folder()
    make_trainer(tx, folder, 6).train()
    resumed, _ = make_trainer(tx, folder, 12).train()
    tpgm_jax.check_state(resumed.opt_state, resumed.params)
    check_equal(resumed.params, state.params)
    check_equal(resumed.opt_state, state.opt_state)


if __name__ == "__main__":
    main()
