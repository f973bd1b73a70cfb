from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from markupsafe import Markup

from amc.report.charts import Dot, Line, line_chart, readable, scatter_chart, stack, strip, ticks


def drawings(markup: Markup) -> list[ET.Element]:
    """The pictures, parsed: they are well-formed."""
    return list(ET.fromstring(f"<all>{markup}</all>"))


@pytest.mark.parametrize(
    ("low", "high", "count", "found"),
    [
        (0.0, 1.0, 5, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-0.25, 0.1, 4, [-0.2, -0.1, 0.0, 0.1]),
        (1.0, 60.0, 4, [20.0, 40.0, 60.0]),
        (97.2, 98.9, 5, [97.5, 98.0, 98.5]),
        (3.0, 3.0, 5, [3.0]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, count: int, found: list[float]) -> None:
    assert ticks(low, high, count) == pytest.approx(found)


def test_numbers_are_readable() -> None:
    assert [readable(n) for n in (-0.0, 0.12345, 9999, 40_551_040, 2.5e10)] == [
        "0",
        "0.1235",
        "9999",
        "40.55 M",
        "25 G",
    ]


def test_a_curve_is_drawn_for_wide_pages_and_for_phones() -> None:
    lines = [Line("best", [None, 0.0, 1.0]), Line("each", [0.5, 0.0, 1.0], dots=True)]
    wide, narrow = drawings(line_chart(lines, x_label="evaluation", y_label="reward"))
    assert [wide.get("class"), narrow.get("class")] == ["chart wide", "chart narrow"]
    assert wide.get("aria-label") == "reward against evaluation"
    assert len(wide.findall("circle")) == 3
    (course,) = wide.findall("polyline")
    (x0, y0), (x1, y1), (x2, y2) = (
        tuple(map(float, point.split(","))) for point in course.get("points", "").split()
    )
    # From the second evaluation's value across, then up to the third's.
    assert (y0, x1) == (y1, x2)
    assert x0 < x1
    assert y2 < y0


def test_evaluations_are_counted_in_whole_numbers() -> None:
    wide = drawings(line_chart([Line("a", [0.0, 1.0])], x_label="x", y_label="y"))[0]
    texts = [t.text for t in wide.findall("text") if t.get("text-anchor") == "middle"]
    assert texts[:2] == ["1", "2"]


def test_bands_levels_and_the_warm_up_are_drawn() -> None:
    line = Line("a", [0.0, 1.0], low=[-0.5, 0.5], high=[0.5, 1.5])
    chart = line_chart([line], x_label="x", y_label="y", levels=[("l", 0.5)], shaded=1)
    wide = drawings(chart)[0]
    assert len(wide.findall("polygon")) == 1
    assert [e.get("class") for e in wide.findall("rect")] == ["warm"]
    assert [e.findtext("title") for e in wide.findall("line") if e.get("class") == "level l0"] == [
        "l: 0.5"
    ]


def test_nothing_is_drawn_of_nothing() -> None:
    assert line_chart([], x_label="x", y_label="y") == ""
    assert line_chart([Line("a", [None])], x_label="x", y_label="y") == ""
    assert scatter_chart([], x_label="x", y_label="y") == ""


def test_equal_values_and_a_single_point_have_room() -> None:
    assert "nan" not in line_chart([Line("a", [2.0])], x_label="x", y_label="y")
    assert "nan" not in scatter_chart([Dot("a", 0.0, 0.0)], x_label="x", y_label="y")


def test_points_lie_where_their_numbers_say_and_the_front_steps_through_the_best() -> None:
    dots = [
        Dot("original", 4.0, 3.0, kind="original"),
        Dot("a", 1.0, 1.0, "1"),
        Dot("b", 2.0, 2.0, "2"),
    ]
    front = [(1.0, 1.0), (2.0, 2.0)]
    wide = drawings(scatter_chart(dots, x_label="ms", y_label="acc", fronts=[front]))[0]
    places = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in wide.iter("circle")]
    assert places[1][0] < places[2][0] < places[0][0]
    assert places[1][1] > places[2][1] > places[0][1]
    (course,) = wide.findall("polyline")
    corners = [tuple(map(float, p.split(","))) for p in course.get("points", "").split()]
    assert corners == [places[1], (places[2][0], places[1][1]), places[2]]
    assert [t.text for t in wide.iter("text") if t.text in ("1", "2")].count("2") >= 1


def test_strips_are_as_dark_as_what_is_kept() -> None:
    (found,) = drawings(strip([("a", 0.0), ("b", 1.0), ("c", 7.0)]))
    assert found.get("viewBox") == "0 0 3 1"
    shades = [float(rect.get("fill-opacity", "")) for rect in found]
    assert shades == [0.06, 1.0, 1.0]


def test_parts_of_a_sum_are_as_wide_as_their_share() -> None:
    (found,) = drawings(stack([("a", 1.0), ("b", 3.0), ("c", -1.0)], 8.0))
    assert [rect.get("width") for rect in found] == ["12.500", "37.500", "0.000"]
    assert [rect.get("x") for rect in found] == ["0.000", "12.500", "50.000"]
    assert len(drawings(stack([("a", 0.0)], 0.0))) == 1


def test_names_are_escaped() -> None:
    evil = "<script>alert('\"')</script>"
    chart = line_chart([Line(evil, [0.0, 1.0])], x_label=evil, y_label=evil, levels=[(evil, 0.5)])
    chart += scatter_chart([Dot(evil, 1.0, 1.0, evil)], x_label=evil, y_label=evil)
    chart += strip([(evil, 1.0)]) + stack([(evil, 1.0)], 1.0)
    assert "<script" not in chart
    assert len(drawings(chart)) == 6
    assert not re.search(r"aria-label=\"[^\"]*<", chart)
