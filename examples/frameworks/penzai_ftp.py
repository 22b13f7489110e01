"""Fine-tunes a Penzai model with `StatefulTrainer` and FTP, then TPGM; resumes."""

import jax
import optax
import orbax.checkpoint as ocp
from penzai import pz
from penzai.models import simple_mlp
from penzai.toolshed import basic_training

import tpgm_jax
from examples.frameworks.checks import (
    HELD_OUT,
    check_equal,
    check_loss,
    check_radii,
    check_rows,
    flat,
    images,
    new_folder,
)


def make_model():
    """Images `[n, 8, 8, 1]`, as named arrays `(n, features)`, to logits."""
    return simple_mlp.MLP.from_config(jax.random.key(0), [64, 12, 4])


def logits(model, x):
    named = pz.nx.wrap(x.reshape(len(x), -1)).tag("batch", "features")
    return model(named).unwrap("batch", "features")


def loss(model, batch):
    x, y = batch
    return optax.softmax_cross_entropy_with_integer_labels(logits(model, x), y).mean()


def loss_for_trainer(model, state, rng, batch):
    value = loss(model, batch)
    return value, state, value


# [page]
def parameters(model):
    """What the trainer hands to the optimizer: a tuple of frozen parameters."""
    return pz.unbind_params(model, freeze=True)[1]


slots = pz.unbind_params(make_model())[0]


def loss_of(params, batch):
    return loss(pz.bind_variables(slots, params, unfreeze_as_copy=True), batch)


axes = tpgm_jax.infer_axes(loss_of, parameters(make_model()), images(0))
tx = tpgm_jax.ftp(optax.adam(1e-2), axes=axes)


def make_trainer():
    return basic_training.StatefulTrainer.build(
        jax.random.key(0), make_model(), optimizer_def=tx, loss_fn=loss_for_trainer
    )


# [/page]


def train(trainer, steps):
    return [float(trainer.step(batch=images(step))) for step in steps]


def train_with_tpgm(params, steps):
    """A loop, because `StatefulTrainer` passes no `held_out_loss` on."""
    tpgm = tpgm_jax.tpgm(optax.adam(1e-2), axes=axes)

    @jax.jit
    def train_step(params, opt_state, batch, held_out):
        value, grads = jax.value_and_grad(loss_of)(params, batch)
        updates, opt_state = tpgm.update(
            grads, opt_state, params, held_out_loss=lambda p: loss_of(p, held_out)
        )
        return optax.apply_updates(params, updates), opt_state, value

    opt_state, losses = tpgm.init(params), []
    for step in steps:
        params, opt_state, value = train_step(params, opt_state, images(step), images(HELD_OUT))
        losses.append(float(value))
    return params, opt_state, losses


def main():
    print([parameter.label for parameter in parameters(make_model())])
    check_rows(
        axes,
        {
            "0/value/data_array": (1,),  # mlp/Affine_0/Linear.weights, (inputs, outputs)
            "1/value/data_array": (),
            "2/value/data_array": (1,),
            "3/value/data_array": (),
        },
    )
    pretrained = parameters(make_model())
    anchor = flat(pretrained)
    trainer = make_trainer()
    check_loss(train(trainer, range(12)))
    params, opt_state = parameters(trainer.model), trainer.state.value.opt_state
    check_radii(opt_state, params, anchor, axes)

    half = make_trainer()
    train(half, range(6))
    path = new_folder() / "step_6"
    with ocp.StandardCheckpointer() as checkpointer:
        leaves = jax.tree.leaves((parameters(half.model), half.state.value))
        checkpointer.save(path, leaves)
    resumed = make_trainer()
    target, structure = jax.tree.flatten((parameters(resumed.model), resumed.state.value))
    with ocp.StandardCheckpointer() as checkpointer:
        leaves = checkpointer.restore(path, jax.tree.map(ocp.utils.to_shape_dtype_struct, leaves))
    assert len(leaves) == len(target)
    saved, resumed.state.value = structure.unflatten(leaves)
    for variable, value in zip(pz.unbind_params(resumed.model)[1], saved, strict=True):
        variable.update(value)
    tpgm_jax.check_state(resumed.state.value.opt_state, parameters(resumed.model))
    train(resumed, range(6, 12))
    check_equal(parameters(resumed.model), params)
    check_equal(resumed.state.value.opt_state, opt_state)

    params, opt_state, losses = train_with_tpgm(pretrained, range(12))
    check_loss(losses)
    check_radii(opt_state, params, anchor, axes)


if __name__ == "__main__":
    main()
