"""`ftp(memory="compact")` learns the same as `memory="full"`, with one parameter-sized array less.

The same fine-tuning with both, on the demo's digits, over several orders of the batches. Runs drift
apart when they round differently, so the control is "full" with each batch reversed: the same sums
except for their last bits. It also measures when a collapsed radius recovers.

    python -m benchmarks.compact_memory --output results/compact_memory.json
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from tqdm import tqdm

import tpgm_jax
from examples.digits.data import Digits, Split, generator, load
from examples.digits.experiment import accuracies
from examples.digits.models import MLP, Apply, cross_entropy
from examples.digits.printed import printed_set
from examples.digits.settings import Settings, fast
from examples.digits.storage import write_whole
from examples.digits.summary import percent
from examples.digits.training import shuffled

SIZES = Settings(repeats=16, learning_rates=(3e-3,), steps=600, pretraining_steps=1000)
Memory = Literal["full", "compact"]
FULL, COMPACT = {"memory": "full"}, {"memory": "compact"}
GROUPS = {"ID": "handwritten", "OOD": "all shifts"}

# Steps of the recovery: outwards, from OUT on back to the anchor, from BACK on outwards again.
OUT, BACK, END = 30, 120, 180


class Case(NamedTuple):
    """A network, its pre-trained parameters, and the two sets of `ftp` options to compare."""

    apply: Apply
    anchor: optax.Params
    full: Mapping[str, Any] = FULL
    compact: Mapping[str, Any] = COMPACT


class ConvNet(nn.Module):
    """Three convolutions with GroupNorm."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images[..., None]
        for i, (width, stride) in enumerate(((16, 2), (32, 2), (32, 1)), start=1):
            x = nn.Conv(width, (3, 3), strides=stride, name=f"conv_{i}")(x)
            x = nn.relu(nn.GroupNorm(4, name=f"norm_{i}")(x))
        return nn.Dense(10, name="head")(x.reshape(len(x), -1))


class ViT(nn.Module):
    """Two blocks over 16 patches of 4 by 4, 64 wide."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        patches = images.reshape(-1, 4, 4, 4, 4).swapaxes(2, 3).reshape(-1, 16, 16)
        x = nn.Dense(64, name="patches")(patches)
        x += self.param("positions", nn.initializers.normal(0.02), (1, 16, 64))
        for i in (1, 2):
            y = nn.LayerNorm(name=f"norm_{i}a")(x)
            x += nn.MultiHeadDotProductAttention(4, name=f"attention_{i}")(y)
            y = nn.Dense(128, name=f"up_{i}")(nn.LayerNorm(name=f"norm_{i}b")(x))
            x += nn.Dense(64, name=f"down_{i}")(nn.gelu(y))
        return nn.Dense(10, name="head")(nn.LayerNorm(name="norm")(x).mean(axis=1))


def stacked(params: Any) -> optax.Params:
    """The MLP's parameters with its three equal layers in one tensor."""
    layers = dict(params["params"])
    equal = [layers.pop(f"layer_{i}") for i in (2, 3, 4)]
    return {"params": layers | {"layers": jax.tree.map(lambda *x: jnp.stack(x), *equal)}}


def apply_stacked(params: Any, images: jax.Array) -> jax.Array:
    """The MLP as a scan over its equal layers."""

    def hidden(x, layer):
        return nn.relu(x @ layer["kernel"] + layer["bias"]), None

    layers = params["params"]
    x, _ = hidden(images.reshape(len(images), -1), layers["layer_1"])
    x, _ = jax.lax.scan(hidden, x, layers["layers"])
    return x @ layers["head"]["kernel"] + layers["head"]["bias"]


@cache
def make_step(apply: Apply, tx: optax.GradientTransformationExtraArgs) -> Any:
    """One jitted step, called from Python, because XLA's convolutions in a scan are slow on CPU."""

    @jax.jit
    def step(params, state, data, rows, extra):
        images, labels = (jnp.take(x, rows, axis=0) for x in data)
        grads = jax.grad(lambda p: cross_entropy(apply, p, images, labels))(params)
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    return step


def train(apply: Apply, tx: Any, params: Any, data: Split, batches: Any, bar: tqdm, **extra: Any):
    """The final parameters and state, and the radii of all steps, `[groups, steps]`."""
    step, state, radii = make_step(apply, tx), tx.init(params), []
    for rows in batches:
        params, state = step(params, state, data, rows, extra)
        radii.append(np.asarray(getattr(state, "radii", ()), float))
        bar.update()
    return params, state, np.array(radii).T


def pretrain(network: nn.Module, data: Split, sizes: Settings) -> optax.Params:
    """Adam on printed digits."""
    steps, rng = sizes.pretraining_steps, generator(0, "pre-training")
    batches = shuffled(rng, len(data.labels), steps, sizes.pretraining_batch)
    schedule = optax.cosine_decay_schedule(sizes.pretraining_learning_rate, steps)
    tx = optax.with_extra_args_support(optax.adam(schedule))
    params = network.init(jax.random.key(0), data.images[:1])
    with tqdm(total=steps, desc=f"pre-training {type(network).__name__}", unit="step") as bar:
        return jax.block_until_ready(train(network.apply, tx, params, data, batches, bar)[0])


def cases(sizes: Settings) -> Iterator[tuple[str, Case]]:
    """Cases by name. Each network is pre-trained when its first case is reached."""
    images, labels = printed_set(generator(0, "rendering"), sizes.pretraining_images)
    data = jax.device_put(Split(images.astype(np.float32) / 255, labels))
    apply, anchor = MLP().apply, pretrain(MLP(), data, sizes)
    yield "MLP", Case(apply, anchor)
    l2, axes = {"norm": "l2"}, {"axes": {".*layers/.*": tpgm_jax.Axes(layers=0)}}
    yield "MLP, l2 norm", Case(apply, anchor, FULL | l2, COMPACT | l2)
    yield "MLP, stacked", Case(apply_stacked, stacked(anchor), FULL | axes, COMPACT | axes)
    yield "MLP, bfloat16", Case(apply, jax.tree.map(lambda x: x.astype(jnp.bfloat16), anchor))
    for name, network in {"conv net": ConvNet(), "ViT": ViT()}.items():
        yield name, Case(network.apply, pretrain(network, data, sizes))
    # Compares sources of the anchor: memory is compact in both.
    yield "anchor handed in", Case(apply, anchor, COMPACT, COMPACT | {"anchor": "argument"})


def compare(name: str, case: Case, digits: Digits, sizes: Settings) -> tuple[Any, Any]:
    """The numbers of a case, and the radii of its first order by name, to draw."""
    shape = (len(digits.train.labels), sizes.steps, sizes.batch)
    orders = [shuffled(generator(0, f"train {i}"), *shape) for i in range(sizes.repeats)]
    orders, sets = np.stack(orders), {"test": digits.test, **digits.shifted}
    adam = optax.adam(optax.cosine_decay_schedule(sizes.learning_rates[0], sizes.steps))
    full, compact = (tpgm_jax.ftp(adam, **options) for options in (case.full, case.compact))
    handed = {"anchor": case.anchor} if "anchor" in case.compact else {}
    ways = {"full": (full, {}, orders), "compact": (compact, handed, orders)}
    ways["control"] = (full, {}, orders[..., ::-1])
    tuned, radii, found, start = [], {}, {}, (case.anchor, digits.train)
    with tqdm(total=len(ways) * orders[..., 0].size, desc=name, unit="step") as bar:
        for way, (tx, extra, batches) in ways.items():
            ends = [train(case.apply, tx, *start, rows, bar, **extra) for rows in batches]
            tuned += [params for params, _, _ in ends]
            radii[way] = np.stack([trajectories for _, _, trajectories in ends], axis=1)
    by_name = tpgm_jax.radii(full.init(case.anchor), case.anchor).items()
    names = [k + f"[{i}]" * np.ndim(v) for k, v in by_name for i in range(np.size(v))]
    accuracy = accuracies(case.apply, jax.tree.map(lambda *x: jnp.stack(x), *tuned), sets)
    runs = {f"{k} %": percent(accuracy, v).reshape(len(ways), -1) for k, v in GROUPS.items()}
    runs["sum of final radii"] = np.array([r[..., -1].sum(axis=0) for r in radii.values()])
    # The share of tensors and steps, without the first ten steps, because all radii start there.
    runs["collapsed %"] = 100 * np.mean([r[..., 10:] < 2e-8 for r in radii.values()], axis=(1, 3))
    for key, (a, b, c) in runs.items():
        shown = {"full": a, "compact": b, "compact - full": b - a, "control - full": c - a}
        found |= {f"{key}, {what}": estimate(x) for what, x in shown.items()}
    # For scale: runs on other batches, whose radii are just as right.
    radii["next order"], old = np.roll(radii["full"], 1, axis=1), radii["full"]
    for way in ("compact", "control", "next order"):
        apart = 100 * abs(radii[way] - old).max(axis=-1)
        found[f"radii apart, % of own, {way}"] = estimate(np.median(apart / old.max(-1), axis=0))
        found[f"radii apart, % of largest, {way}"] = estimate(apart.max(0) / old.max((0, 2)))
    found["runs, full, compact, control"] = {key: x.tolist() for key, x in runs.items()}
    pairs = zip(names, old[:, 0], radii["compact"][:, 0], strict=True)
    return found, {name.removeprefix("params/"): drawn for name, *drawn in pairs}


def estimate(values: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


def recovery(memory: Memory, dtype: str, rest: bool, replayed: Any = None) -> tuple[Any, Any]:
    """The radius of one tensor, and its gradients, at every step.

    On the way back the gradients are the slopes of the rows' distances to the anchor (0 at the
    anchor). Or they are `replayed`, or constant while SGD is at `rest`, with a learning rate of 0.
    """
    with jax.enable_x64(dtype == "float64"):
        numbers = np.random.default_rng(0).normal(size=(2, 16, 8))
        anchor, out = jnp.asarray(numbers[0], dtype), jnp.asarray(numbers[1] / 10, dtype)
        rates = jnp.full(END, 0.1).at[OUT:BACK].multiply(1 - rest)
        tx = tpgm_jax.ftp(optax.sgd(lambda t: rates[jnp.asarray(t)]), memory=memory)
        update, w, state, radii, gradients = jax.jit(tx.update), anchor, tx.init(anchor), [], []
        for t in range(END):
            d = w - anchor
            pull = out if rest else d / jnp.maximum(jnp.linalg.norm(d, axis=0), 1e-30)
            g = pull if OUT <= t < BACK else -out
            gradients.append(np.asarray(g if replayed is None else replayed[t], dtype))
            updates, state = update(jnp.asarray(gradients[-1]), state, w)
            w += updates
            radii.append(float(state.radii[0]))
    return np.array(radii), gradients


def recoveries() -> tuple[dict[str, Any], dict[str, Any]]:
    """When a radius recovers above 1e-7, with full and compact memory; and radii to draw."""
    given, found, drawn = recovery("full", "float64", False)[1], {}, {}
    hows = {"own gradients": (False, None), "replayed": (False, given), "SGD at rest": (True, None)}
    for problem, how in hows.items():
        for dtype in ("float64", "float32"):
            pair = [recovery(memory, dtype, *how)[0] for memory in ("full", "compact")]
            again = [next((t for t in range(BACK, END) if r[t] > 1e-7), None) for r in pair]
            found[f"{problem}, {dtype}"] = again
            drawn.setdefault(dtype, pair)
    return found, drawn


def figure(panels: Mapping[str, Any]) -> Figure:
    """Radii against the step, at most five to a panel, from the largest to the smallest."""
    made = Figure(figsize=(11, 14), dpi=110, layout="constrained")
    made.suptitle("Radii: full memory solid, compact dashed (anchor handed in: both compact)")
    for axes, (title, radii) in zip(made.subplots(4, 2).flat, panels.items(), strict=True):
        names = sorted(radii, key=lambda name: -radii[name][0].max())
        chosen = np.linspace(0, len(names) - 1, min(len(names), 5)).astype(int)
        for colour, i in enumerate(chosen):
            full, compact = radii[names[i]]
            axes.plot(full, color=f"C{colour}", lw=4, alpha=0.35, label=names[i])
            axes.plot(compact, color=f"C{colour}", lw=1.5, ls=(3.5 * colour, (4, 3)))
        norm = "l2" if "l2" in title else "mars"
        axes.set(title=title, xlabel="step", ylabel=f"radius, in units of the {norm} norm")
        axes.legend(fontsize=8, frameon=False)
        axes.grid(alpha=0.3)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--fast", action="store_true", help="a rehearsal; the numbers mean nothing")
    parser.add_argument("--output", type=Path, default=Path("results/compact_memory.json"))
    options = parser.parse_args()
    jax.config.update("jax_disable_most_optimizations", options.fast)  # else it only compiles
    sizes, found, panels = replace(fast(0), repeats=2) if options.fast else SIZES, {}, {}
    started, digits = time.perf_counter(), jax.device_put(load(0))
    for name, case in cases(sizes):
        found[name], panels[name] = compare(name, case, digits, sizes)
    again, panels[f"a radius that collapses; gradients turn at step {BACK}"] = recoveries()

    machine = f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}"
    results = {"fast": options.fast, "machine": machine, "jax": jax.__version__}
    results |= {"seconds": round(time.perf_counter() - started), "settings": asdict(sizes)}
    results |= {"cases": found, "recovery, full and compact": again, "turn": BACK}
    text, picture = json.dumps(results, indent=1), figure(panels)
    write_whole(options.output, lambda file: file.write(text.encode()))
    write_whole(options.output.with_suffix(".png"), picture.savefig)

    print("".join(x.rjust(18) for x in ("", "", *found)))
    for key in list(found["MLP"])[:-1]:
        print(key.ljust(36), *("{:10.3f} ± {:.3f}".format(*x[key]) for x in found.values()), sep="")
    for problem, steps in again.items():
        print(f"gradients turn at step {BACK}, {problem}: full and compact recover at", *steps)
    print(f"{results['seconds']} s on {machine}, jax {jax.__version__}; also in {options.output}")


if __name__ == "__main__":
    main()
