"""A report as text, as a table, and as numbers for loggers."""

import io
import math
import unicodedata

import pytest
from rich.console import Console

from tpgm_jax import Group, Report

LONG = "encoder/blocks/block_0/attention/query/kernel"
REPORT = Report(
    groups=(
        Group("bias", None, 1, "mars", 1e-8, 0.0, 1.0, 1e-8),
        Group(LONG, None, 768, "mars", 0.03125, 0.0312, 0.004, 1e-6),
        Group("层/核", None, 4, "mars", 12.345, 1.5, 0.996, 1e-6),
        Group("e\u0301t\u00e9[red]", 0, 4, "mars", 1234.5, 1700.0, 0.25, 1e-6),
        Group("e\u0301t\u00e9[red]", 1, 4, "mars", 1e7, math.inf, 0.0, 1e-6),
        Group("", None, 4, "mars", 1.0, math.nan, 0.5, 1e-6),
    ),
    excluded=tuple(f"head/{i}" for i in range(10)),
)
BALL = Report((Group("kernel", None, 3, "l2", None, 0.5, None, None),), ())


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
        ["1.00e-08", "0", "100%"],
        ["0.0312", "0.0312", "<1%"],
        ["12.3", "1.50", ">99%"],
        ["1234", "1700", "25%"],
        ["1.00e+07", "inf", "0%"],
        ["1.00", "nan", "50%"],
    ]


def test_notes_name_what_is_left_out_and_what_looks_wrong():
    notes = str(REPORT).partition("\n\n")[2]
    assert "farthest row from its anchor, in the L1 norm of a row" in notes
    assert "10 not constrained: head/0, head/1" in notes
    assert "head/7 and 2 more" in notes
    assert "2 beyond their radius: e\u0301t\u00e9[red]/0" in notes
    assert repr(REPORT) == str(REPORT)


def test_without_radii_there_are_no_columns_for_them():
    assert lines_of(BALL) == ["group   rows  distance", "kernel     3     0.500"]
    assert "saturated" not in str(BALL)
    assert "L2 norm of a tensor" in str(BALL)


def test_an_empty_report_is_a_heading():
    assert lines_of(Report((), ("head",))) == ["group  rows  distance"]


@pytest.mark.parametrize("width", [60, 120])
def test_rich_renders_a_report_as_a_table(width):
    console = Console(width=width, record=True, file=io.StringIO(), color_system=None)
    console.print(REPORT)
    text = console.export_text()
    for word in ("saturated", "1.00e-08", "0.0312", "[red]/0", "核"):
        assert word in text
    assert max(columns(line) for line in text.splitlines()) <= width


def test_scalars_are_numbers_by_tag():
    scalars = REPORT.scalars()
    assert scalars[f"radius/{LONG}"] == 0.03125
    assert scalars["distance/层/核"] == 1.5
    assert scalars["saturated/e\u0301t\u00e9[red]/0"] == 0.25
    assert scalars["radius"] == 1.0  # of parameters that are one array, without a name
    assert len(scalars) == 3 * 6
    assert {type(value) for value in scalars.values()} == {float}
    assert BALL.scalars(prefix="run 1/") == {"run 1/distance/kernel": 0.5}
