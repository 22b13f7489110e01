"""Fine-tunes a decoder on all devices of all processes, and resumes after a kill.

On one CPU:

    python -m examples.pod_finetune

As two processes with four virtual devices each:

    export JAX_NUM_CPU_DEVICES=4
    for i in 0 1; do
        python -m examples.pod_finetune --coordinator localhost:8476 --processes 2 --process $i &
    done; wait

On a pod, the same on every host:

    python -m examples.pod_finetune --distributed --output gs://bucket/run

The same command again resumes from the latest checkpoint. See `docs/pods.md`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from examples.pod import data, reporting, sharding
from examples.pod.checkpoints import Checkpoints
from examples.pod.loop import Batch, Logging, train
from examples.pod.options import join, make_parser
from examples.pod.options import settings as make_settings
from examples.pod.settings import Refused, Settings
from examples.pod.training import compiled, make_evaluation, optimizer

PRETRAINING_RATE = 1e-2
EVALUATION_BATCHES = 4


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the program; returns losses by moment and data, and radii by name.

    Args:
        arguments: command-line arguments. Default: `sys.argv`.
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    settings = make_settings(options)
    try:
        join(options)
        settings.check(jax.device_count())
        reporting.check_tensorboard(options.tensorboard)
        mesh = sharding.mesh()
        with jax.set_mesh(mesh):
            return run(options, settings, mesh)
    except Refused as error:
        parser.error(str(error))


def run(options: argparse.Namespace, settings: Settings, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Pre-trains, fine-tunes, and reports."""
    # Pre-train on bytes from 128 only, so that texts in ASCII are as new to the model as the new
    # language.
    old: data.Source = data.Languages(range(4, 8), settings.seed)
    new: data.Source = data.Languages(range(1), settings.seed)
    if settings.text:
        new = data.Text(Path(settings.text), settings.length, settings.seed)
    shape = settings.batch, settings.length
    batches: dict[str, Batch] = {
        "fine-tuning data": lambda split, step: data.batch(new, split, step, shape, mesh),
        "pre-training data": lambda split, step: data.batch(old, split, step, shape, mesh),
    }
    evaluation = make_evaluation(settings)

    def losses(params: optax.Params) -> dict[str, float]:
        tests = range(EVALUATION_BATCHES)
        return {
            name: float(np.mean([evaluation(params, batch("test", i)) for i in tests]))
            for name, batch in batches.items()
        }

    params = pretrained(options, settings, mesh, batches["pre-training data"])
    found = {"before fine-tuning": losses(params)}

    tx = optimizer(settings.method, settings.learning_rate, settings.steps, settings.every)
    program = compiled(settings, tx, mesh)
    folder = f"{options.output}/{settings.method}"
    with Checkpoints(folder, settings.all(), options.save_every) as checkpoints:
        state = train(
            "fine-tuning",
            program,
            start=lambda: params,
            batch=batches["fine-tuning data"],
            steps=settings.steps,
            checkpoints=checkpoints,
            logging=Logging(options.log_every, options.tensorboard),
        )
    found["after"] = losses(state.params)
    radii = reporting.radii(state)

    reporting.say(f"devices: {jax.device_count()}, processes: {jax.process_count()}")
    reporting.say(reporting.memory(program.abstract))
    reporting.say(reporting.table(found))
    reporting.say(reporting.lines(radii))
    return {"losses": found, "radii": radii}


def pretrained(
    options: argparse.Namespace, settings: Settings, mesh: jax.sharding.Mesh, batch: Batch
) -> optax.Params:
    """Pre-trained parameters: from `--pretrained`, or trained with AdamW and saved."""
    steps = settings.pretraining_steps
    program = compiled(settings, optimizer("none", PRETRAINING_RATE, steps), mesh)
    if options.pretrained:
        with Checkpoints(options.pretrained, settings.model()) as checkpoints:
            return checkpoints.restore_params(program.abstract.params)
    folder = f"{options.output}/pretrained"
    with Checkpoints(folder, settings.pretraining(), options.save_every) as checkpoints:
        if checkpoints.latest() == steps:
            return checkpoints.restore_params(program.abstract.params)
        logging = Logging(options.log_every, options.tensorboard)
        return train(
            "pre-training", program, program.fresh, batch, steps, checkpoints, logging
        ).params


if __name__ == "__main__":
    main()
