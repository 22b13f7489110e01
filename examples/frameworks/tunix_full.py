"""Fine-tunes all weights of a Gemma 3 with tunix's `PeftTrainer` and FTP, then TPGM; resumes."""

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from flax import nnx
from tunix.models.gemma3 import model as gemma3
from tunix.sft import hooks, peft_trainer

import tpgm_jax
from examples.frameworks.checks import (
    HELD_OUT,
    check_equal,
    check_loss,
    check_radii,
    check_rows,
    flat,
    new_folder,
    sequences,
)


def make_model():
    """A Gemma 3 with the published layout, and sizes that identify every axis."""
    config = gemma3.ModelConfig(
        num_layers=2,
        num_embed=24,
        embed_dim=20,
        hidden_dim=36,
        num_heads=4,
        head_dim=6,
        num_kv_heads=2,
        sliding_window_size=8,
        param_dtype=jnp.float32,
    )
    model = gemma3.Gemma3(config, rngs=nnx.Rngs(0))
    for i, layer in enumerate(model.layers):
        # They start at zero, where they have no gradient, because a checkpoint is expected.
        for j, linear in enumerate((layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj)):
            key = jax.random.key(10 * i + j)
            linear.kernel.value = 0.1 * jax.random.normal(key, linear.kernel.value.shape)
    return model


def batch(step):
    tokens = sequences(step)
    n, length = tokens.shape
    return {
        "input_tokens": tokens,
        "input_mask": jnp.ones((n, length)),
        "positions": jnp.tile(jnp.arange(length), (n, 1)),
        "attention_mask": jnp.tile(jnp.tril(jnp.ones((length, length), bool)), (n, 1, 1)),
    }


# [page]
def inferred_axes(model, kind=nnx.Param):
    """Rows of the weights of a kind, read off one call of the model."""
    graph, params, rest = nnx.split(model, kind, ...)
    x = batch(0)

    def forward(params, tokens, positions, mask):
        return nnx.merge(graph, params, rest)(tokens, positions, None, mask)

    return tpgm_jax.infer_axes(
        forward, params, x["input_tokens"], x["positions"], x["attention_mask"]
    )


def make_trainer(model, tx, folder, trainer=peft_trainer.PeftTrainer, steps=8):
    config = peft_trainer.TrainingConfig(
        eval_every_n_steps=1000,
        max_steps=steps,
        checkpoint_root_directory=str(folder),
        checkpointing_options=ocp.CheckpointManagerOptions(save_interval_steps=4),
    )
    return trainer(model, tx, config)


# [/page]


# [tpgm]
class TPGMTrainer(peft_trainer.PeftTrainer):
    """A trainer that hands TPGM the loss on held-out data. tunix's own passes gradients alone."""

    def _train_step(self, model, optimizer, inputs):
        def loss(model):
            return self.loss_fn(model, **inputs["train"])

        def held_out_loss(params):
            return self.loss_fn(nnx.merge(graph, params, rest), **inputs["held_out"])

        value, grads = nnx.value_and_grad(loss)(model)
        graph, _, rest = nnx.split(model, nnx.Param, ...)
        optimizer.update(model, grads, held_out_loss=held_out_loss)
        return value, None, optax.global_norm(grads)


# [/tpgm]


class Losses(hooks.TrainingHooks):
    """Collects the loss of each step."""

    def __init__(self):
        self.values = []

    def on_train_step_end(self, trainer, step, loss):
        self.values.append(float(loss))

    def on_train_start(self, trainer): ...
    def on_train_end(self, trainer): ...
    def on_train_step_start(self, trainer): ...
    def on_eval_step_start(self, trainer): ...
    def on_eval_step_end(self, trainer, eval_loss): ...


def train(trainer, make_batch=batch):
    losses = Losses()
    trainer.with_training_hooks(losses)
    trainer.train([make_batch(step) for step in range(trainer.config.max_steps)])
    return losses.values


def main():
    model = make_model()
    anchor = flat(nnx.state(model, nnx.Param))
    axes = inferred_axes(model)
    check_rows(
        axes,
        {
            "embedder/input_embedding": (0,),
            "layers/0/attn/q_einsum/w": (0, 2),
            "layers/0/attn/kv_einsum/w": (0, 1, 3),
            "layers/0/attn/attn_vec_einsum/w": (2,),
            "layers/1/mlp/gate_proj/kernel": (1,),
            "layers/1/mlp/down_proj/kernel": (1,),
            "final_norm/scale": (),
        },
    )

    tx = tpgm_jax.ftp(optax.adam(1e-2), axes=axes)
    trainer = make_trainer(model, tx, new_folder())
    check_loss(train(trainer))
    params = nnx.state(model, nnx.Param)
    check_radii(trainer.optimizer.opt_state, params, anchor, axes)

    # The same in two halves. A new trainer restores the newest checkpoint of its folder.
    folder = new_folder()
    train(make_trainer(make_model(), tx, folder, steps=4))
    resumed = make_trainer(make_model(), tx, folder)
    tpgm_jax.check_state(resumed.optimizer.opt_state, nnx.state(resumed.model, nnx.Param))
    assert resumed.train_steps == 4
    train(resumed)
    assert resumed.train_steps == 8
    for one, other in ((resumed.model, model), (resumed.optimizer, trainer.optimizer)):
        check_equal(nnx.state(one), nnx.state(other))

    model = make_model()
    tx = tpgm_jax.tpgm(optax.adam(1e-2), axes=axes)
    trainer = make_trainer(model, tx, new_folder(), TPGMTrainer)
    check_loss(train(trainer, lambda step: {"train": batch(step), "held_out": batch(HELD_OUT)}))
    params = nnx.state(model, nnx.Param)
    check_radii(trainer.optimizer.opt_state, params, anchor, axes)


if __name__ == "__main__":
    main()
