"""The study's further scenarios in their smallest form: few labels, and one task after another."""

import csv

import numpy as np
import pytest

from benchmarks.study import continual, few_labels


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("program", "methods", "accuracy"),
    [
        (few_labels, {"finetune", "wise", "l2sp", "ftp", "ftp_anchor", "tpgm"}, "id"),
        (continual, {"finetune", "l2sp", "spd", "ftp", "ftp_anchor"}, "accuracy"),
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
    # What differs between the methods is there to be seen, even after a few steps.
    assert len({row[accuracy] for row in rows}) > 1
    program.main(words)
    assert rows_of(tmp_path / "rows.csv") == rows


def test_forgetting_is_what_earlier_tasks_have_lost_since_they_were_learned():
    after_each = np.array([[90.0, 0.0, 0.0], [70.0, 80.0, 0.0], [50.0, 60.0, 100.0]])
    # In the end 50, 60 and 100; lost 40 and 20.
    assert continual.summary(after_each) == (70.0, 30.0)
