"""Fine-tunes a Keras 3 model (JAX backend) with TPGM in a loop over `stateless_call`; resumes."""

import jax
import optax
import orbax.checkpoint as ocp

import tpgm_jax
from examples.frameworks.checks import (
    HELD_OUT,
    check_equal,
    check_loss,
    check_radii,
    flat,
    images,
    new_folder,
)
from examples.frameworks.keras_compile import inferred_axes, make_model, values

model = make_model()
axes = inferred_axes(model)
pretrained = values(model.trainable_variables)
anchor = flat(pretrained)

# [page]
tx = tpgm_jax.tpgm(optax.adam(1e-2), axes=axes)
paths = list(pretrained)


def loss(params, others, batch, training):
    """The loss, and the new values of the variables that are not trained."""
    x, y = batch
    logits, others = model.stateless_call(
        [params[path] for path in paths], others, x, training=training
    )
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), others


@jax.jit
def train_step(params, others, opt_state, batch, held_out):
    grad = jax.value_and_grad(loss, has_aux=True)
    (value, others), grads = grad(params, others, batch, True)
    updates, opt_state = tx.update(
        grads,
        opt_state,
        params,
        held_out_loss=lambda params: loss(params, others, held_out, False)[0],
    )
    return optax.apply_updates(params, updates), others, opt_state, value


# [/page]


def train(state, steps):
    losses = []
    for step in steps:
        *state, value = train_step(*state, images(step), images(HELD_OUT))
        losses.append(float(value))
    return state, losses


def initial():
    return [pretrained, [x.value for x in model.non_trainable_variables], tx.init(pretrained)]


def main():
    state, losses = train(initial(), range(12))
    params, _, opt_state = state
    check_loss(losses)
    check_radii(opt_state, params, anchor, axes)

    half, _ = train(initial(), range(6))
    folder = new_folder() / "step_6"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, half)
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(folder, jax.eval_shape(initial))
    tpgm_jax.check_state(restored[2], restored[0])
    check_equal(train(restored, range(6, 12))[0], state)

    # Back into the model, for example to save it in Keras's format.
    for variable in model.trainable_variables:
        variable.assign(params[variable.path])


if __name__ == "__main__":
    main()
