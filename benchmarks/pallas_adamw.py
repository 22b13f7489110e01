"""A trial: AdamW, displacement, row norms and projection of one tensor in one Pallas kernel.

Compiled for an H100 without a GPU; prints the traffic of the whole FTP step in copies of the
tensor, if the kernel writes the new weights, and if it writes updates for `apply_updates`. With
`--check` the kernel runs in interpreter mode and is compared with the formulas.

    .venv-gpu/bin/python -m benchmarks.pallas_adamw
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from benchmarks import gpus, kernels

INPUTS, ROWS = 768, 3072  # a row is a column of the kernel
BLOCK, STEP = 32, 32  # rows of one program, and inputs that it loads at once
SHAPE = (INPUTS, ROWS)
B1, B2, EPS, DECAY = 0.9, 0.999, 1e-8, 1e-4


def adamw(g: Any, m: Any, v: Any, w: Any, rate: Any, t: Any) -> tuple[Any, Any, Any]:
    """New moments, and the update."""
    m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g**2
    direction = (m / (1 - B1**t)) / (jnp.sqrt(v / (1 - B2**t)) + EPS)
    return m, v, -rate * (direction + DECAY * w)


def fused(numbers: Any, *arrays: Any, updates: bool, interpret: bool = False) -> Any:
    """`m, v, c` and `W'` or `W' - W`, from rate, radius and step, and `g, m, v, W, W0`."""

    def body(numbers, g, m, v, w, w0, m_new, v_new, c_new, out):
        rate, radius, t = numbers[0], numbers[1], numbers[2]

        def move(i, norm):
            at = (pl.ds(i * STEP, STEP), slice(None))
            m_new[at], v_new[at], u = adamw(g[at], m[at], v[at], w[at], rate, t)
            c = w[at] - w0[at] + u
            c_new[at] = c
            return norm + jnp.sum(jnp.abs(c), axis=0)

        n = jax.lax.fori_loop(0, INPUTS // STEP, move, jnp.zeros(BLOCK)) + EPS
        ratio = jnp.minimum(1, radius / n)

        def project(i, nothing):
            at = (pl.ds(i * STEP, STEP), slice(None))
            new = w0[at] + ratio * c_new[at]
            out[at] = new - w[at] if updates else new
            return nothing

        jax.lax.fori_loop(0, INPUTS // STEP, project, 0)

    block = pl.BlockSpec((INPUTS, BLOCK), lambda j: (0, j))
    return pl.pallas_call(
        body,
        grid=(ROWS // BLOCK,),
        in_specs=[pl.BlockSpec((4,), lambda j: (0,)), *[block] * 5],
        out_specs=[block] * 4,
        out_shape=[jax.ShapeDtypeStruct(SHAPE, jnp.float32)] * 4,
        input_output_aliases={2: 0, 3: 1} | ({} if updates else {4: 3}),
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
    )(numbers, *arrays)


def traffic(updates: bool) -> float:
    """Copies of the tensor that a step reads and writes."""

    def step(w, state, g, r):
        m, v, w0, c, n, t = state
        h = jnp.sum(g * c / n)
        finite = jnp.isfinite(h)
        rate, r = jnp.where(finite, 1e-4, 0.0), jnp.where(finite, r - 1e-2 * jnp.sign(h), 0.0)
        numbers = jnp.stack([rate, r, t, 0.0])
        m, v, c, out = fused(numbers, g, m, v, w, w0, updates=updates)
        return w + out if updates else out, (m, v, w0, c, n, t + 1)

    sharding = gpus.sharding_on("h100")
    w, n, t = (
        jax.ShapeDtypeStruct(x, jnp.float32, sharding=sharding) for x in (SHAPE, (1, ROWS), ())
    )
    compiled = jax.jit(step, donate_argnums=(0, 1)).trace(w, (w, w, w, w, n, t), w, t)
    found = kernels.kernels(compiled.lower().compile().as_text() or "")
    return sum(x.read + x.written for x in found) / (4 * INPUTS * ROWS)


def largest_difference() -> float:
    """Between the kernel and the formulas."""
    rng = np.random.default_rng(0)
    g, m, w, w0 = (rng.normal(0, 1e-2, SHAPE).astype(np.float32) for _ in range(4))
    v = np.abs(rng.normal(0, 1e-4, SHAPE)).astype(np.float32)
    rate, radius, t = 1e-4, 0.5, 3.0
    numbers = jnp.array([rate, radius, t, 0], jnp.float32)
    received = fused(numbers, g, m, v, w, w0, updates=False, interpret=True)
    m, v, u = adamw(g, m, v, w, rate, t)
    c = w - w0 + u
    projected = w0 + jnp.minimum(1, radius / (jnp.abs(c).sum(0) + EPS)) * c
    pairs = zip(received, (m, v, c, projected), strict=True)
    return max(float(jnp.abs(a - b).max()) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="run it, and compile nothing")
    if parser.parse_args().check:
        print(f"largest difference from the formulas: {largest_difference():.1e}")
        return
    for updates, what in ((False, "new weights"), (True, "updates")):
        print(f"the kernel writes {what}: {traffic(updates):.2f} copies")


if __name__ == "__main__":
    main()
