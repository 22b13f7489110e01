"""Fine-tunes with kauldron's `Trainer`: FTP, FTP of a selection, and TPGM; resumes."""

import dataclasses

import jax
import numpy as np
import optax
from flax import linen as nn
from kauldron import kd

import tpgm_jax
from examples.frameworks.checks import (
    HELD_OUT,
    check_equal,
    check_radii,
    check_rows,
    flat,
    images,
    new_folder,
)


class Network(nn.Module):
    """Images `[n, 8, 8, 1]` to logits `[n, 4]`."""

    image: kd.kontext.Key = "batch.image"

    @nn.compact
    def __call__(self, image):
        x = nn.relu(nn.Conv(6, (3, 3), strides=2, name="conv")(image)).reshape(len(image), -1)
        return nn.Dense(4, name="head")(nn.relu(nn.Dense(12, name="hidden")(x)))


class Examples:
    """Examples one by one, each with one of the held-out examples."""

    def __len__(self):
        return 16 * 32

    def __getitem__(self, i):
        image, label = images(i // 16)
        held_out_image, held_out_label = images(HELD_OUT)
        i %= 16
        held_out = {"image": held_out_image[i], "label": held_out_label[i : i + 1]}
        return {"image": image[i], "label": label[i : i + 1], "held_out": held_out}


# [page]
def make_trainer(optimizer, folder, steps, **options):
    return kd.train.Trainer(
        model=Network(),
        optimizer=optimizer,
        train_ds=kd.data.py.DataSource(
            data_source=Examples(), shuffle=False, batch_size=16, num_workers=0
        ),
        train_losses={
            "cross_entropy": kd.losses.SoftmaxCrossEntropyWithIntLabels(
                logits="preds", labels="batch.label"
            )
        },
        num_train_steps=steps,
        checkpointer=kd.ckpts.Checkpointer(save_interval_steps=6),
        workdir=folder,
        **options,
    )


ftp = tpgm_jax.ftp(optax.adam(1e-2))
# The head alone is trained, and has the only radii.
head_alone = kd.optim.partial_updates(ftp, mask=kd.optim.select("head"))
# With TPGM the selection goes inside, because the held-out loss needs all parameters.
tpgm = tpgm_jax.tpgm(
    kd.optim.partial_updates(optax.adam(1e-2), mask=kd.optim.exclude("conv")), exclude="conv/.*"
)

# [/page]


# [tpgm]
@dataclasses.dataclass(kw_only=True, eq=False, frozen=True)
class TPGMStep(kd.train.TrainStep):
    """A training step that hands TPGM the loss on the batch's held-out examples."""

    def _step(self, state, batch):
        shared = {"model": self.model, "losses": self.aux.losses}
        context = kd.train.Context.from_state_and_batch(state=state, batch=batch)
        gradient = jax.grad(kd.train.forward_with_loss, has_aux=True, allow_int=True)
        rngs = self.rng_streams.train_rngs(state.step)
        grads, context = gradient(context, **shared, rngs=rngs, is_training=True)

        def held_out_loss(params):
            held_out = kd.train.Context.from_state_and_batch(
                state=state.replace(params=params), batch=batch["held_out"]
            )
            return kd.train.forward_with_loss(held_out, **shared, rngs=rngs, is_training=False)[0]

        updates, opt_state = self.optimizer.update(
            grads.params, state.opt_state, state.params, held_out_loss=held_out_loss
        )
        params = optax.apply_updates(state.params, updates)
        context = context.replace(grads=grads.params, updates=updates, opt_state=state.opt_state)
        state = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            collections=context.collections,
        )
        return state, self.aux.update_context(context)


# [/tpgm]


def loss(params):
    logits = Network().apply({"params": params}, images(HELD_OUT)[0])
    labels = images(HELD_OUT)[1]
    return float(optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean())


def main():
    initial = make_trainer(ftp, new_folder(), 12).init_state().params
    anchor = flat(initial)
    axes = tpgm_jax.infer_axes(
        lambda params, x: Network().apply({"params": params}, x), initial, images(0)[0]
    )
    check_rows(axes, {"conv/kernel": (3,), "hidden/kernel": (1,), "head/bias": ()})

    # kauldron saves before the step of that number, and makes one step after the last checkpoint.
    state, _ = make_trainer(ftp, new_folder(), 12).train()
    assert int(state.step) == 13
    assert loss(state.params) < loss(initial)
    check_radii(state.opt_state, state.params, anchor, axes)
    folder = new_folder()
    make_trainer(ftp, folder, 6).train()
    resumed, _ = make_trainer(ftp, folder, 12).train()
    tpgm_jax.check_state(resumed.opt_state, resumed.params)
    check_equal(resumed.params, state.params)
    check_equal(resumed.opt_state, state.opt_state)

    state, _ = make_trainer(head_alone, new_folder(), 12).train()
    assert loss(state.params) < loss(initial)
    assert tpgm_jax.radii(state.opt_state, state.params).keys() == {"head/bias", "head/kernel"}
    check_radii(state.opt_state, state.params, anchor, axes)
    for name in ("conv/kernel", "hidden/kernel"):
        np.testing.assert_array_equal(flat(state.params)[name], anchor[name])

    state, _ = make_trainer(tpgm, new_folder(), 12, trainstep=TPGMStep()).train()
    assert loss(state.params) < loss(initial)
    check_radii(state.opt_state, state.params, anchor, axes)
    np.testing.assert_array_equal(flat(state.params)["conv/kernel"], anchor["conv/kernel"])


if __name__ == "__main__":
    main()
