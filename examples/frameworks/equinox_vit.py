"""Fine-tunes equimo's ViT, an Equinox model, with FTP, then with TPGM; resumes."""

import equinox as eqx
import jax
import optax
from equimo.vision.models.vit import VisionTransformer

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
    """An image `[1, 8, 8]` to logits `[4]`."""
    sizes = {"img_size": 8, "in_channels": 1, "patch_size": 4, "dim": 24, "num_heads": 2}
    return VisionTransformer(
        **sizes, depths=[2], reg_tokens=0, num_classes=4, key=jax.random.key(0)
    )


# [page]
params, static = eqx.partition(make_model(), eqx.is_inexact_array)


def loss(params, batch):
    x, y = batch
    model = eqx.combine(params, static)
    logits = jax.vmap(lambda image: model(image.transpose(2, 0, 1), inference=True))(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


# Equinox stores weights as `(out, in)`. `infer_axes` reads it off the model.
axes = tpgm_jax.infer_axes(loss, params, images(0))
ftp = tpgm_jax.ftp(optax.adam(1e-2), axes=axes)
tpgm = tpgm_jax.tpgm(optax.adam(1e-2), axes=axes)


def make_step(tx, **extra):
    @eqx.filter_jit
    def train_step(params, opt_state, batch):
        value, grads = eqx.filter_value_and_grad(loss)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params, **extra)
        return eqx.apply_updates(params, updates), opt_state, value

    return train_step


ftp_step = make_step(ftp)
tpgm_step = make_step(tpgm, held_out_loss=lambda params: loss(params, images(HELD_OUT)))
# [/page]


def train(step_fn, params, opt_state, steps):
    losses = []
    for step in steps:
        params, opt_state, value = step_fn(params, opt_state, images(step))
        losses.append(float(value))
    return (params, opt_state), losses


def main():
    check_rows(
        axes,
        {
            "head/weight": (0,),
            "head/bias": (),
        },
    )
    anchor = flat(params)
    state, losses = train(ftp_step, params, ftp.init(params), range(60))
    check_loss(losses)
    check_radii(state[1], state[0], anchor, axes)

    half, _ = train(ftp_step, params, ftp.init(params), range(30))
    path = new_folder() / "step_30.eqx"
    eqx.tree_serialise_leaves(path, half)
    restored = eqx.tree_deserialise_leaves(path, (params, ftp.init(params)))
    tpgm_jax.check_state(restored[1], restored[0])
    check_equal(train(ftp_step, *restored, range(30, 60))[0], state)

    state, losses = train(tpgm_step, params, tpgm.init(params), range(60))
    check_loss(losses)
    check_radii(state[1], state[0], anchor, axes)


if __name__ == "__main__":
    main()
