"""Charts: round ticks, gaps at NaN, well-formed SVG."""

import math
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.report.passage import depth_plot
from offramp.report.plot.drawing import Scale, nice_range, nice_ticks
from offramp.report.plot.plot import Axis, Plot, Rule, Series, finite_runs, thinned
from offramp.report.plot.rows import LEFT, RIGHT, Bar, Point, Row, RowPlot, Track
from offramp.report.sections.curves import reliability_plot
from offramp.scoring.card import ReliabilityDiagram


def line_plot(*series: Series, **options) -> Plot:
    return Plot("Title", "What it shows", Axis("layer", (1.0, 4.0)), Axis("share"), series, **options)


def curve(*values: float):
    return np.array(values, dtype=np.float64)


def test_ticks_by_hand():
    assert nice_ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert nice_ticks(1, 30, 6) == [5, 10, 15, 20, 25, 30]
    assert nice_range([0.13, 1.17], include=(1.0,)) == pytest.approx((0.0, 1.2))
    assert nice_range([math.nan]) is None


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_ticks_are_few_and_lie_within(low, span):
    ticks = nice_ticks(low, low + span)
    assert 3 <= len(ticks) <= 9
    assert all(low - 1e-6 * span <= tick <= low + span + 1e-6 * span for tick in ticks)
    assert np.allclose(np.diff(ticks), np.diff(ticks)[0], rtol=1e-3)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1))
def test_range_holds_every_value(values):
    found = nice_range(values)
    assert found is not None
    low, high = found
    assert low < high
    assert low - 1e-6 <= min(values) <= max(values) <= high + 1e-6


def test_scale_maps_ends():
    scale = Scale(10, 20, 100, 0)
    assert (scale(10), scale(20), scale(15)) == (100, 0, 50)
    assert scale.holds(20)
    assert not scale.holds(20.1)


def test_nan_breaks_a_line():
    x, y = curve(1, 2, 3, 4), curve(0.1, math.nan, 0.3, 0.4)
    assert list(finite_runs(x, y)) == [[0], [2, 3]]
    svg = line_plot(Series("a", x, y)).svg()
    assert svg.count('class="line"') == 2
    assert "nan" not in svg


def test_without_a_finite_point_there_is_no_plot():
    assert line_plot(Series("a", curve(1, 2), curve(math.nan, math.nan))).svg() == ""


def test_thinning_keeps_both_ends_and_drops_what_nobody_sees():
    points = [(i / 100, 0.0) for i in range(1001)]
    kept = thinned(points)
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert 10 <= len(kept) <= 12


def test_rules_outside_the_plot_are_left_out():
    series = Series("a", curve(1, 4), curve(0, 1))
    svg = line_plot(series, rules=(Rule("y", 0.5, "inside"), Rule("y", 9.0, "outside"))).svg()
    assert "inside" in svg
    assert "outside" not in svg


def test_charts_are_well_formed_and_named():
    band = Series("<b>", curve(1, 4), curve(0, 1), low=curve(0, 0.9), high=curve(0.1, 1))
    diagram = ReliabilityDiagram(
        3, curve(0, 0.5, 1), np.array([4, 0]), curve(0.2, math.nan), curve(0.5, math.nan)
    )
    rows = (
        Row("a & b", (Track((Point(0.5, "a & b: 0.5", 0.4, 0.6, reach=(0.1, 0.9)),)),), "0.5"),
        Row("<c>", (Track(bars=(Bar(0.0, 0.2, "<c>", 1),)),), "0.2"),
        Row("d", (Track(),), "undefined"),
    )
    charts = [
        line_plot(band).svg(),
        RowPlot("Scores", "…", rows, (0.0, 1.0)).svg(),
        reliability_plot(diagram).svg(),
        depth_plot(np.array([1, 2, 3]), np.array([0, 1, 3]), 3).svg(),
    ]
    for svg in charts:
        root = ElementTree.fromstring(svg)
        assert root.find("title") is not None
        assert root.find("desc") is not None
        assert root.get("role") == "img"


def test_an_undefined_row_draws_no_dot():
    svg = RowPlot("Scores", "…", (Row("c", (Track(),), "undefined"),), (0.0, 1.0)).svg()
    assert "<circle" not in svg
    assert "undefined" in svg


def test_bars_add_up_from_nothing_and_two_points_are_joined():
    bars = (Bar(0.0, 0.5, "layers", 0), Bar(0.5, 1.0, "probes", 1))
    both = (Point(0.25, "measured", 0.2, 0.3), Point(0.75, "predicted", colour=1, shape=3))
    rows = (Row("whole", (Track(bars=bars),)), Row("beside", (Track(both),)))
    root = ElementTree.fromstring(
        RowPlot("T", "d", rows, (0.0, 1.0), rule=(0.5, "half"), better="left").svg()
    )
    scale = Scale(0.0, 1.0, LEFT, RIGHT)
    drawn = [node for node in root.iter("rect") if node.find("title") is not None]
    ends = [(float(r.get("x")), float(r.get("x")) + float(r.get("width"))) for r in drawn]
    assert ends[0] == pytest.approx((scale(0.0), scale(0.5)), abs=0.11)
    assert ends[1] == pytest.approx((scale(0.5), scale(1.0)), abs=0.11)
    (joined,) = [node for node in root.iter("line") if node.get("class") == "gap-line"]
    assert float(joined.get("x1")) == pytest.approx(scale(0.25), abs=0.1)
    assert float(joined.get("x2")) == pytest.approx(scale(0.75), abs=0.1)
    (tint,) = [node for node in root.iter("rect") if node.get("class") == "faster"]
    assert float(tint.get("x")) == LEFT
    assert float(tint.get("width")) == pytest.approx(scale(0.5) - LEFT, abs=0.1)
