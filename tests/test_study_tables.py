"""The study's pages agree with the recorded rows, and settings are chosen by validation alone."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.study import cells, continual, report, summary, tables

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def recorded():
    return summary.read(report.RECORDED)


def test_every_table_of_the_pages_is_made_from_the_recorded_rows(recorded):
    made = report.all_tables(summary.tuned(recorded), summary.curves(recorded))
    shown = []
    for name in ("study.md", "results.md"):
        page = (ROOT / "docs" / name).read_text()
        assert report.filled(page, made) == page
        shown += [x for x in made if f"<!-- {x} -->\n\n|" in page]
    assert sorted(shown) == sorted(made)


def test_the_report_writes_the_pages_and_the_figures_that_they_show(tmp_path):
    for name in ("study.md", "results.md"):
        (tmp_path / name).write_text((ROOT / "docs" / name).read_text())
    (tmp_path / "study").mkdir()
    report.main(tmp_path)
    text = (tmp_path / "study.md").read_text()
    assert text == (ROOT / "docs/study.md").read_text()
    assert (tmp_path / "results.md").read_text() == (ROOT / "docs/results.md").read_text()
    shown = re.findall(r"study/[\w-]+\.svg", text)
    assert sorted(shown) == sorted(f"study/{x.name}" for x in (tmp_path / "study").iterdir())
    assert len(shown) == 6


def test_every_method_is_tuned_with_equal_effort_and_run_on_all_seeds(recorded):
    run = recorded[recorded.method != "zero_shot"]
    by = ["model", "head", "method"]
    tuning = run[run.seed.isin(cells.TUNING_SEEDS)]
    # Nine settings on two seeds. WiSE-FT tries five alphas on each of nine fine-tunings.
    counts = tuning.groupby(by).size()
    wise = counts.index.get_level_values("method") == "wise"
    assert set(counts[~wise]) == {18}
    assert set(counts[wise]) == {90}
    assert set(tuning.pretrain_seed) == {0}
    final = summary.tuned(recorded).drop("zero_shot", level="method")
    assert set(final.groupby(by).size()) == {3 * len(cells.SEEDS)}
    assert counts.index.equals(final.groupby(by).size().index)
    rates = summary.curves(recorded).groupby(["model", "method", "learning_rate"]).size()
    assert len(rates) == 3 * 11 * len(cells.CURVE_RATES)
    assert set(rates) == {3 * len(cells.SEEDS)}


def choice(rows):
    (found,) = summary.chosen(pd.DataFrame(rows)).to_dict("records")
    return found["learning_rate"], found["setting"]


def l2sp(rate, weight, seed, validation):
    row = {"model": "mlp", "head": "reused", "method": "l2sp", "learning_rate": rate}
    return row | {"setting": f"weight={weight}", "seed": seed, "validation": validation}


def test_validation_chooses_and_ties_go_to_the_setting_nearest_to_the_anchor():
    tried = [(rate, weight) for rate in (3e-3, 1e-3) for weight in (0.01, 0.1)]
    rows = [l2sp(*x, seed, 90.0) for x in tried for seed in cells.TUNING_SEEDS]
    assert choice(rows) == (1e-3, "weight=0.1")
    # Only the tuning seeds count.
    assert choice([*rows, l2sp(3e-3, 0.01, 0, 99.0)]) == (1e-3, "weight=0.1")
    assert choice([*rows[1:], l2sp(3e-3, 0.01, 101, 91.0)]) == (3e-3, "weight=0.01")
    # A mean that is higher by less than half of a hundredth is equal.
    assert choice([*rows[1:], l2sp(3e-3, 0.01, 101, 90.003)]) == (1e-3, "weight=0.1")


def test_only_validation_affects_the_choice(recorded):
    needed = [*cells.KEYS, "validation"]
    pd.testing.assert_frame_equal(summary.chosen(recorded[needed]), summary.chosen(recorded))


def accuracies(numbers, column="id"):
    """Runs of three networks, two seeds each."""
    pairs = pd.MultiIndex.from_product([range(3), range(2)], names=["pretrain_seed", "seed"])
    return pd.DataFrame({column: np.array(numbers, float)}, pairs[: len(numbers)])


def test_a_difference_is_as_uncertain_as_the_networks_differ():
    # By network the differences are 1, 2 and 6: mean 3, variance (4 + 1 + 9) / 2 = 7. Student's t
    # for two degrees of freedom is 4.3027.
    found = summary.difference(accuracies([2, 0, 1, 3, 6, 6]).id, accuracies([0] * 6).id)
    np.testing.assert_allclose(found, (3, 4.3027 * (7 / 3) ** 0.5), rtol=1e-4)


def test_the_best_of_others_is_found_for_each_column():
    ours = accuracies([50, 50, 52, 52]).assign(blur=50)
    others = {
        "wise": accuracies([60, 60, 60, 60]).assign(blur=1),
        "l2sp": accuracies([1] * 4).assign(blur=90),
    }
    # Minus 10 and minus 8: half of the interval is 12.706 * sqrt(2) / sqrt(2).
    assert tables.over_the_best(ours, others, "id") == "-9.0 [-21.7, +3.7] (WiSE-FT)"
    assert tables.over_the_best(ours, others, "blur") == "-40.0 [-40.0, -40.0] (L2-SP)"


def test_the_table_of_targets_compares_with_the_best_of_each(monkeypatch):
    monkeypatch.setattr(cells, "MODELS", ("mlp",))

    def run(method, rate, seeds=(0,), **numbers):
        every = {"head": "reused", "model": "mlp", "setting": "", "id": 0.0, "validation": 50.0}
        every |= dict.fromkeys(summary.MEANS, 0.0) | {"method": method, "learning_rate": rate}
        pairs = [(network, seed) for network in (0, 1) for seed in seeds]
        return [every | {"pretrain_seed": a, "seed": b} | numbers for a, b in pairs]

    best = {"finetune": 1e-3, "l2sp": 3e-3, "wise": 1e-3, "recommended": 3e-3}
    rows = [x for name, rate in best.items() for x in run(name, rate, cells.TUNING_SEEDS)]
    for rate, id_ in zip(cells.CURVE_RATES, (70.0, 80.0, 90.0, 50.0, 40.0), strict=True):
        rows += run("finetune", rate, id=id_, **{summary.OOD: id_ - 30})
        rows += run("recommended", rate, id=id_ - 5, **{summary.OOD: 60 + rate})
    rows += run("l2sp", 3e-3, id=80.0, **{summary.OOD: 52.0})
    rows += run("wise", 1e-3, id=80.0, **{summary.OOD: 51.0})
    frame = pd.DataFrame(rows)
    made = tables.targets(summary.tuned(frame), summary.curves(frame))
    # At 1e-2: 45 in distribution, where fine-tuning has 90 at its best rate; 60 under shift, where
    # L2-SP, the best of the three as chosen by validation, has 52. Fine-tuning: 10 to 60.
    over = "+8.0 [+8.0, +8.0] (L2-SP) | +0.0 [+0.0, +0.0]"
    assert f"| MLP | 0.01, untuned | 45.0 | -45.00 | 60.0 | {over}" in made
    assert f"| MLP | 0.003, tuned | 85.0 | -5.00 | 60.0 | {over}" in made
    assert made.count("| 0.0 (50.0) |") == 2


def test_a_scenario_s_table_has_means_and_deviations():
    untrained = {"method": "zero_shot", "learning_rate": 0.0, "id": 30.0, "ood": 20.0}
    run = {"method": "ftp", "learning_rate": 1e-3, "ood": 40.0}
    rows = [run | {"id": 60.0}, run | {"id": 70.0}, run | {"id": 90.0, "learning_rate": 3e-3}]
    rows = [x | {"model": "mlp"} for x in (*rows, untrained)]
    made = tables.scenario(pd.DataFrame(rows), "learning_rate", {" end": ("id", "ood")})
    assert made.splitlines()[0] == "| model | method | 0.001 end | 0.003 end |"
    # 60 and 70 are each 5 from their mean: the variance is 2 * 25 / (2 - 1).
    assert "| MLP | FTP | 65.0 ± 7.1 / 40.0 ± 0.0 | 90.0 / 40.0 |" in made
    assert "| MLP | zero-shot | 30.0 / 20.0 | 30.0 / 20.0 |" in made


def test_forgetting_is_the_loss_of_accuracy_on_earlier_tasks():
    after_each = np.array([[90.0, 0.0, 0.0], [70.0, 80.0, 0.0], [50.0, 60.0, 100.0]])
    # The final accuracies are 50, 60 and 100. The first two tasks lost 40 and 20.
    assert continual.summary(after_each) == (70.0, 30.0)
