"""Fine-tunes a Haiku model with FTP, then with TPGM, and resumes from a checkpoint."""

import haiku as hk
import jax
import optax
import orbax.checkpoint as ocp

import tpgm_jax
from examples.frameworks.checks import (
    HELD_OUT,
    VOCABULARY,
    check_equal,
    check_loss,
    check_radii,
    check_rows,
    flat,
    new_folder,
    sequences,
)


def network(tokens):
    """Tokens `[n, t]` to logits `[n, t, v]` of the next ones."""
    x = hk.Embed(VOCABULARY, 16)(tokens)
    init = hk.initializers.VarianceScaling(1.0)
    mask = jax.numpy.tril(jax.numpy.ones((1, 1, x.shape[1], x.shape[1])))
    x = x + hk.MultiHeadAttention(2, 8, w_init=init)(x, x, x, mask)
    x = hk.LayerNorm(axis=-1, create_scale=True, create_offset=True)(x)
    return hk.Linear(VOCABULARY)(x)


model = hk.without_apply_rng(hk.transform(network))


def loss(params, tokens):
    logits = model.apply(params, tokens[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


pretrained = model.init(jax.random.key(0), sequences(0))

# [page]
axes = tpgm_jax.infer_axes(loss, pretrained, sequences(0))
tx = tpgm_jax.ftp(optax.adam(1e-2), axes=axes)


@jax.jit
def train_step(params, opt_state, batch):
    value, grads = jax.value_and_grad(loss)(params, batch)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value


# [/page]


def train(params, opt_state, steps, step_fn=train_step):
    losses = []
    for step in steps:
        params, opt_state, value = step_fn(params, opt_state, sequences(step))
        losses.append(float(value))
    return params, opt_state, losses


def main():
    check_rows(
        axes,
        {
            "embed/embeddings": (0,),
            "multi_head_attention/query/w": (1,),
            "multi_head_attention/linear/w": (1,),
            "layer_norm/scale": (),
            "linear/w": (1,),
            "linear/b": (),
        },
    )
    anchor = flat(pretrained)
    params, opt_state, losses = train(pretrained, tx.init(pretrained), range(20))
    check_loss(losses)
    check_radii(opt_state, params, anchor, axes)

    # [resume]
    folder = new_folder()
    half = train(pretrained, tx.init(pretrained), range(10))[:2]
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "step_10", half)
    with ocp.StandardCheckpointer() as checkpointer:
        target = jax.eval_shape(lambda: (pretrained, tx.init(pretrained)))
        restored = checkpointer.restore(folder / "step_10", target)
    tpgm_jax.check_state(restored[1], restored[0])
    # [/resume]
    check_equal(train(*restored, range(10, 20))[:2], (params, opt_state))

    tpgm = tpgm_jax.tpgm(optax.adam(1e-2), axes=axes)

    @jax.jit
    def tpgm_step(params, opt_state, batch):
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, opt_state = tpgm.update(
            grads, opt_state, params, held_out_loss=lambda p: loss(p, sequences(HELD_OUT))
        )
        return optax.apply_updates(params, updates), opt_state, value

    params, opt_state, losses = train(pretrained, tpgm.init(pretrained), range(20), tpgm_step)
    check_loss(losses)
    check_radii(opt_state, params, anchor, axes)


if __name__ == "__main__":
    main()
