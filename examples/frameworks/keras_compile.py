"""Trains a Keras 3 model (JAX backend) with `compile(optimizer=...)` and `fit`, and resumes."""

import os

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np
import optax

import tpgm_jax
from examples.frameworks.checks import (
    check_equal,
    check_loss,
    check_radii,
    check_rows,
    flat,
    images,
    new_folder,
)


# [page]
class OptaxOptimizer(keras.optimizers.Optimizer):
    """An optax transformation for `compile`, on the JAX backend.

    `clipnorm`, `weight_decay` and the like have no effect: put them into the transformation.
    """

    def __init__(self, tx, name="optax"):
        super().__init__(learning_rate=0.0, name=name)  # `tx` has its own
        self.tx = tx

    def build(self, variables):
        super().build(variables)
        # The anchor is the value of the weights now, when `fit` or `build` is called first.
        leaves, self._structure = jax.tree.flatten(self.tx.init(values(variables)))
        self._leaves = [
            self.add_variable(x.shape, lambda *_, x=x, **__: x, dtype=x.dtype, name=f"leaf_{i}")
            for i, x in enumerate(leaves)
        ]

    @property
    def opt_state(self):
        """The optimizer state, for `tpgm_jax.radii` and `tpgm_jax.report`."""
        return self._structure.unflatten([leaf.value for leaf in self._leaves])

    def apply(self, grads, trainable_variables=None):
        variables = trainable_variables or self._trainable_variables
        grads = {v.path: g for v, g in zip(variables, grads, strict=True)}
        updates, state = self.tx.update(grads, self.opt_state, values(variables))
        for variable in variables:
            variable.assign_add(updates[variable.path])
        for leaf, value in zip(self._leaves, jax.tree.leaves(state), strict=True):
            leaf.assign(value)
        self._iterations.assign_add(1)


def values(variables):
    return {variable.path: variable.value for variable in variables}


# [/page]


def make_model():
    """Images `[n, 8, 8, 1]` to logits `[n, 4]`."""
    keras.utils.clear_session()  # or a second model's variables have other names
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(6, 3, strides=2, activation="relu", name="conv"),
            keras.layers.Flatten(name="flatten"),
            keras.layers.Dense(12, activation="relu", name="hidden"),
            keras.layers.Dense(4, name="head"),
        ]
    )


def inferred_axes(model):
    """Rows of the trainable variables, read off one call of the model."""
    paths = [variable.path for variable in model.trainable_variables]
    others = [variable.value for variable in model.non_trainable_variables]

    def forward(params, x):
        return model.stateless_call([params[path] for path in paths], others, x)[0]

    return tpgm_jax.infer_axes(forward, values(model.trainable_variables), images(0)[0])


class Batches(keras.utils.PyDataset):
    """The batches from `first` to `first + 5`."""

    def __init__(self, first):
        super().__init__()
        self.first = first

    def __len__(self):
        return 5

    def __getitem__(self, i):
        return images(self.first + i)


def compiled(axes):
    model = make_model()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    tx = tpgm_jax.ftp(optax.adam(1e-2), axes=axes)
    model.compile(optimizer=OptaxOptimizer(tx), loss=loss)
    return model


def train(model, epochs):
    fitted = [model.fit(Batches(5 * i), verbose=0, shuffle=False).history for i in epochs]
    return [epoch["loss"][0] for epoch in fitted]


def main():
    model = make_model()
    axes = inferred_axes(model)
    rows = {"conv/kernel": (3,), "hidden/kernel": (1,), "head/bias": ()}
    check_rows(axes, {f"sequential/{name}": axis for name, axis in rows.items()})

    model = compiled(axes)
    anchor = flat(values(model.trainable_variables))
    check_loss(train(model, range(6)))
    check_radii(model.optimizer.opt_state, values(model.trainable_variables), anchor, axes)

    folder = new_folder()
    half = compiled(axes)
    train(half, range(3))
    half.save_weights(folder / "half.weights.h5")
    resumed = compiled(axes)
    resumed.optimizer.build(resumed.trainable_variables)  # or there is nothing to load into
    resumed.load_weights(folder / "half.weights.h5")
    params = values(resumed.trainable_variables)
    tpgm_jax.check_state(resumed.optimizer.opt_state, params)
    train(resumed, range(3, 6))
    check_equal(values(resumed.trainable_variables), values(model.trainable_variables))
    check_equal(resumed.optimizer.opt_state, model.optimizer.opt_state)
    x = images(0)[0]
    np.testing.assert_array_equal(resumed.predict(x, verbose=0), model.predict(x, verbose=0))


if __name__ == "__main__":
    main()
