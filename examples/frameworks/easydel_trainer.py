"""Fine-tunes a Llama with EasyDeL's `Trainer` and FTP, and resumes."""

import easydel as ed
import jax.numpy as jnp
import optax
from datasets import Dataset
from flax import nnx

import tpgm_jax
from examples.frameworks.checks import (
    HELD_OUT,
    VOCABULARY,
    check_equal,
    check_radii,
    check_rows,
    flat,
    new_folder,
    sequences,
)


def make_model():
    """A Llama with sizes that identify every axis."""
    config = ed.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=16,
        attn_mechanism="vanilla",
    )
    return ed.LlamaForCausalLM(
        config=config, dtype=jnp.float32, param_dtype=jnp.float32, rngs=ed.Rngs(0)
    )


# [page]
def inferred_axes(model):
    """Rows of all weights, read off one call of the model."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def forward(params, tokens):
        model = nnx.merge(graph, params, rest)
        return model(input_ids=tokens, attention_mask=jnp.ones_like(tokens)).logits

    with model.mesh:
        return tpgm_jax.infer_axes(forward, params, jnp.zeros((1, 8), int))


class FTPArguments(ed.TrainingArguments):
    """EasyDeL's arguments, which wrap their optimizer, also for the state of a resumed run."""

    axes = None

    def get_optimizer_and_scheduler(self, steps=None):
        tx, schedule = super().get_optimizer_and_scheduler(steps)
        return tpgm_jax.ftp(tx, axes=self.axes), schedule


# [/page]


def options(folder, steps):
    return FTPArguments(
        save_directory=str(folder),
        model_name="llama",
        num_train_epochs=1,
        total_batch_size=8,
        max_training_steps=steps,
        max_length=12,
        learning_rate=1e-2,
        optimizer="adamw",
        scheduler="none",
        weight_decay=0.0,
        shuffle_train_dataset=False,
        use_wandb=False,
        do_last_save=True,
        save_steps=4,
        log_steps=1,
        report_steps=1,
        resume_if_possible=True,
    )


def loss(state):
    model, tokens = state.model, jnp.asarray(sequences(HELD_OUT))
    with model.mesh:
        logits = model(input_ids=tokens, attention_mask=jnp.ones_like(tokens)).logits
    values = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
    return float(values.mean())


def make_trainer(folder, steps):
    rows = [row for step in range(8) for row in sequences(step)]
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * 12] * len(rows)})
    model, arguments = make_model(), options(folder, steps)
    arguments.axes = inferred_axes(model)
    return ed.Trainer(arguments, model=model, dataset_train=data)


def main():
    model = make_model()
    anchor, axes = flat(nnx.state(model, nnx.Param)), inferred_axes(model)
    check_rows(
        axes,
        {
            "model/embed_tokens/embedding": (0,),
            "model/layers/0/self_attn/k_proj/kernel": (1,),
            "model/layers/1/mlp/down_proj/kernel": (1,),
            "model/norm/kernel": (),
            "lm_head/kernel": (1,),
        },
    )
    trainer = make_trainer(new_folder(), 8)
    start = loss(trainer.model_state)
    state = trainer.train().state
    assert loss(state) < start
    check_radii(state.opt_state, state.graphstate, anchor, axes)

    # The same in two halves. A new trainer restores the newest checkpoint of its folder.
    folder = new_folder()
    make_trainer(folder, 4).train()
    trainer = make_trainer(folder, 8)
    assert int(trainer.model_state.step) == 4
    tpgm_jax.check_state(trainer.model_state.opt_state, trainer.model_state.graphstate)
    resumed = trainer.train().state
    assert int(resumed.step) == 8
    check_equal(resumed.graphstate, state.graphstate)
    check_equal(resumed.opt_state, state.opt_state)


if __name__ == "__main__":
    main()
