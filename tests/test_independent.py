"""A NumPy version of TPGM, written from the equations alone, against `fit_radii` and `tpgm`.

It follows the docstrings, in float64, and shares no code with the package or `reference.py`.
"""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import tpgm_jax

AXES = {r"stack/.*": tpgm_jax.Axes(layers=0), r"torch/.*": tpgm_jax.Axes(rows=0)}
# Name to shape, axes of the rows and axes of the layers.
LEAVES = {
    "attn/query/kernel": ((4, 2, 3), (1, 2), ()),
    "dense/bias": ((5,), (), ()),
    "dense/kernel": ((4, 5), (1,), ()),
    "embed/embedding": ((6, 3), (0,), ()),
    "scale": ((), (), ()),
    "stack/bias": ((3, 4), (), (0,)),
    "stack/kernel": ((3, 2, 4), (2,), (0,)),
    "torch/weight": ((5, 2), (0,), ()),
}


def nested(leaves):
    tree = {}
    for name, leaf in leaves.items():
        *modules, last = name.split("/")
        node = tree
        for module in modules:
            node = node.setdefault(module, {})
        node[last] = leaf
    return tree


def flat(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves}


def float64(leaves):
    return {name: np.asarray(leaf).astype(np.float64) for name, leaf in leaves.items()}


def rows(name, x, norm, total):
    """Sums of `x` over each row ("l2": over each layer), with axes kept."""
    _, row_axes, layer_axes = LEAVES[name]
    kept = layer_axes if norm == "l2" else layer_axes + row_axes
    return total(x, axis=tuple(i for i in range(x.ndim) if i not in kept), keepdims=True)


def norms(name, x, norm):
    if norm == "mars":
        return rows(name, np.abs(x), norm, np.sum)
    return np.sqrt(rows(name, x * x, norm, np.sum))


def by_group(arrays, reduce):
    """One number for each layer of each tensor, from one number for each row."""

    def one(name, x):
        layer_axes = LEAVES[name][2]
        return reduce(x, axis=tuple(i for i in range(x.ndim) if i not in layer_axes)).reshape(-1)

    return np.concatenate([one(name, x) for name, x in arrays.items()])


def by_name(radii, names):
    """The inverse: `radii` by name, shaped to multiply the tensors."""
    result, start = {}, 0
    for name in names:
        shape, _, layer_axes = LEAVES[name]
        count = shape[layer_axes[0]] if layer_axes else 1
        kept = [size if i in layer_axes else 1 for i, size in enumerate(shape)]
        result[name] = radii[start : start + count].reshape(kept)
        start += count
    return result


class Adam:
    """Adam with a step of 1e-2, betas 0.9 and 0.999, eps 1e-8."""

    t, m, v = 0, 0.0, 0.0

    def __call__(self, slope):
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * slope
        self.v = 0.999 * self.v + 0.001 * slope**2
        m, v = self.m / (1 - 0.9**self.t), self.v / (1 - 0.999**self.t)
        return 1e-2 * m / (np.sqrt(v) + 1e-8)


class RadiusSteps:
    """TPGM's outer loop in float64; `rounded` gives a leaf the precision that the loss sees."""

    def __init__(self, anchor, norm, sizes=1.0, rounded=lambda name, x: x):
        self.anchor, self.norm, self.sizes, self.rounded = anchor, norm, sizes, rounded
        self.adam, self.radii = Adam(), np.zeros(0)

    def project(self, candidate, displacement, n):
        radii = by_name(self.radii, displacement)
        return candidate | {
            name: self.anchor[name] + np.minimum(1, radii[name] / (n[name] + 1e-8)) * c
            for name, c in displacement.items()
        }

    def __call__(self, candidate, constrained, slopes_of_batches):
        c = {name: candidate[name] - self.anchor[name] for name in constrained}
        n = {name: norms(name, x, self.norm) for name, x in c.items()}
        largest = by_group(n, np.max)
        if not self.radii.size:
            self.radii = by_group(n, np.min) / 2
        for slopes in slopes_of_batches:
            self.radii = np.clip(self.radii, 1e-8, largest)
            projected = self.project(candidate, c, n)
            slope = slopes({name: self.rounded(name, x) for name, x in projected.items()})
            radii = by_name(self.radii, c)
            inner = {
                name: np.where(
                    radii[name] <= n[name] + 1e-8,
                    rows(name, self.rounded(name, slope[name]) * x, self.norm, np.sum),
                    0,
                )
                / (n[name] + 1e-8)
                for name, x in c.items()
            }
            gradient = by_group(inner, np.sum) * self.sizes
            self.radii = self.radii - self.sizes * self.adam(gradient)
        self.radii = np.clip(self.radii, 1e-8, largest)
        return self.project(candidate, c, n)


def parameters(rng, dtypes, scale=1.0):
    names = sorted(LEAVES)
    types = {name: dtypes[i % len(dtypes)] for i, name in enumerate(names)}
    leaves = {n: jnp.asarray(scale * rng.normal(size=LEAVES[n][0]), types[n]) for n in names}
    return leaves, types


def quadratic(rng):
    """A held-out loss of weights in float32, and its gradient in NumPy."""
    targets = {name: rng.normal(size=LEAVES[name][0]).astype(np.float32) for name in LEAVES}

    def loss(params, weight):
        apart = (x.astype(jnp.float32) - targets[name] for name, x in flat(params).items())
        return weight / 2 * sum(jnp.sum(x**2) for x in apart)

    def slopes(weight):
        return lambda params: {name: weight * (x - targets[name]) for name, x in params.items()}

    return loss, slopes


EXCLUDED = ("dense/bias", "embed/embedding")
EXCLUDES = {
    "callable": lambda path, leaf: path in EXCLUDED and leaf.shape == LEAVES[path][0],
    "tree": nested({name: name in EXCLUDED for name in LEAVES}),
}


@pytest.mark.parametrize("norm", ["mars", "l2"])
@pytest.mark.parametrize("kind", EXCLUDES)
def test_fit_radii_equals_the_equations_with_leaves_excluded_by(kind, norm):
    rng = np.random.default_rng(5)
    anchor, _ = parameters(rng, [jnp.float32])
    tuned = {
        name: x + 0.3 * rng.normal(size=x.shape).astype(np.float32) for name, x in anchor.items()
    }
    loss, slopes = quadratic(rng)
    weights = rng.uniform(size=12).astype(np.float32)

    fitted = tpgm_jax.fit_radii(
        loss, nested(tuned), nested(anchor), weights, norm=norm, exclude=EXCLUDES[kind], axes=AXES
    )
    names = [name for name in sorted(LEAVES) if name not in EXCLUDED]
    expected = RadiusSteps(float64(anchor), norm)
    projected = expected(float64(tuned), names, [slopes(float(w)) for w in weights])

    # Adam divides each gradient by the size of the earlier ones. Sums of up to 24 products in
    # float32 err by 1e-5 if half of them cancel, so 12 steps of 1e-2 err by about 1e-6.
    radii = np.concatenate([np.atleast_1d(fitted.radii[name]) for name in names])
    np.testing.assert_allclose(radii, expected.radii, rtol=0, atol=5e-6)
    for name, x in flat(fitted.params).items():
        np.testing.assert_allclose(x, projected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", ["mars", "l2"])
def test_radii_of_mixed_dtypes_differ_from_float64_by_what_bfloat16_rounds(norm):
    rng = np.random.default_rng(7)
    params, types = parameters(rng, [jnp.bfloat16, jnp.float32])
    loss, slopes = quadratic(rng)
    tx = tpgm_jax.tpgm(optax.identity(), norm=norm, axes=AXES)

    @jax.jit
    def step(params, state, given, weight):
        updates, state = tx.update(given, state, params, held_out_loss=loss, held_out_batch=weight)
        return optax.apply_updates(params, updates), state

    def rounded(name, x):
        dtype = ml_dtypes.bfloat16 if types[name] == jnp.bfloat16 else np.float32
        return np.asarray(x).astype(dtype).astype(np.float64)

    weights = float64(params)
    alone = RadiusSteps(weights, norm)  # in float64 throughout
    emulated = RadiusSteps(weights, norm, rounded=rounded)
    exact, low, names = dict(weights), dict(weights), sorted(LEAVES)
    params = nested(params)
    state = tx.init(params)
    apart = []
    for _ in range(6):
        given = {n: jnp.asarray(0.05 * rng.normal(size=LEAVES[n][0]), types[n]) for n in names}
        weight = np.float32(rng.uniform())
        params, state = step(params, state, nested(given), weight)
        given = float64(given)
        exact = alone({n: exact[n] + given[n] for n in names}, names, [slopes(weight)])
        projected = emulated({n: low[n] + given[n] for n in names}, names, [slopes(weight)])
        # The update is rounded, and then the sum of it and the weight.
        low = {n: rounded(n, low[n] + rounded(n, projected[n] - low[n])) for n in names}
        apart.append((emulated.radii - state.radii, alone.radii - state.radii))
    from_emulation, from_exact = np.abs(np.array(apart)).max(axis=(0, 2))
    # A weight between 1 and 2 is rounded by up to 2^-8, so radii clipped at a largest norm move by
    # about as much: a sixteenth of it is a sign that roundings matter here. With the same roundings
    # little is left, from sums in float32 that fall on the other side of a tie in bfloat16.
    assert from_exact > 2**-12
    assert from_emulation < from_exact / 5, (from_emulation, from_exact)


@pytest.mark.parametrize(("value", "error"), [(np.nan, ValueError), (1 + 2j, TypeError)])
def test_init_refuses_importances_that_are_not_finite_numbers(value, error):
    params = {"w": jnp.ones(3)}
    tx = tpgm_jax.add_anchor_decay(1.0, importance={"w": jnp.array([1.0, value, 1.0])})
    with pytest.raises(error, match="`importance` has 'w' with"):
        tx.init(params)


def test_schedules_and_every_do_not_count_skipped_steps():
    params, seen = {"kernel": jnp.ones((2, 2))}, []

    def k(step):
        seen.append(int(step))
        return 1.0

    ftp = tpgm_jax.ftp(optax.sgd(0.1), k=k)
    tpgm = tpgm_jax.tpgm(optax.sgd(0.1), every=2)
    ftp_state, tpgm_state, counts = ftp.init(params), tpgm.init(params), []
    seen.clear()  # `init` checks the first value
    with jax.disable_jit():
        for slope in (1.0, np.nan, 1.0, 1.0):
            grads = {"kernel": jnp.full((2, 2), slope)}
            _, ftp_state = ftp.update(grads, ftp_state, params)
            _, tpgm_state = tpgm.update(
                grads, tpgm_state, params, held_out_loss=lambda p: jnp.sum(p["kernel"] ** 2)
            )
            counts.append(int(optax.tree.get(tpgm_state, "count")))
    assert seen == [0, 1, 1, 2]
    assert counts == [1, 1, 1, 2]


def test_a_concrete_anchor_may_be_set_under_jit():
    params = {"kernel": jnp.ones((2, 2))}
    state = tpgm_jax.ftp(optax.sgd(0.1)).init(params)
    other = {"kernel": jnp.full((2, 2), 3.0)}
    moved = jax.jit(lambda state: tpgm_jax.set_anchor(state, other))(state)
    np.testing.assert_array_equal(optax.tree.get(moved, "anchor")["kernel"], other["kernel"])
