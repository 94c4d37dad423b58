"""Charts of a comparison: what stands where, and nothing that runs out of its drawing."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.report.charts import dots_chart, profile_chart, trend_chart
from offramp.report.charts.dots_chart import Dot, DotRow, DotsChart, shortened
from offramp.report.charts.profile_chart import Profile, ProfileChart, dash_of, shape_of
from offramp.report.charts.scale import Scale
from offramp.report.charts.trend_chart import TrendChart

values = st.floats(-5, 5, allow_nan=False).map(lambda value: round(value, 3))


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def discs(svg: str) -> list[tuple[float, float]]:
    return [(float(node.get("cx")), float(node.get("cy"))) for node in parsed(svg).iter("circle")]


def test_dots_stand_at_their_values_one_below_the_other():
    dots = (Dot("prose", 1.1, 1.0, 1.2), Dot("code", 1.3, 1.25, 1.35, colour=1, hollow=True))
    chart = DotsChart("Speed", "note", (DotRow("model <a>", dots),), axis=(1.0, 1.5), rule=(1.0, "plain"))
    svg = chart.svg()
    scale = Scale(1.0, 1.5, dots_chart.LEFT, dots_chart.RIGHT)
    (x1, y1), (x2, y2) = discs(svg)
    assert (x1, x2) == (pytest.approx(scale(1.1), abs=0.1), pytest.approx(scale(1.3), abs=0.1))
    assert y2 - y1 == pytest.approx(dots_chart.STEP, abs=0.1)
    assert svg.count('class="hollow"') == 1
    assert "model &lt;a&gt;, code: 1.30 (1.25 to 1.35)" in svg


@given(st.lists(st.tuples(values, values, values), min_size=1, max_size=6))
def test_no_dot_or_interval_leaves_the_drawing(triples):
    rows = tuple(
        DotRow(f"row {i}", (Dot("prose", sorted(t)[1], min(t), max(t), floor=min(t), ceiling=max(t)),))
        for i, t in enumerate(triples)
    )
    root = parsed(DotsChart("T", "d", rows, rule=(0.0, "none")).svg())
    for node in root.iter():
        for name in ("x1", "x2", "cx"):
            if node.get(name) is not None:
                assert dots_chart.LEFT - 0.1 <= float(node.get(name)) <= dots_chart.RIGHT + 0.1


def test_ticks_never_touch():
    rows = (DotRow("row", (Dot("prose", -0.0631), Dot("code", 0.0012))),)
    chart = DotsChart("T", "d", rows, number=lambda v: f"{v:+.5f} nats")
    labels = [
        (float(node.get("x")), node.text, node.get("text-anchor"))
        for node in parsed(chart.svg()).iter("text")
        if (node.text or "").endswith("nats")
    ]
    assert len(labels) >= 2
    middles = [x for x, _, anchor in labels if anchor == "middle"]
    width = max(len(words) for _, words, _ in labels) * 5.5
    assert all(b - a >= width for a, b in itertools.pairwise(middles))


def test_what_hardly_differs_does_not_look_different():
    rows = (DotRow("a", (Dot("prose", 0.2000),)), DotRow("b", (Dot("prose", 0.2001),)))
    (x1, _), (x2, _) = discs(DotsChart("T", "d", rows, least_span=0.1).svg())
    assert abs(x2 - x1) < 1
    (x1, _), (x2, _) = discs(DotsChart("T", "d", rows).svg())
    assert abs(x2 - x1) > 50


def test_without_a_dot_there_is_no_chart():
    assert DotsChart("T", "d", (DotRow("row", ()),)).svg() == ""


def test_long_names_are_cut_in_the_middle():
    assert shortened("short", 20) == "short"
    cut = shortened("a" * 30 + "b" * 30, 21)
    assert len(cut) == 21
    assert cut == "a" * 10 + "…" + "b" * 10


def test_profiles_are_overlaid_and_broken_where_undefined():
    x = np.array([0.25, 0.5, 0.75, 1.0])
    y = np.array([0.1, np.nan, 0.6, 1.0])
    chart = ProfileChart("A", "d", "share", (Profile("one", x, y), Profile("<two>", x, y / 2)), (0.0, 1.0))
    root = parsed(chart.svg())
    groups = [node for node in root.iter("g") if "profile" in (node.get("class") or "")]
    assert [node.get("data-line") for node in groups] == ["one", "<two>"]
    lines = [node for node in groups[0].iter("path") if node.get("class") == "line"]
    assert len(lines) == 2
    down = Scale(0.0, 1.0, profile_chart.HEIGHT - profile_chart.FOOT, profile_chart.TOP)
    last = float(re.findall(r"[\d.]+", lines[-1].get("d"))[-1])
    assert last == pytest.approx(down(1.0), abs=0.1)
    assert chart.legend().count("<li data-line=") == 2
    assert "&lt;two&gt;" in chart.legend()


def test_bands_only_for_few_lines_and_none_without_a_finite_point():
    x = np.array([0.5, 1.0])
    banded = [Profile(str(i), x, x, x - 0.1, x + 0.1) for i in range(profile_chart.BANDS + 1)]
    few = ProfileChart("A", "d", "share", tuple(banded[:-1])).svg()
    many = ProfileChart("A", "d", "share", tuple(banded)).svg()
    assert few.count('class="band"') == profile_chart.BANDS
    assert 'class="band"' not in many
    empty = Profile("none", x, np.full(2, np.nan))
    assert ProfileChart("A", "d", "share", (empty,)).svg() == ""


def test_36_lines_differ_in_colour_or_dash():
    looks = {(place % 6, shape_of(place), dash_of(place)) for place in range(36)}
    assert len(looks) == 36


def trend(points: tuple[tuple[str, float, float], ...], slope: float, intercept: float) -> str:
    return TrendChart("T", "d", "year", "skips", points, slope, intercept).svg()


def test_the_trend_line_goes_through_what_it_says():
    points = (("a", 0.0, 1.0), ("b", 5.0, 2.0), ("c", 10.0, 3.0))
    svg = trend(points, 0.2, 1.0)
    (drawn,) = [node for node in parsed(svg).iter("line") if node.get("class") == "trend"]
    dots = discs(svg)
    assert (float(drawn.get("x1")), float(drawn.get("y1"))) == pytest.approx(dots[0], abs=0.11)
    assert (float(drawn.get("x2")), float(drawn.get("y2"))) == pytest.approx(dots[2], abs=0.11)


@given(
    st.lists(st.tuples(values, values), min_size=2, max_size=6, unique_by=lambda point: point[0]),
    st.floats(-3, 3),
    st.floats(-9, 9),
)
def test_a_trend_line_stays_in_the_plot(places, slope, intercept):
    points = tuple((f"model {i}", x, y) for i, (x, y) in enumerate(places))
    for node in parsed(trend(points, slope, intercept)).iter("line"):
        if node.get("class") == "trend":
            for name in ("y1", "y2"):
                bottom = trend_chart.HEIGHT - trend_chart.FOOT
                assert trend_chart.TOP - 0.2 <= float(node.get(name)) <= bottom + 0.2


def test_names_of_points_do_not_cover_each_other():
    points = tuple((f"a long name {i}", 1.0 + i * 1e-3, 1.0) for i in range(12))
    labels = [node for node in parsed(trend(points, 0.0, 1.0)).iter("text") if "long" in (node.text or "")]
    assert 1 <= len(labels) < 12  # those without room keep their name in the dot's title
    assert trend(points, 0.0, 1.0).count("a long name") - len(labels) == 12
