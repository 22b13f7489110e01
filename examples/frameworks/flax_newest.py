"""Fine-tunes with the newest Flax: NNX with TPGM, linen with FTP; both resume."""

import jax
import optax
import orbax.checkpoint as ocp
from flax import linen, nnx

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


class Network(nnx.Module):
    """Images `[n, 8, 8, 1]` to logits `[n, 4]`."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 6, (3, 3), strides=2, rngs=rngs)
        self.hidden = nnx.Linear(96, 12, rngs=rngs)
        self.head = nnx.Linear(12, 4, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.conv(x)).reshape(len(x), -1)
        return self.head(nnx.relu(self.hidden(x)))


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


# [page]
def loss(model, batch):
    return cross_entropy(model(batch[0]), batch[1])


@nnx.jit
def train_step(model, optimizer, batch, held_out):
    value, grads = nnx.value_and_grad(loss)(model, batch)
    graph, _, rest = nnx.split(model, nnx.Param, ...)

    def held_out_loss(params):
        return loss(nnx.merge(graph, params, rest), held_out)

    optimizer.update(model, grads, held_out_loss=held_out_loss)
    return value


def make_optimizer(model):
    return nnx.Optimizer(model, tpgm_jax.tpgm(optax.adam(1e-2)), wrt=nnx.Param)


# [/page]


def train(model, optimizer, steps):
    return [float(train_step(model, optimizer, images(i), images(HELD_OUT))) for i in steps]


def save_and_restore(state, fresh):
    path = new_folder() / "state"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, state)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, jax.tree.map(ocp.utils.to_shape_dtype_struct, fresh))


def fine_tune_nnx():
    model = Network(nnx.Rngs(0))
    graph, params = nnx.split(model)
    axes = tpgm_jax.infer_axes(lambda p, x: nnx.merge(graph, p)(x), params, images(0)[0])
    check_rows(axes, {"conv/kernel": (3,), "hidden/kernel": (1,), "head/bias": ()})
    anchor, optimizer = flat(params), make_optimizer(model)
    check_loss(train(model, optimizer, range(12)))
    check_radii(optimizer.opt_state, nnx.state(model, nnx.Param), anchor, axes)

    half = Network(nnx.Rngs(0))
    half_optimizer = make_optimizer(half)
    train(half, half_optimizer, range(6))
    resumed = Network(nnx.Rngs(1))
    resumed_optimizer = make_optimizer(resumed)
    both = (resumed, resumed_optimizer)
    nnx.update(both, save_and_restore(nnx.state((half, half_optimizer)), nnx.state(both)))
    tpgm_jax.check_state(resumed_optimizer.opt_state, nnx.state(resumed, nnx.Param))
    train(resumed, resumed_optimizer, range(6, 12))
    check_equal(nnx.state(both), nnx.state((model, optimizer)))


class LinenNetwork(linen.Module):
    """The same network."""

    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Conv(6, (3, 3), strides=2, name="conv")(x)).reshape(len(x), -1)
        return linen.Dense(4, name="head")(linen.relu(linen.Dense(12, name="hidden")(x)))


def fine_tune_linen():
    network = LinenNetwork()
    params = network.init(jax.random.key(0), images(0)[0])["params"]
    tx = tpgm_jax.ftp(optax.adam(1e-2))

    def initial():
        from flax.training.train_state import TrainState

        return TrainState.create(apply_fn=network.apply, params=params, tx=tx)

    @jax.jit
    def step(state, batch):
        def loss(params):
            return cross_entropy(state.apply_fn({"params": params}, batch[0]), batch[1])

        value, grads = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=grads), value

    def train(state, steps):
        losses = []
        for i in steps:
            state, value = step(state, images(i))
            losses.append(float(value))
        return state, losses

    axes = tpgm_jax.infer_axes(lambda p, x: network.apply({"params": p}, x), params, images(0)[0])
    state, losses = train(initial(), range(12))
    check_loss(losses)
    check_radii(state.opt_state, state.params, flat(params), axes)
    half, _ = train(initial(), range(6))
    resumed = save_and_restore(half, half)
    check_equal(train(resumed, range(6, 12))[0], state)


if __name__ == "__main__":
    fine_tune_nnx()
    fine_tune_linen()
