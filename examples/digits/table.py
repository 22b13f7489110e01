"""The results as a table for the terminal."""

from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from examples.digits.methods import LABELS
from examples.digits.summary import GROUPS, percent, spread

# With line breaks, so that the table fits into 80 columns.
HEADINGS = {"validation": "vali-\ndation", "handwritten": "hand-\nwritten"}


def table(results: dict[str, Any]) -> Table:
    """One row for each method and learning rate, accuracies in per cent."""
    repeats = results["settings"]["repeats"]
    over = "Mean over the sets in brackets"
    if repeats > 1:
        over += f", ± standard deviation over {repeats} orders of the batches"
    made = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title="Accuracy in %, fine-tuned on handwritten digits",
        caption=(
            f"{over}, from one pre-trained network.\n"
            "*: the learning rate with the method's best validation accuracy; of equals the "
            "smallest.\nhandwritten: test digits of the training distribution. style: other "
            "polarity, background, font.\ncorruption: noise, rotation, blur and such."
        ),
        caption_justify="left",
    )
    made.add_column("method", no_wrap=True)
    made.add_column("learning\nrate", justify="right", no_wrap=True)
    for group, sets in GROUPS.items():
        heading = HEADINGS.get(group, f"{group}\n({len(sets)})")
        made.add_column(heading, justify="right", no_wrap=True)
    zero_shot = [f"{percent(results['zero_shot'], group)[0]:.1f}" for group in GROUPS]
    made.add_row("zero-shot", "", *zero_shot, end_section=True)
    for name, entries in results["methods"].items():
        for i, entry in enumerate(entries):
            made.add_row(
                LABELS[name] if i == 0 else "",
                f"{'* ' if entry['chosen'] else ''}{entry['learning_rate']:g}",
                *(_cell(percent(entry["accuracy"], group)) for group in GROUPS),
                end_section=entry is entries[-1],
            )
    return made


def _cell(values: np.ndarray) -> str:
    """The mean, and the spread if there is one."""
    deviation = spread(values)
    return f"{values.mean():.1f}" + ("" if deviation is None else f"±{deviation:.1f}")
