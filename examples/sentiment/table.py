"""The results as a table for the terminal."""

from typing import Any

from rich import box
from rich.table import Table

from examples.sentiment.methods import LABELS
from examples.sentiment.summary import others
from examples.sentiment.texts import DOMAINS

HEADINGS = {"movie": "movies", "amazon": "Amazon\nreviews", "nyt": "editorials", "tweets": "tweets"}


def table(results: dict[str, Any]) -> Table:
    """One row for each method and learning rate, in per cent."""
    sizes = results["sentences"]
    made = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title=f"Accuracy in %, MiniLM fine-tuned on {sizes['train']} sentences of movie reviews",
        caption=(
            f"One order of the batches; {sizes['movie']} test sentences a domain, so that "
            "differences of\n2 points in a mean of three domains can be chance. AUC: area under "
            "the ROC curve,\nmean of the three others.\n"
            "*: the learning rate with the method's best accuracy in validation, on movies alone."
        ),
        caption_justify="left",
    )
    made.add_column("method", no_wrap=True)
    made.add_column("learning\nrate", justify="right", no_wrap=True)
    headings = ["vali-\ndation", *HEADINGS.values(), "mean of\n3 others", "AUC"]
    for heading in headings:
        made.add_column(heading, justify="right", no_wrap=True)
    made.add_row("probe", "", *cells(results["probe"]), end_section=True)
    for name, entries in results["methods"].items():
        for i, entry in enumerate(entries):
            made.add_row(
                LABELS[name] if i == 0 else "",
                f"{'* ' if entry['chosen'] else ''}{entry['learning_rate']:g}",
                *cells(entry),
                end_section=entry is entries[-1],
            )
    return made


def cells(entry: dict[str, Any]) -> list[str]:
    accuracy, area = entry["accuracy"], entry["area"]
    values = [accuracy["validation"], *(accuracy[name] for name in DOMAINS)]
    return [f"{x:.1f}" for x in (*values, others(accuracy), others(area))]
