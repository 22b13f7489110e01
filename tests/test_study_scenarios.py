"""The study's other scenarios and its exploration at their smallest size, and their tables."""

import csv

import numpy as np
import pytest

from benchmarks.study import (
    cells,
    continual,
    exploration,
    few_labels,
    scenarios,
    segmentation,
    selection,
    tables,
)
from benchmarks.study.plan import Scope
from benchmarks.study.summary import Study, difference, groups

pytestmark = pytest.mark.slow
SHOWN = groups(hidden=False)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("program", "methods", "accuracy"),
    [
        (few_labels, {"zero_shot", "finetune", "wise", "ftp"}, "id"),
        (continual, {"zero_shot", "finetune", "ftp"}, "accuracy"),
    ],
    ids=["few labels", "continual"],
)
def test_a_rehearsal_has_a_row_for_each_method_and_runs_nothing_twice(
    program, methods, accuracy, tmp_path
):
    words = ["--fast", "--output", str(tmp_path / "rows.csv"), "--cache", str(tmp_path / "cache")]
    program.main(words)
    rows = rows_of(tmp_path / "rows.csv")
    assert {row["method"] for row in rows} == methods
    assert len(rows) == len(methods)
    assert all(0 <= float(row[accuracy]) <= 100 for row in rows)
    # The methods differ even after a few steps.
    assert len({row[accuracy] for row in rows}) > 1
    program.main(words)
    assert rows_of(tmp_path / "rows.csv") == rows


def test_forgetting_is_the_loss_of_accuracy_on_earlier_tasks():
    after_each = np.array([[90.0, 0.0, 0.0], [70.0, 80.0, 0.0], [50.0, 60.0, 100.0]])
    # The final accuracies are 50, 60 and 100. The first two tasks lost 40 and 20.
    assert continual.summary(after_each) == (70.0, 30.0)


def write(path, columns, rows):
    """Writes a CSV, with 0 in place of missing values."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="0")
        writer.writeheader()
        writer.writerows(rows)


def test_tables_are_read_from_the_files_beside_the_study(tmp_path):
    study, shown = tmp_path / "robustness.csv", SHOWN
    assert scenarios.sections(study, shown) == []
    run = {"model": "mlp", "method": "ftp", "learning_rate": "0.003"}
    eight = dict.fromkeys(cells.OPEN_SHIFTS, "40")
    held_back = dict.fromkeys(cells.HELD_BACK, "99")
    write(
        tmp_path / "robustness_few_labels.csv",
        few_labels.TABLE,
        [
            run | eight | held_back | {"labels": "10", "id": "60", "seed": "0"},
            run | eight | held_back | {"labels": "10", "id": "70", "seed": "1"},
            run | eight | held_back | {"labels": "100", "id": "90", "seed": "0", "invert": "48"},
        ],
    )
    measured = {"accuracy": "50", "forgetting": "20", "told": "90", "told_forgetting": "5"}
    untrained = {"method": "zero_shot", "learning_rate": "0", "accuracy": "30", "told": "60"}
    measured_rows = [run | measured, run | untrained]
    write(tmp_path / "robustness_continual.csv", continual.COLUMNS, measured_rows)
    pixels = {k: v for k, v in run.items() if k != "model"} | eight | held_back | {"id": "80"}
    write(tmp_path / "robustness_segmentation.csv", segmentation.COLUMNS, [pixels])
    page = "\n".join(scenarios.sections(study, shown))
    # Means by hand: of 60 and 70, each 5 from the mean, so the variance is 2 * 25 / (2 - 1); and of
    # seven times 40 and once 48. Held-back sets do not count.
    assert "| MLP | FTP | 65.0 ± 7.1 / 40.0 ± 0.0 | 90.0 / 41.0 | 1 |" in page
    assert "| MLP | FTP |  |  | 50.0 / 20.0 |  |  | 90.0 / 5.0 |" in page
    assert "| MLP | zero-shot | 30.0 / 0.0 | 30.0 / 0.0 | 30.0 / 0.0 | 60.0 / 0.0 |" in page
    assert "| FTP |  | 80.0 / 40.0 |  |" in page


def test_the_exploration_evaluates_each_run_in_eight_ways_on_no_held_back_set(tmp_path):
    words = ["--fast", "--output", str(tmp_path / "rows.csv"), "--cache", str(tmp_path / "cache")]
    exploration.main(words)
    rows = rows_of(tmp_path / "rows.csv")
    assert {row["taken"] for row in rows} == {
        *("last", "last, 0.5", "last, 0.7", "last, 0.9"),
        *("mean", "mean, 0.5", "mean, 0.7", "mean, 0.9"),
    }
    assert {row["seed"] for row in rows} == {str(seed) for seed in cells.TUNING_SEEDS}
    assert not set(rows[0]) & set(cells.HIDDEN)
    exploration.main(words)
    assert rows_of(tmp_path / "rows.csv") == rows
    page = scenarios.of_candidates(rows)[-1]
    ids = [float(row["id"]) for row in rows if row["taken"] == "last"]
    assert f"| ftp | last | {np.mean(ids):.1f} / " in page
    assert [x for x in page.splitlines() if "| ftp | mean, 0.5 |" in x] == []


def test_the_table_of_targets_compares_with_the_best_of_each():
    def rows_with(method, rate, setting, seeds, **accuracies):
        fixed = {"model": "mlp", "head": "reused", "pretrain_seed": 0, "seconds": 1.0}
        for seed in seeds:
            key = {"method": method, "learning_rate": rate, "setting": setting, "seed": seed}
            every = dict.fromkeys(cells.OPEN_SHIFTS, accuracies.pop("ood", 0.0))
            hidden = dict.fromkeys(cells.HIDDEN, 99.0)
            rows.append({"validation": 50.0, "id": 0.0} | fixed | key | every | hidden | accuracies)

    rows = []
    best = {"finetune": (1e-3, ""), "l2sp": (3e-3, "weight=0.01"), "wise": (1e-3, "alpha=0.5")}
    best["recommended"] = (3e-3, "")
    for method, choice in best.items():
        for candidate in selection.candidates(method, Scope()):
            validation = 60.0 if candidate == choice else 50.0
            rows_with(method, *candidate, cells.TUNING_SEEDS, validation=validation)
    for rate, accuracy in zip(cells.CURVE_RATES, (70.0, 80.0, 90.0, 50.0, 40.0), strict=True):
        rows_with("finetune", rate, "", [0], id=accuracy, ood=accuracy - 30)
        rows_with("recommended", rate, "", [0], id=accuracy - 5, ood=60 + rate)
    rows_with("l2sp", *best["l2sp"], [0], id=80.0, ood=52.0)
    rows_with("wise", *best["wise"], [0], id=80.0, ood=51.0)
    rows.append(rows[-1] | {"pretrain_seed": 1, "method": "recommended", "learning_rate": 1e-3})
    made = tables.targets(Study([{k: str(v) for k, v in x.items()} for x in rows], Scope()), SHOWN)
    # At 1e-2: 45 in distribution, where fine-tuning has 90 at its best rate; 60 under shift, where
    # L2-SP, the best of the three as chosen by validation, has 52. Fine-tuning: 10 to 60. The runs
    # of another network at a single rate belong to no curve and are not compared.
    few = " (1 of 15 runs)"
    assert (
        f"| MLP | 0.01, untuned{few} | 45.0 | -45.00 | 60.0 | +8.0 (L2-SP) | 0.0 (50.0) |" in made
    )
    assert f"| MLP | 0.003, tuned{few} | 85.0 | -5.00 | 60.0 | +8.0 (L2-SP) | 0.0 (50.0) |" in made


def test_a_difference_is_as_uncertain_as_the_networks_differ():
    def runs(*numbers):
        pairs = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
        return {pair: {"id": str(x)} for pair, x in zip(pairs, numbers, strict=False)}

    # The differences by network are 1, 2 and 6: mean 3, variance (4 + 1 + 9) / 2 = 7. Student's t
    # for two degrees of freedom is 4.3027.
    found = difference(runs(2, 0, 1, 3, 6, 6), runs(0, 0, 0, 0, 0, 0), ["id"])
    half = 4.3027 * (7 / 3) ** 0.5
    np.testing.assert_allclose(found, (3, 3 - half, 3 + half, 6), rtol=1e-4)
    # The pairs of one network differ by 4 and 2: variance 2. Student's t for one degree is 12.706.
    found = difference(runs(5, 3), runs(1, 1), ["id"])
    np.testing.assert_allclose(found, (3, 3 - 12.706, 3 + 12.706, 2), rtol=1e-4)
    assert np.isnan(difference(runs(5), runs(1), ["id"]).low)
    assert difference(runs(), runs(1), ["id"]).pairs == 0


def test_held_back_sets_are_compared_with_the_best_method_on_them():
    def row(**accuracies):
        return {(0, 0): {name: str(accuracies.get(name, 50)) for name in cells.SHIFTS}}

    others = {"wise": row(blur=60), "l2sp": row(noise=90)}
    # Blur is one of the five sets: 2 points of their mean. Noise is not among them.
    assert tables.over_the_best(row(), others, cells.HELD_BACK) == "-2.0 (WiSE-FT)"
    assert tables.over_the_best(row(), others, cells.SHIFTS) == f"{-40 / 13:.1f} (L2-SP)"
