"""Plots show the numbers that they get, with labels."""

import io
import sys
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

import tpgm_jax
from tpgm_jax import Group, Report

matplotlib.use("Agg")
plot: Any = tpgm_jax.plot  # untyped, because some calls are wrong
RADII = {
    "blocks": [0.1, 0.2, 0.3],
    "embed/kernel": 0.4,
    "head/kernel": 0.5,
    "norm/scale": 0.9,
}


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def render(ax):
    """Renders `ax`, checks that some pixels are not white, and returns it."""
    buffer = io.BytesIO()
    ax.figure.savefig(buffer, format="png", dpi=50)
    buffer.seek(0)
    image = plt.imread(buffer)[..., :3]
    assert 0 < (image < 0.9).any(axis=2).mean() < 0.5
    return ax


def lines(ax):
    """Label to points, without auxiliary lines."""
    shown = [line for line in ax.lines if not line.get_label().startswith("_")]
    return {line.get_label(): np.transpose(line.get_data()).tolist() for line in shown}


def texts(ax):
    return [text.get_text() for text in ax.texts]


def ticks(ax, which="x"):
    return [x.get_text() for x in getattr(ax, f"get_{which}ticklabels")()]


def blocks(count, kinds=("attn/query/kernel", "attn/query/bias", "mlp/kernel")):
    rng = np.random.default_rng(0)
    names = [f"block_{i}/{kind}" for i in range(count) for kind in kinds]
    return {name: float(10 ** rng.normal(-1, 0.4)) for name in sorted(names)}


def group(name, radius, overshoot=0.5, pulled_back=0.5, norm="mars", layer=None):
    return Group(name, layer, 4, norm, 0.5, False, radius, 0.1, pulled_back, overshoot)


def test_layers_follow_each_other_from_input_to_output():
    ax = render(plot.radii_by_depth(RADII))
    assert ticks(ax) == ["embed", "0", "1", "2", "norm", "head"]
    assert lines(ax) == {
        "blocks": [[1, 0.1], [2, 0.2], [3, 0.3]],
        "kernel": [[0, 0.4], [5, 0.5]],
        "scale": [[4, 0.9]],
    }
    dashes = {line.get_label(): line.get_linestyle() for line in ax.lines}
    assert dashes == {"blocks": "-", "kernel": "None", "scale": "None"}
    assert ax.get_xlabel() == "layer, from input to output"
    assert ax.get_ylabel() == "radius: how far each row may go\nfrom its pre-trained weights"
    assert sorted(texts(ax)) == ["blocks", "kernel", "kernel", "scale"]
    assert ax.get_yscale() == "linear"


def test_block_10_comes_after_block_9():
    radii = blocks(12)
    ax = render(plot.radii_by_depth(radii))
    assert ticks(ax) == [str(i) for i in range(12)]
    assert lines(ax)["mlp/kernel"] == [[i, radii[f"block_{i}/mlp/kernel"]] for i in range(12)]
    assert ax.get_yscale() == "log"
    assert sorted(texts(ax)) == ["attn/query/bias", "attn/query/kernel", "mlp/kernel"]
    assert ax.get_xlabel() == "block, from input to output"


def test_nested_numbers_form_a_layer_if_layers_are_then_alike():
    depths = {0: 3, 1: 4, 2: 6}
    names = [
        f"stage_{i}/block_{j}/conv_{k}/w" for i in depths for j in range(depths[i]) for k in "01"
    ]
    ax = render(plot.radii_by_depth(dict.fromkeys(names, 0.5)))
    assert list(lines(ax)) == ["conv_0/w", "conv_1/w"]
    assert ticks(ax)[:4] == [
        "stage_0/block_0",
        "stage_0/block_1",
        "stage_0/block_2",
        "stage_1/block_0",
    ]
    assert len(ticks(ax)) == 13


def test_names_without_numbers_are_shown_in_full():
    ax = render(plot.radii_by_depth({"body/kernel": 0.3, "body/bias": 0.2, "gain": 0.1}))
    assert ticks(ax) == ["body/kernel", "body/bias", "gain"]
    assert lines(ax) == {"radius": [[0, 0.3], [1, 0.2], [2, 0.1]]}
    assert ax.get_xlabel() == "tensor"


def test_labels_are_short_and_do_not_overlap():
    radii = {f"net/layers/{kind}": [0.5, 0.9 - 1e-4 * i] for i, kind in enumerate("abcdefgh")}
    ax = render(
        plot.radii_by_depth(radii | {"net/layers/i": [0.5, 0.1], "net/layers/j": [0.5, 0.6]})
    )
    assert texts(ax) == ["i", "j", *"hgfedcba"]  # from below
    heights = [text.xyann[1] for text in ax.texts]
    # The height of a line of 8 points, in axes that are already drawn.
    line = 8 / (ax.get_window_extent().height / ax.figure.dpi * 72)
    assert np.diff(heights).min() > line
    assert 0 <= heights[0] < heights[-1] <= 1
    # Labels with enough room are at the height of their line.
    for height, radius in zip(heights[:2], (0.1, 0.6), strict=True):
        place = ax.transAxes.inverted().transform(ax.transData.transform((0, radius)))[1]
        np.testing.assert_allclose(height, place, atol=1e-6)


@pytest.mark.parametrize("zero", [0.0, 1e-8, 1e-5])
def test_collapsed_radii_are_drawn_below_small_ones(zero):
    radii = {"block_0/w": 0.1, "block_1/w": zero, "block_2/w": 3.0}
    ax = render(plot.radii_by_depth(radii))
    (_, first), (_, collapsed), (_, last) = lines(ax)["w"]
    assert (first, last) == (0.1, 3.0)
    low, high = ax.get_ylim()
    assert low < collapsed < first < last < high
    ticked = dict(zip(ax.get_yticks(), ticks(ax, "y"), strict=True))
    assert ticked[collapsed] == "< 0.1"
    # The axis does not span the decades down to `zero`.
    assert low > 0.01


def test_all_radii_may_have_collapsed():
    ax = render(plot.radii_by_depth({"block_0/w": 1e-8, "block_1/w": 0.0}))
    assert [y for _, y in lines(ax)["w"]] == [0.0, 0.0]


def test_a_hundred_layers_are_legible():
    ax = render(plot.radii_by_depth(blocks(100)))
    assert len(lines(ax)) == 3
    assert 20 <= len(ticks(ax)) <= 40
    many = {f"block_{i}/part_{letter * 60}": 0.1 for i in range(3) for letter in "abcdefghij" * 9}
    many |= {f"block_{i}/part_{j}": 0.1 + j for i in range(3) for j in range(150)}
    ax = render(plot.radii_by_depth(many))
    assert len(texts(ax)) < 40  # only those that fit, of 160
    assert max(map(len, texts(ax))) <= 40


def test_a_line_for_each_tensor_over_training():
    history = {step: {"b": 0.1 * step, "w": [0.2, 0.3]} for step in (20, 10)} | {30: {"b": 4.0}}
    for source in (history, list(history.items()), iter(history.items())):
        ax = render(plot.radii_over_training(source))
        assert lines(ax)["b"] == [[10, 1.0], [20, 2.0], [30, 4.0]]
        assert lines(ax)["w/1"][:2] == [[10, 0.3], [20, 0.3]]
        assert np.isnan(lines(ax)["w/1"][2][1])
        assert texts(ax) == ["b"]
        assert ax.get_xlabel() == "training step"
        assert ax.get_yscale() == "log"


def test_many_lines_are_coloured_by_layer_and_the_extremes_labelled():
    radii = blocks(50)
    ax = render(
        plot.radii_over_training([(t, {k: t * r for k, r in radii.items()}) for t in (1, 2)])
    )
    assert len(lines(ax)) == 150
    ordered = sorted(radii, key=radii.__getitem__)
    assert texts(ax) == ordered[:5] + ordered[-5:]
    colours = {line.get_label(): line.get_color() for line in ax.lines}
    assert colours["block_7/mlp/kernel"] == colours["block_7/attn/query/bias"]
    assert len(set(colours.values())) == 50
    (bar,) = set(ax.figure.axes) - {ax}
    assert ticks(bar) == ["block_0", "block_49"]


def test_a_history_may_have_a_single_step():
    ax = render(plot.radii_over_training([(np.int64(5), {"w": 0.1})]))
    assert lines(ax) == {"w": [[5, 0.1]]}


def test_candidates_against_radii():
    report = Report((group("a", 1.0, 3.0, 1.0), group("b", 2.0, 0.25, 0.0)), ())
    ax = render(plot.candidate_against_radius(report))
    (points,) = ax.collections
    np.testing.assert_array_equal(points.get_offsets(), [[1.0, 3.0], [2.0, 0.5]])
    np.testing.assert_array_equal(points.get_array(), [100.0, 0.0])
    assert sorted(texts(ax)) == ["a", "b"]
    assert (
        ax.get_xlabel() == "radius: how far each row may go\nfrom its pre-trained weights (L1 norm)"
    )
    assert ax.get_ylabel().startswith("candidate: how far the farthest row would have gone\n")
    (bar,) = set(ax.figure.axes) - {ax}
    assert bar.get_ylabel() == "share of moved rows that were pulled back (%)"
    assert ax.get_xlim() == ax.get_ylim()


def test_axis_labels_name_the_norm():
    l2 = Report((group("a/0/w", 0.2, norm="l2"), group("a/1/w", 0.3, norm="l2")), ())
    expected = "radius: how far each tensor may go\nfrom its pre-trained weights (L2 norm)"
    assert plot.radii_by_depth(l2).get_ylabel() == expected
    assert plot.radii_over_training({1: l2}).get_ylabel() == expected
    ax = plot.candidate_against_radius(l2)
    assert ax.get_ylabel().startswith("candidate: how far the tensor would have gone\n")


def test_plots_draw_into_the_given_axes_and_show_nothing(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *_: pytest.fail("shown"))
    report = Report((group("a", 1.0), group("b", 2.0)), ())
    figure, panels = plt.subplots(1, 3, layout="constrained", figsize=(15, 5))
    assert plot.radii_by_depth(report, panels[0]) is panels[0]
    assert plot.radii_over_training([(1, report), (2, report)], ax=panels[1]) is panels[1]
    assert plot.candidate_against_radius(report, panels[2]) is panels[2]
    render(panels[0])
    assert plt.get_fignums() == [figure.number]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plot.radii_by_depth({}), ValueError, "nothing to draw"),
        (lambda: plot.radii_by_depth(3.0), TypeError, "result of `tpgm_jax.radii` or"),
        (lambda: plot.radii_over_training([]), ValueError, "`history` is empty"),
        (lambda: plot.candidate_against_radius(RADII), TypeError, "result of `tpgm_jax.report"),
        (
            lambda: plot.candidate_against_radius(Report((group("a", None),), ())),
            ValueError,
            "holds no radii",
        ),
    ],
)
def test_errors_name_the_fix(call, error, message):
    with pytest.raises(error, match=message):
        call()
    assert plt.get_fignums() == []


def test_without_matplotlib_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for draw, data in (
        (plot.radii_by_depth, RADII),
        (plot.radii_over_training, {1: RADII}),
        (plot.candidate_against_radius, Report((group("a", 1.0),), ())),
    ):
        with pytest.raises(ImportError, match="pip install matplotlib"):
            draw(data)
