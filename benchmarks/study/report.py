"""Tables and figures of `docs/study.md`, from the CSV alone.

    python -m benchmarks.study.report           all sets, as every choice is made
    python -m benchmarks.study.report --open    without those that nothing is chosen by

The page's own text is kept; what stands between two markers is replaced:

    <!-- tables -->
    <!-- end of tables -->
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.study import cells, figures, plan, scenarios, tables
from benchmarks.study.cells import COLUMNS
from benchmarks.study.records import read
from benchmarks.study.runs import RADII_COLUMNS
from benchmarks.study.summary import Groups, Study, groups
from examples.digits.storage import write_whole

ROOT = Path(__file__).parents[2]
START, END = "<!-- tables -->", "<!-- end of tables -->"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--open", action="store_true", help="leave the held-back sets out")
    parser.add_argument("--fast", action="store_true", help="the CSV is a rehearsal's")
    results = ROOT / "benchmarks" / "results" / "robustness.csv"
    parser.add_argument("--input", type=Path, default=results, help="the study's CSV")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "study.md")
    options = parser.parse_args(arguments)
    shown = groups(hidden=not options.open)
    study = Study(read(options.input, COLUMNS), plan.FAST if options.fast else plan.Scope())
    pictures = options.page.with_suffix("")
    drawn = {
        "rates": figures.over_rates(study, shown),
        "id_ood": figures.against_each_other(study, shown),
    }
    of_radii = options.input.with_name(f"{options.input.stem}_radii.csv")
    rows = read(of_radii, RADII_COLUMNS) if of_radii.exists() else []
    if rows:
        drawn["radii"] = figures.radii(rows)
    for name, picture in drawn.items():
        write_whole(pictures / f"{name}.png", lambda file, p=picture: p.savefig(file, format="png"))
    further = scenarios.sections(options.input, shown)
    made = "\n\n".join([*sections(study, shown), *further, *_shown(drawn, pictures.name)])
    fill(options.page, made)
    # The page of all results has a table of its own, between the same markers.
    results = options.page.parent / "results.md"
    if results.exists():
        fill(results, tables.summary(study, shown))
    print(f"{options.page}: {len(study.rows)} rows")


def fill(page: Path, made: str) -> None:
    """Puts `made` between the page's markers."""
    before, _, rest = page.read_text().partition(START)
    after = rest.partition(END)[2]
    whole = f"{before}{START}\n\n{made}\n\n{END}{after}"
    write_whole(page, lambda file: file.write(whole.encode()))


def sections(study: Study, shown: Groups) -> list[str]:
    """Headings and tables."""
    tuning = sum(key.seed in cells.TUNING_SEEDS for key in study.rows)
    made = [f"Made from {len(study.rows)} rows of the CSV; {tuning} rows are of the tuning seeds."]
    if any("recommended" in study.methods(model, "reused") for model in cells.MODELS):
        made += ["### What is recommended, against the targets", tables.targets(study, shown)]
    for model in cells.MODELS:
        if study.methods(model, "reused"):
            made += [
                f"### {tables.MODEL_LABELS[model]}, reused head",
                "At the setting that validation chose:",
                tables.tuned(study, model, "reused", shown),
                "ID / OOD at every learning rate:",
                tables.curves(study, model, shown),
                "Points above the tuned baselines, at equal seeds, with 95 % intervals:",
                tables.differences(study, model, "reused", shown),
                "Set by set:",
                tables.each_set(study, model, "reused", shown),
            ]
    for model in cells.MODELS:
        if study.methods(model, "new"):
            made += [
                f"### {tables.MODEL_LABELS[model]}, new head",
                "At the setting that validation chose:",
                tables.tuned(study, model, "new", shown),
                "Points above the tuned baselines, at equal seeds, with 95 % intervals:",
                tables.differences(study, model, "new", shown),
                "Set by set:",
                tables.each_set(study, model, "new", shown),
            ]
    return made


def _shown(drawn: Iterable[str], folder: str) -> list[str]:
    titles = {
        "rates": "Accuracy over the learning rate, of ID what is above 85 %; shaded: one standard "
        "deviation over runs",
        "id_ood": "OOD against ID accuracy, of ID what is above 90 %; the larger the mark, the "
        "higher the learning rate",
        "radii": "Final radii, learning rate 1e-2",
    }
    return [f"![{titles[name]}]({folder}/{name}.png)\n\n*{titles[name]}.*" for name in drawn]


if __name__ == "__main__":
    main()
