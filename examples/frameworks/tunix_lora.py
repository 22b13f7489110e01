"""Fine-tunes LoRA adapters that qwix adds to a Gemma 3, with tunix's `PeftTrainer` and FTP."""

import numpy as np
import optax
import qwix
from flax import nnx

import tpgm_jax
from examples.frameworks.checks import (
    check_equal,
    check_loss,
    check_radii,
    check_rows,
    flat,
    new_folder,
)
from examples.frameworks.tunix_full import inferred_axes, make_model, make_trainer, train


# [page]
def with_adapters(model):
    modules = ".*(q_einsum|kv_einsum|attn_vec_einsum|gate_proj|up_proj|down_proj)"
    provider = qwix.LoraProvider(module_path=modules, rank=4, alpha=4.0)
    return qwix.apply_lora_to_model(model, provider, **model.get_model_input())


def make_optimizer(axes):
    """Keeps `lora_b` near zero. `axes` are `inferred_axes(model, nnx.LoRAParam)`."""
    # `lora_b` starts at zero, so an anchor of zero is the pre-trained model, and needs no copy.
    # `lora_a` starts at random: with both factors near zero, both gradients would vanish.
    return tpgm_jax.ftp(optax.adam(1e-2), exclude=".*lora_a", axes=axes, anchor="zero")


# [/page]


def main():
    model = with_adapters(make_model())
    frozen = flat(nnx.state(model, nnx.filterlib.All(nnx.Param, nnx.Not(nnx.LoRAParam))))
    axes = inferred_axes(model, nnx.LoRAParam)
    # Each factor by its own use: all axes but those that it sums over.
    check_rows(
        axes,
        {
            "layers/0/attn/q_einsum/w_lora_a": (1,),
            "layers/0/attn/q_einsum/w_lora_b": (1, 2),
            "layers/0/attn/kv_einsum/w_lora_b": (1, 2, 3),
            "layers/0/attn/attn_vec_einsum/w_lora_a": (2,),
            "layers/0/attn/attn_vec_einsum/w_lora_b": (1,),
            "layers/1/mlp/gate_proj/kernel_lora_b": (1,),
        },
    )
    trainer = make_trainer(model, make_optimizer(axes), new_folder())
    check_loss(train(trainer))
    adapters = nnx.state(model, nnx.LoRAParam)
    zeros = {name: np.zeros_like(x) for name, x in flat(adapters).items()}
    check_radii(trainer.optimizer.opt_state, adapters, zeros, axes)
    check_equal(frozen, nnx.state(model, nnx.filterlib.All(nnx.Param, nnx.Not(nnx.LoRAParam))))

    folder = new_folder()
    half = with_adapters(make_model())
    train(make_trainer(half, make_optimizer(axes), folder, steps=4))
    resumed = make_trainer(with_adapters(make_model()), make_optimizer(axes), folder)
    assert resumed.train_steps == 4
    adapters = nnx.state(resumed.model, nnx.LoRAParam)
    tpgm_jax.check_state(resumed.optimizer.opt_state, adapters)
    train(resumed)
    check_equal(nnx.state(resumed.model), nnx.state(model))
    check_equal(nnx.state(resumed.optimizer), nnx.state(trainer.optimizer))


if __name__ == "__main__":
    main()
