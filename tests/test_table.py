"""A report as text, as a table, and as numbers for loggers."""

import math
import unicodedata

from tpgm_jax import Group, Report
from tpgm_jax._core.columns import plain_table

LONG = "encoder/blocks/block_0/attention/query/kernel"
REPORT = Report(
    groups=(
        Group("bias", None, 1, "mars", 0.0, False, 1e-8, 1e-9, 1.0, 40.0),
        Group(LONG, None, 768, "mars", 0.0312, False, 0.03125, 0.0213, 0.004, 1.5),
        Group("层/核", None, 4, "mars", 1.5, False, 12.345, 0.5, 0.996, 1.25),
        Group("e\u0301t\u00e9[red]", 0, 4, "mars", 1700.0, True, 1234.5, 12.0, 0.25, 1.75),
        Group("e\u0301t\u00e9[red]", 1, 4, "mars", math.inf, True, 1e7, 1.0, 0.0, 1.0),
        Group("", None, 4, "mars", math.nan, False, 1.0, None, 0.0, 1.0),
    ),
    excluded=tuple(f"head/{i}" for i in range(10)),
)
BALL = Report((Group("kernel", None, 3, "l2", 0.5),), ())


def columns(text):
    """Width on a terminal, counted by hand: two for Chinese, none for a combining accent."""
    wide = sum("\u4e00" <= x <= "\u9fff" for x in text)
    return len(text) + wide - sum(unicodedata.category(x) == "Mn" for x in text)


def lines_of(report):
    return str(report).partition("\n\n")[0].splitlines()


def test_columns_and_points_are_aligned():
    heading, *lines = lines_of(REPORT)
    assert len({columns(line) for line in (heading, *lines)}) == 1
    names = ["bias", LONG, "层/核", "e\u0301t\u00e9[red]/0", "e\u0301t\u00e9[red]/1"]
    start = heading.index("rows") + 4  # where that column ends
    for name, line in zip([*names, "(parameters)"], lines, strict=True):
        assert line.startswith(name)
    # Cells are counted from the right, because wide letters change the length of a name.
    cells = [line[len(line) - (len(heading) - start) :] for line in lines]
    points = {cell.index(".") for cell in cells[:3]}
    assert len(points) == 1
    assert [cell.split() for cell in cells] == [
        ["1.00e-08", "1e-07%", "0", "100%", "40.0"],
        ["0.0312", "2.1%", "0.0312", "<1%", "1.50"],
        ["12.3", "50%", "1.50", ">99%", "1.25"],
        ["1234", "1200%", "1700", "25%", "1.75"],
        ["1.00e+07", "100%", "inf", "0%", "1.00"],
        ["1.00", "-", "nan", "0%", "1.00"],
    ]


def test_columns_are_aligned_by_their_width_in_a_terminal():
    # A Chinese letter and a full-width Latin one take two columns each, and an accent none.
    names = ["\u540d\uff21", "abc", "e\u0301"]
    lines = plain_table([names, ["1", "22", "3"]]).split("\n")
    assert lines == [names[0] + "   1", "abc   22", names[2] + "      3"]


def test_notes_name_what_is_left_out_and_what_looks_wrong():
    notes = str(REPORT).partition("\n\n")[2]
    assert "farthest row from its anchor, in the L1 norm of a row" in notes
    assert "10 not constrained: head/0, head/1" in notes
    assert "head/7 and 2 more" in notes
    assert "constrains 4 of 5 tensors; 1 moves freely" in notes
    assert "1 frozen, with radii below 0.1% of the anchor: bias" in notes
    assert "2 beyond their radius: e\u0301t\u00e9[red]/0" in notes
    assert repr(REPORT) == str(REPORT)


def test_without_radii_there_are_no_columns_for_them():
    assert lines_of(BALL) == ["group   rows  distance", "kernel     3     0.500"]
    assert "constrains" not in str(BALL)
    assert "L2 norm of a tensor" in str(BALL)


def test_an_empty_report_is_a_heading():
    assert lines_of(Report((), ("head",))) == ["group  rows  distance"]


def test_scalars_are_numbers_by_tag():
    scalars = REPORT.scalars()
    assert scalars[f"radius/{LONG}"] == 0.03125
    assert scalars["distance/层/核"] == 1.5
    assert scalars["pulled_back/e\u0301t\u00e9[red]/0"] == 0.25
    assert scalars["constrained"] == 4 / 6
    assert scalars["radius"] == 1.0  # of parameters that are one array, without a name
    assert len(scalars) == 5 * 6 - 1 + 1  # one group has no relative radius
    assert {type(value) for value in scalars.values()} == {float}
    assert BALL.scalars(prefix="run 1/") == {"run 1/distance/kernel": 0.5}
