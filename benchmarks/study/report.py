"""Tables and figures of `docs/study.md` and `docs/results.md`, from the CSVs alone.

    python -m benchmarks.study.report

In a page, a table follows a comment with its name, such as `<!-- mlp reused: set by set -->`.
"""

import argparse
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from benchmarks.study import cells, figures, summary, tables
from docs.figures.draw import save
from examples.digits.storage import write_whole

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "benchmarks" / "results" / "robustness.csv"
ID_OOD = {"": ("id", summary.OOD)}


def main(docs: Path = ROOT / "docs") -> None:
    rows = summary.read(RECORDED)
    curves = summary.curves(rows)
    drawn = {
        "rates": partial(figures.over_rates, curves),
        "id_ood": partial(figures.against_each_other, curves),
        "radii": partial(figures.radii, scenario("radii")),
    }
    for name, draw in drawn.items():
        save(draw, docs / "study", name)
    made = all_tables(summary.tuned(rows), curves)
    for page in (docs / "study.md", docs / "results.md"):
        text = filled(page.read_text(), made)
        write_whole(page, lambda file, x=text: file.write(x.encode()))


def scenario(name: str) -> summary.Frame:
    return summary.read(RECORDED.with_name(f"robustness_{name}.csv"))


def all_tables(tuned: summary.Frame, curves: summary.Frame) -> dict[str, str]:
    """All tables, by name."""
    of_tasks = {"": ("accuracy", "forgetting"), ", of two": ("told", "told_forgetting")}
    made = {
        "summary": tables.summary(tuned, curves),
        "targets": tables.targets(tuned, curves),
        "few labels": tables.scenario(scenario("few_labels"), "labels", {" labels": ID_OOD[""]}),
        "continual": tables.scenario(scenario("continual"), "learning_rate", of_tasks),
        "segmentation": tables.scenario(scenario("segmentation"), "learning_rate", ID_OOD),
        "exploration": tables.exploration(scenario("exploration")),
        "defaults": tables.defaults(scenario("exploration")),
    }
    for model in cells.MODELS:
        made[f"{model} reused: rates"] = tables.over_rates(curves.loc[model])
        for head in ("reused", "new"):
            runs = tuned.loc[model, head]
            made[f"{model} {head}: chosen"] = tables.at_the_choice(runs)
            made[f"{model} {head}: differences"] = tables.over_baselines(runs)
            made[f"{model} {head}: set by set"] = tables.each_set(runs)
    return made


def filled(page: str, made: Mapping[str, str]) -> str:
    """The page's text with the tables under their names replaced."""
    table = re.compile(r"(<!-- ([\w :]+) -->\n\n)(?:\|.*\n)+")
    return table.sub(lambda match: f"{match[1]}{made[match[2]]}\n", page)


if __name__ == "__main__":
    argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0]).parse_args()
    main()
