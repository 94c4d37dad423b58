"""Charts: ticks, scales, what stands where, nothing that runs out of its drawing, colours."""

from __future__ import annotations

import itertools
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.report import plots
from offramp.report.curves import look, reliability_plot
from offramp.report.drawing import (
    DARK_RAMP,
    LETTER,
    LIGHT_RAMP,
    LogScale,
    Scale,
    contrast,
    hexadecimal,
    luminance,
    nice_range,
    nice_ticks,
    oklch_to_rgb,
    ramp_rules,
    readable_on,
)
from offramp.report.passage import depth_plot
from offramp.report.plots import (
    BANDS,
    LEFT,
    PANEL,
    RIGHT,
    WIDE,
    Axis,
    Bar,
    Box,
    Plot,
    PlotRow,
    PlotSeries,
    Point,
    ReferenceLine,
    RowPlot,
    Track,
    finite_runs,
    shortened,
    thinned,
)
from offramp.scoring.card import ReliabilityDiagram
from offramp.scoring.estimate import Estimate


def line_plot(*series: PlotSeries, **options) -> Plot:
    return Plot("Title", "What it shows", Axis("layer", (1.0, 4.0)), Axis("share"), series, **options)


def curve(*values: float):
    return np.array(values, dtype=np.float64)


def test_ticks_by_hand():
    assert nice_ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert nice_ticks(1, 30, 6) == [5, 10, 15, 20, 25, 30]
    assert nice_range([0.13, 1.17], include=(1.0,)) == pytest.approx((0.0, 1.2))
    assert nice_range([0.0, 0.0], include=(0.0,)) == pytest.approx((0.0, 0.1))
    assert nice_range([0.0, 0.0]) == pytest.approx((-0.1, 0.1))
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


def test_scale_by_logarithms():
    scale = LogScale(0.8, 125, 0, 100)
    assert (scale(0.8), scale(125)) == (0, 100)
    assert scale(10) == pytest.approx(50)
    assert scale(0.0) == 0  # below the range
    assert scale.ticks() == [1, 2, 5, 10, 20, 50, 100]
    assert LogScale(1.1, 1.3, 0, 100).ticks() == [1.1, 1.3]


def test_a_box_ends_with_the_plot_and_an_axis_by_logarithms_holds_what_is_above_0():
    axes = Axis("rate", log=True), Axis("ratio")
    series = (PlotSeries("a", curve(1, 10), curve(1, 2), low=curve(0, 1), high=curve(2, 3)),)
    boxes = (Box(0.0, 5.0, -math.inf, math.inf, "all"),)
    svg = Plot("Title", "What it shows", *axes, series, boxes, size=PANEL).svg()
    found = re.search(r'<rect class="all" x="([\d.]+)" y="(\d+)"', svg)
    assert found is not None
    assert (float(found[1]), float(found[2])) == (PANEL.left, PANEL.top)
    assert "inf" not in svg
    assert not Plot("Title", "What it shows", axes[0], Axis("seconds", log=True), boxes=boxes).svg()


def test_nan_breaks_a_line():
    x, y = curve(1, 2, 3, 4), curve(0.1, math.nan, 0.3, 0.4)
    assert list(finite_runs(x, y)) == [[0], [2, 3]]
    svg = line_plot(PlotSeries("a", x, y)).svg()
    assert svg.count('class="line"') == 2
    assert "nan" not in svg


def test_thinning_keeps_both_ends_and_drops_what_nobody_sees():
    points = [(i / 100, 0.0) for i in range(1001)]
    kept = thinned(points)
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert 10 <= len(kept) <= 12


def test_rules_outside_the_plot_are_left_out():
    series = PlotSeries("a", curve(1, 4), curve(0, 1))
    svg = line_plot(
        series, rules=(ReferenceLine("y", 0.5, "inside"), ReferenceLine("y", 9.0, "outside"))
    ).svg()
    assert "inside" in svg
    assert "outside" not in svg


def test_charts_are_well_formed_and_named():
    band = PlotSeries("<b>", curve(1, 4), curve(0, 1), low=curve(0, 0.9), high=curve(0.1, 1))
    diagram = ReliabilityDiagram(
        3, curve(0, 0.5, 1), np.array([4, 0]), curve(0.2, math.nan), curve(0.5, math.nan)
    )
    rows = (
        PlotRow("a & b", (Track((Point(Estimate(0.5, 0.4, 0.6), "a & b: 0.5", reach=(0.1, 0.9)),)),), "0.5"),
        PlotRow("<c>", (Track(bars=(Bar(0.0, 0.2, "<c>", 1),)),), "0.2"),
        PlotRow("d", (Track(),), "undefined"),
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


def test_what_is_undefined_draws_no_dot_and_nothing_defined_no_plot():
    svg = RowPlot("Scores", "…", (PlotRow("c", (Track(),), "undefined"),), (0.0, 1.0)).svg()
    assert "<circle" not in svg
    assert "undefined" in svg
    assert line_plot(PlotSeries("a", curve(1, 2), curve(math.nan, math.nan))).svg() == ""
    assert RowPlot("T", "d", (PlotRow("row", ()),)).svg() == ""


def test_bars_add_up_from_nothing_and_two_points_are_joined():
    bars = (Bar(0.0, 0.5, "layers", 0), Bar(0.5, 1.0, "probes", 1))
    both = (
        Point(Estimate(0.25, 0.2, 0.3), "measured"),
        Point(Estimate(0.75), "predicted", colour=1, shape=3),
    )
    rows = (PlotRow("whole", (Track(bars=bars),)), PlotRow("beside", (Track(both),)))
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


values = st.floats(-5, 5, allow_nan=False).map(lambda value: round(value, 3))


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def discs(svg: str) -> list[tuple[float, float]]:
    return [(float(node.get("cx")), float(node.get("cy"))) for node in parsed(svg).iter("circle")]


def dots(name: str, *points: Point) -> PlotRow:
    return PlotRow(name, tuple(Track((point,)) for point in points))


def test_dots_stand_at_their_values_one_below_the_other():
    first = Point(Estimate(1.1, 1.0, 1.2), "model <a>, prose")
    second = Point(Estimate(1.3, 1.25, 1.35), "model <a>, code: 1.30 (1.25 to 1.35)", colour=1, shape=4)
    row = dots("model <a>", first, second)
    svg = RowPlot("Speed", "note", (row,), axis=(1.0, 1.5), rule=(1.0, "plain")).svg()
    scale = Scale(1.0, 1.5, plots.LEFT, plots.RIGHT)
    (x1, y1), (x2, y2) = discs(svg)
    assert (x1, x2) == (pytest.approx(scale(1.1), abs=0.1), pytest.approx(scale(1.3), abs=0.1))
    assert y2 - y1 == pytest.approx(plots.STEP, abs=0.1)
    assert svg.count('class="hollow"') == 1
    assert "model &lt;a&gt;, code: 1.30 (1.25 to 1.35)" in svg


@given(st.lists(st.tuples(values, values, values), min_size=1, max_size=6))
def test_no_dot_or_interval_leaves_the_drawing(triples):
    rows = tuple(
        dots(f"row {i}", Point(Estimate(sorted(t)[1], min(t), max(t)), "prose", reach=(min(t), max(t))))
        for i, t in enumerate(triples)
    )
    root = parsed(RowPlot("T", "d", rows, rule=(0.0, "none")).svg())
    for node in root.iter():
        for name in ("x1", "x2", "cx"):
            if node.get(name) is not None:
                assert plots.LEFT - 0.1 <= float(node.get(name)) <= plots.RIGHT + 0.1


def test_ticks_never_touch():
    rows = (dots("row", Point(Estimate(-0.0631), "prose"), Point(Estimate(0.0012), "code")),)
    chart = RowPlot("T", "d", rows, number=lambda v: f"{v:+.5f} nats")
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
    rows = (dots("a", Point(Estimate(0.2000), "prose")), dots("b", Point(Estimate(0.2001), "prose")))
    (x1, _), (x2, _) = discs(RowPlot("T", "d", rows, least_span=0.1).svg())
    assert abs(x2 - x1) < 1
    (x1, _), (x2, _) = discs(RowPlot("T", "d", rows).svg())
    assert abs(x2 - x1) > 50


def test_long_names_are_cut_in_the_middle():
    assert shortened("short", 20) == "short"
    cut = shortened("a" * 30 + "b" * 30, 21)
    assert len(cut) == 21
    assert cut == "a" * 10 + "…" + "b" * 10


def profiles(*series: PlotSeries) -> Plot:
    depth, share = Axis("depth", (0.0, 1.0)), Axis("share", (0.0, 1.0))
    return Plot("A", "d", depth, share, series, size=WIDE, overlaid=True)


def test_profiles_are_overlaid_and_broken_where_undefined():
    x = np.array([0.25, 0.5, 0.75, 1.0])
    y = np.array([0.1, np.nan, 0.6, 1.0])
    chart = profiles(PlotSeries("one", x, y), PlotSeries("<two>", x, y / 2))
    root = parsed(chart.svg())
    groups = [node for node in root.iter("g") if "profile" in (node.get("class") or "")]
    assert [node.get("data-line") for node in groups] == ["one", "<two>"]
    lines = [node for node in groups[0].iter("path") if node.get("class") == "line"]
    assert len(lines) == 2
    down = Scale(0.0, 1.0, WIDE.height - WIDE.foot, WIDE.top)
    last = float(re.findall(r"[\d.]+", lines[-1].get("d"))[-1])
    assert last == pytest.approx(down(1.0), abs=0.1)
    assert chart.legend().count("<li data-line=") == 2
    assert "&lt;two&gt;" in chart.legend()


def test_bands_only_for_few_lines_and_none_without_a_finite_point():
    x = np.array([0.5, 1.0])
    banded = [PlotSeries(str(i), x, x, low=x - 0.1, high=x + 0.1) for i in range(BANDS + 1)]
    few, many = profiles(*banded[:-1]).svg(), profiles(*banded).svg()
    assert few.count('class="band"') == BANDS
    assert 'class="band"' not in many
    assert profiles(PlotSeries("none", x, np.full(2, np.nan))).svg() == ""


def test_36_lines_differ_in_colour_or_dash():
    assert len({look(place) for place in range(36)}) == 36


def named_areas(svg: str) -> dict[str, list[tuple[float, float, float, float]]]:
    """What every text of a plot covers, about: left, top, right, bottom, by its class."""
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for node in parsed(svg).iter("text"):
        wide = LETTER * len(node.text or "")
        part = {"middle": 0.5, "end": 1.0}.get(node.get("text-anchor", ""), 0.0)
        left, base = float(node.get("x")) - part * wide, float(node.get("y"))
        found.setdefault(node.get("class", ""), []).append((left, base - 10, left + wide, base + 2))
    return found


def covered(areas: list[tuple[float, float, float, float]]) -> list[tuple[int, int]]:
    """Pairs of areas that have more than the rounding of a coordinate in common."""
    return [
        (i, j)
        for (i, a), (j, b) in itertools.combinations(enumerate(areas), 2)
        if min(a[2], b[2]) - max(a[0], b[0]) > 0.2 and min(a[3], b[3]) - max(a[1], b[1]) > 0.2
    ]


@given(
    points=st.lists(st.tuples(st.floats(0.7, 1.0), st.floats(0.6, 1.4)), min_size=1, max_size=14),
    long=st.booleans(),
    floors=st.lists(st.sampled_from([0.8, 0.9, 0.95, 0.99, 0.995, 0.999]), unique=True),
    best=st.floats(0.8, 1.3),
    worth=st.sampled_from([0.0, 0.001, 0.01, 0.05]),
)
def test_no_name_covers_another_however_crowded(points, long, floors, best, worth):
    """As on a run's page: names of points, of floors, and of what exits have to beat."""
    names = [f"prompt lookup {i}" if long else f"{chr(65 + i)}" for i in range(len(points))]
    kept, speed = np.array(points).T
    ways = PlotSeries("ways", kept, speed, style="", markers=len(points), said=names, labels=names)
    rules = [ReferenceLine("x", floor, f"{100 * floor:g} %") for floor in floors]
    rules.append(ReferenceLine("y", best, "best without exits", "below"))
    rules.append(ReferenceLine("y", best * (1 + worth), f"{100 * worth:g} % above it"))
    axes = Axis("agreement kept", (0.66, 1.04)), Axis("speed, plain decoding = 1", (0.5, 1.5))
    svg = Plot("T", "d", *axes, (ways,), rules=tuple(rules), size=PANEL).svg()
    areas = named_areas(svg)
    placed = areas.get("halo", []) + areas.get("rule-name", [])
    # The halves of markers that stand upon each other are no names; a name stands beside all of them.
    others = [area for style, some in areas.items() if style not in ("halo", "rule-name") for area in some]
    marks = [(x - 3, y - 3, x + 3, y + 3) for x, y in discs(svg)]
    assert covered(placed) == []
    for area in [*others, *marks]:
        assert covered([*placed, area]) == []
    # Whatever has no room is still said by a pointer on its point or line.
    root = parsed(svg)
    texts = [*root.iter("text"), *root.iter("title")]
    said = {(node.text or "").replace("\u00a0", " ") for node in texts}
    assert said >= {*names, *(rule.name for rule in rules)}


def test_a_name_stands_where_it_stood_unless_something_is_there():
    line, point = (
        ReferenceLine("y", 0.5, "half"),
        PlotSeries("way", curve(3), curve(0.5), style="", said=["way"], labels=["way"]),
    )
    alone = parsed(line_plot(point, rules=(line,)).svg())
    (name,) = [node for node in alone.iter("text") if node.get("class") == "rule-name"]
    (way,) = [node for node in alone.iter("text") if node.text == "way"]
    ((x, y),) = discs(line_plot(point, rules=(line,)).svg())
    assert float(way.get("x")) == pytest.approx(x + 6, abs=0.11)
    assert float(name.get("y")) == pytest.approx(y - 4, abs=0.11)
    close = PlotSeries("way", curve(1.1), curve(0.5), style="", said=["way"], labels=["way"])
    moved = parsed(line_plot(close, rules=(line,)).svg())
    (name,) = [node for node in moved.iter("text") if node.get("class") == "rule-name"]
    assert name.get("text-anchor") == "end"


def test_oklch_of_known_colours():
    # Published OKLCH coordinates of white, black and pure sRGB red.
    assert hexadecimal(oklch_to_rgb(1.0, 0.0, 0.0)) == "#ffffff"
    assert hexadecimal(oklch_to_rgb(0.0, 0.0, 0.0)) == "#000000"
    assert oklch_to_rgb(0.6279554, 0.2576833, 29.2338812) == pytest.approx((1.0, 0.0, 0.0), abs=0.01)


@pytest.mark.parametrize(("ramp", "sign"), [(LIGHT_RAMP, 1), (DARK_RAMP, -1)])
def test_lightness_orders_the_layers_and_text_stays_readable(ramp, sign):
    colours = [ramp.colour(step / 29) for step in range(30)]
    brightness = [sign * luminance(colour) for colour in colours]
    assert brightness == sorted(brightness)
    assert len(set(colours)) == 30
    assert min(contrast(colour, readable_on(colour)) for colour in colours) >= 4.5


@pytest.mark.parametrize("layers", [1, 2, 80])
def test_every_layer_has_a_class_in_both_themes(layers):
    rules = ramp_rules(layers)
    for layer in range(1, layers + 1):
        assert rules.count(f".e{layer}{{") == 2
