"""An estimate of a run, without training: images, steps, memory, time."""

import math
from typing import Any

import jax

from examples.papers import methods
from examples.papers.recipes import Recipe
from examples.papers.sets import Sets
from examples.papers.training import Program, abstract_batch


def plan(recipe: Recipe, sets: Sets, steps: int, probe_steps: int) -> str:
    """Images by their role, and steps."""
    lines = [f"{name}: {value}" for name, value in recipe.settings().items()]
    lines.append(f"images to train on: {len(sets.train)}")
    if sets.held_out:
        lines.append(f"images to learn radii on: {len(sets.held_out)}")
    lines += [f"images of {name}: {len(test.images)}" for name, test in sets.tests.items()]
    lines += [f"not measured, {text}" for text in sets.missing]
    if probe_steps:
        lines.append(f"steps of the head alone: {probe_steps}")
    lines.append(f"steps: {steps}")
    if recipe.post_hoc:
        lines.append(f"radius steps after training: {recipe.post_hoc}")
    return "\n".join(lines)


def memory(recipe: Recipe, program: Program, size: int, mesh: jax.sharding.Mesh) -> str:
    """Memory on each device, from shapes and from the compiled step."""
    batch = abstract_batch(size, recipe.batch, mesh)
    held_out = batch if methods.learns_in_training(recipe) else None
    found = program.step.lower(program.abstract, batch, held_out).compile().memory_analysis()
    parts = {
        "parameters": _bytes(program.abstract.params),
        "batch statistics": _bytes(program.abstract.stats),
        "optimizer state": _bytes(program.abstract.opt_state),
        "images": _bytes((batch, held_out)),
        "activations and temporaries": found.temp_size_in_bytes,
    }
    lines = [f"  {name}: {size / 1e9:.3f} GB" for name, size in parts.items()]
    kind = jax.devices()[0].device_kind
    title = f"memory on each of {mesh.size} devices, of the step compiled for {kind}:"
    return "\n".join([title, *lines, f"  sum: {sum(parts.values()) / 1e9:.3f} GB"])


def hours(recipe: Recipe, sets: Sets, steps: float, speed: float | None) -> str:
    """Time at a measured speed.

    Args:
        recipe: the settings.
        sets: the images.
        steps: training steps. One that trains the head alone counts as a third.
        speed: of the training step, in images a second.
    """
    if not speed:
        return "time: unknown. A run shows images per second; give them with `--images-per-second`."
    # An evaluation makes no gradients, which take two thirds of a step.
    tests = sum(len(test.images) for test in sets.tests.values()) / 3
    radii = recipe.post_hoc * recipe.batch
    seconds = (steps * recipe.batch + tests + radii) / speed
    return f"time: {seconds / 3600:.1f} hours at {speed:g} images per second"


def _bytes(tree: Any) -> int:
    """On one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )
