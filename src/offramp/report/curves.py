"""Curves over the layers: of one trace, and of many models or texts on one plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from markupsafe import Markup

from offramp.report.drawing import SERIES_COUNT, drawn, figure
from offramp.report.formats import NumberFormat, decimal, listed, percent, plain_tick
from offramp.report.html import fragment
from offramp.report.names import distinct, row_name
from offramp.report.plots import BANDS, SMALL, WIDE, Axis, Plot, PlotSeries
from offramp.report.run_result import WorkloadResult
from offramp.report.table import Column, Table
from offramp.scoring.card import Curve, LayerCurves, ReliabilityDiagram
from offramp.studies.comparison.results import Comparison, Row

rounded = partial(percent, digits=0)
Point = TypeVar("Point")


@dataclass(frozen=True)
class CurveKind:
    """A curve: its key in a card, name, unit on the axis, and what it says.

    note: "" of one that a comparison does not draw. share: from 0 to 1, in percent.
    """

    key: str
    name: str
    unit: str
    note: str = ""
    share: bool = False

    @property
    def number(self) -> NumberFormat:
        """How its values are written."""
        return rounded if self.share else plain_tick


KINDS = (
    CurveKind(
        "agreement",
        "Agreement",
        "share of tokens",
        "How often the exit's most probable token is the full model's. Steep and early is good for exits.",
        share=True,
    ),
    CurveKind("reference_agreement", "Agreement with the untransformed model", "share of tokens", share=True),
    CurveKind(
        "remaining_information",
        "Information still missing",
        "share of R₀",
        "What of the information about the final prediction has not arrived yet.",
        share=True,
    ),
    CurveKind("increment", "Information gained", "nats"),
    CurveKind("kl_to_final", "KL to the full model", "nats", "How far the exit's distribution still is."),
    CurveKind("entropy", "Entropy", "nats", "How undecided the exit is."),
    CurveKind("nll", "NLL of the text", "nats", "How badly the exit predicts the text's own tokens."),
    CurveKind(
        "max_prob",
        "Confidence",
        "mean probability",
        "How sure the exit is. Where it exceeds agreement the exit is overconfident.",
        share=True,
    ),
    CurveKind("margin", "Margin", "difference of probabilities"),
    CurveKind("final_logprob", "Log-probability of the full model's token", "nats"),
    CurveKind("final_rank_median", "Median rank of the full model's token", "rank"),
    CurveKind("logit_cosine", "Cosine of logits", "cosine"),
    CurveKind(
        "centred_logit_cosine",
        "Cosine of centred logits",
        "cosine",
        "The exit's logits beside the full model's, the vocabulary's mean removed.",
    ),
    CurveKind("shuffled_logit_cosine", "Cosine of logits, shuffled (chance)", "cosine"),
    CurveKind(
        "hidden_cosine_to_final",
        "Cosine of the hidden state",
        "cosine",
        "The hidden state beside the last one.",
    ),
    CurveKind("hidden_cosine_to_previous", "Cosine of the hidden state with the layer before", "cosine"),
    CurveKind(
        "block_influence",
        "Block influence",
        "1 − cosine",
        "How much each layer turns the hidden state. Small: the layer could be left out.",
    ),
    CurveKind("update_norm", "Size of each layer's update", "ratio", "Its norm over what it reads."),
    CurveKind("brier", "Brier score", "squared error"),
    CurveKind(
        "recalibrated_brier",
        "Brier score, recalibrated",
        "squared error",
        "What confidence says about agreement at its best. Lower is better.",
    ),
    CurveKind(
        "ece_agreement",
        "Calibration error (ECE)",
        "error",
        "Raw confidence against agreement. It is biased upwards in small samples.",
    ),
    CurveKind("ece_token", "Calibration error against the text", "error"),
    CurveKind("auroc", "AUROC", "area", "Does confidence rank exits: 0.5 is guessing, 1 is perfect."),
    CurveKind("aurc", "AURC", "area"),
)
CURVES = {kind.key: kind for kind in KINDS}


RELIABILITY_DIAGRAMS = 4
TABLE_LAYERS = 8
LARGEST_RADIUS = 9.0


@dataclass(frozen=True)
class LayerFigure:
    """One chart over the layers: the keys of its curves, of one unit, and what to say where they are
    undefined.
    """

    title: str
    note: str
    curves: tuple[str, ...]
    undefined: str
    early_only: bool = False


FIGURES = (
    LayerFigure(
        "Agreement by layer",
        "How often the layer's most probable token is the full model's, and how sure the layer is on "
        "average. Where the dashed line is above the solid one the layer is overconfident.",
        ("agreement", "max_prob", "reference_agreement"),
        "the trace holds no tokens",
    ),
    LayerFigure(
        "Information still missing",
        "How far the layer's distribution is from the full model's, KL(full ‖ layer), and how undecided "
        "the layer itself is. A divergence that falls late means that the last layers do the work.",
        ("kl_to_final", "entropy"),
        "the trace holds no tokens",
    ),
    LayerFigure(
        "Calibration by layer",
        "Expected calibration error (ECE) of the raw confidence against agreement and against the text's "
        "own token, and the Brier score raw and recalibrated on other documents. Lower is better. ECE is "
        "biased upwards in small samples, so it has no interval.",
        ("ece_agreement", "ece_token", "brier", "recalibrated_brier"),
        "every token has the same confidence",
        early_only=True,
    ),
    LayerFigure(
        "Does confidence rank exits",
        "Probability that a token that agrees has the higher confidence (AUROC; 0.5 is guessing), and the "
        "area under the risk-coverage curve (AURC; lower is better).",
        ("auroc", "aurc"),
        "at every layer fewer than 20 tokens agree, or fewer than 20 do not",
        early_only=True,
    ),
    LayerFigure(
        "Similarity to the last layer",
        "Cosines that the Early-exit Adaptability Score is made of. The shuffled line compares with "
        "another token's final logits: the level of chance.",
        ("logit_cosine", "centred_logit_cosine", "hidden_cosine_to_final", "shuffled_logit_cosine"),
        "the trace holds no tokens",
    ),
    LayerFigure(
        "How much each layer changes",
        "Norm of the layer's update over the norm of what it reads. Small values mean a layer that could "
        "be skipped.",
        ("update_norm",),
        "the trace holds no tokens",
    ),
)


def layers_section(workload: WorkloadResult) -> Markup:
    """All plots over the layers and the reliability diagrams."""
    curves = workload.card.curves
    return fragment(
        "run", "layers", [layer_figure(one, curves) for one in FIGURES], reliability_figure(workload)
    )


def layer_figure(spec: LayerFigure, curves: LayerCurves) -> Markup:
    """One chart with its table, or the reason why there is none."""
    present = [CURVES[key] for key in spec.curves if key in curves.values]
    if not present:
        return fragment("run", "undefined_figure", spec.title, "the score card has no such curve.")
    # The full model agrees with itself: what holds an exit against agreement says nothing there.
    shown = slice(0, -1) if spec.early_only and len(curves.exits) > 1 else slice(None)
    exits = curves.exits[shown].astype(np.float64)
    ends = float(curves.exits[0]), float(curves.exits[-1])
    ends = ends if ends[1] > ends[0] else (ends[0] - 1, ends[1] + 1)  # a single exit still gets a width
    first = CURVES[spec.curves[0]]
    number: NumberFormat = rounded if first.share else tidy
    series = tuple(
        PlotSeries(
            kind.name, exits, curves.values[kind.key][shown], place, place, *interval_of(curves, kind, shown)
        )
        for place, kind in enumerate(present)
    )
    plot = Plot(
        title=spec.title,
        description=spec.note,
        x=Axis("layer", ends, "{:.0f}".format, ticks=6),
        y=Axis(first.unit, (0.0, 1.0) if first.share else None, number, include=(0.0,)),
        series=series,
    )
    count = len(curves.exits)
    places = np.unique(np.linspace(0, count - 1, min(count, TABLE_LAYERS)).round().astype(np.int64))
    data = curve_table(spec, curves, present).html(places.tolist())
    if not plot.svg():
        return fragment("run", "undefined_figure", spec.title, f"Undefined: {spec.undefined}.")
    note = spec.note
    absent = [CURVES[key].name for key in spec.curves if key not in curves.values]
    if absent:
        note += f" Undefined on this workload: {listed(absent)}."
    if any(np.isnan(curves.values[kind.key][shown]).any() for kind in present):
        note += f" A gap: undefined there ({spec.undefined.replace('at every layer ', '')})."
    return drawn(plot, data, note=note, legend=plot.legend(), kind="measured")


def interval_of(curves: LayerCurves, kind: CurveKind, shown: slice) -> tuple[Curve | None, Curve | None]:
    """The limits of a curve at the layers shown, if it has any."""
    limits = curves.intervals.get(kind.key)
    return (None, None) if limits is None else (limits.low[shown], limits.high[shown])


def tidy(value: float) -> str:
    """Up to two decimals, without trailing zeros."""
    short = f"{value:.2f}".rstrip("0").rstrip(".")
    return decimal(value, 0) if short in ("", "-0") else short.replace("-", "−")


def curve_table(spec: LayerFigure, curves: LayerCurves, present: Sequence[CurveKind]) -> Table[int]:
    """The curves of one chart; a row is a place among the exits."""

    def value(name: str) -> Callable[[int], str]:
        return lambda place: cell(float(curves.values[name][place]))

    columns = [Column(kind.name, value(kind.key)) for kind in present]
    return Table(
        (Column("Layer", lambda place: int(curves.exits[place])), *columns),
        caption=f"{spec.title}; summary.json has every layer and interval",
        words=1,
    )


def cell(value: float) -> str:
    """A number, or that it is undefined."""
    return decimal(float(value), 3) if np.isfinite(value) else "undefined"


def spread(points: Sequence[Point], count: int) -> list[Point]:
    """At most `count` of the points, evenly spaced in their order, both ends kept."""
    if len(points) <= count:
        return list(points)
    return [points[round(place)] for place in np.linspace(0, len(points) - 1, count)]


def reliability_figure(workload: WorkloadResult) -> Markup:
    """Reliability diagrams at some layers, all in one figure; nothing without a token."""
    filled = [diagram for diagram in workload.card.reliability if diagram.count.sum()]
    # The full model agrees with itself, so that its diagram says nothing about exits.
    diagrams = spread(filled[:-1] or filled, RELIABILITY_DIAGRAMS)
    if not diagrams:
        return Markup()
    bins = [(diagram, place) for diagram in diagrams for place, count in enumerate(diagram.count) if count]
    note = (
        "Is a layer right as often as it is sure? A disc is a bin of tokens, its area their number; discs "
        "below the diagonal are overconfident, and the line from a disc to the diagonal is the error."
    )
    plots = fragment("run", "small_charts", [reliability_plot(diagram).svg() for diagram in diagrams])
    return figure("Reliability", note, plots, BINS.html(bins), kind="measured")


Bin = tuple[ReliabilityDiagram, int]
"""A diagram, and the place of a bin in it."""

BINS: Table[Bin] = Table(
    (
        Column("Exit", lambda row: f"layer {row[0].exit}"),
        Column("Confidence bin", lambda row: f"{row[0].edges[row[1]]:.2f} to {row[0].edges[row[1] + 1]:.2f}"),
        Column("Tokens", lambda row: int(row[0].count[row[1]])),
        Column("Mean confidence", lambda row: cell(float(row[0].confidence[row[1]]))),
        Column("Agreement", lambda row: cell(float(row[0].agreement[row[1]]))),
    ),
    caption="Reliability by layer and bin",
    words=1,
)


def reliability_plot(diagram: ReliabilityDiagram) -> Plot:
    """One diagram; a disc's area is the share of tokens in the bin, the line to the diagonal its error."""
    largest = max(int(diagram.count.max()), 1)
    bins = [
        (int(count), float(confidence), float(agreement))
        for count, confidence, agreement in zip(
            diagram.count, diagram.confidence, diagram.agreement, strict=True
        )
        if count and np.isfinite(confidence + agreement)
    ]
    count, confidence, agreement = np.array(bins, dtype=np.float64).reshape(-1, 3).T
    discs = PlotSeries(
        "",
        confidence,
        agreement,
        style="",
        markers=len(bins),
        radii=np.maximum(2.0, LARGEST_RADIUS * np.sqrt(count / largest)),
        stems=confidence,
        said=[f"{n} tokens, confidence {sure:.2f}, agreement {right:.2f}" for n, sure, right in bins],
    )
    ends = np.array([0.0, 1.0])
    halves = (0.0, 0.5, 1.0)
    return Plot(
        title=f"Reliability of layer {diagram.exit}",
        description="Agreement with the full model against confidence.",
        x=Axis("confidence", (0.0, 1.0), "{:g}".format, halves),
        y=Axis("agreement ↑", (0.0, 1.0), "{:g}".format, halves),
        series=(PlotSeries("", ends, ends, style="rule", markers=0), discs),
        size=SMALL,
        style="small",
        heading=f"layer {diagram.exit}",
    )


DEPTHS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
"""Where the table beside a chart gives the value; it holds from an exit to the next."""


def profiles_section(comparison: Comparison) -> Markup:
    """Every curve, over the models of a workload and over the workloads of a model."""
    groups = charts_of(comparison.rows)
    drawn = [
        (kind.name, [found for name, by, rows in groups if (found := profile_figure(kind, name, rows, by))])
        for kind in CURVES.values()
        if kind.note
    ]
    curves = [(name, figures) for name, figures in drawn if figures]
    return fragment("comparison", "profiles", introduction(groups), curves) if curves else Markup()


def introduction(groups: Sequence[tuple[str, str, Sequence[Row]]]) -> str:
    """What the axis is, and where intervals are left out."""
    said = (
        "Models differ in their number of layers: depth is the share of the layers' work done up to an exit."
    )
    if any(len(rows) > BANDS for _, _, rows in groups):
        said += f" Bands are 95 % intervals; charts of more than {BANDS} lines have none."
    return said


def charts_of(rows: Sequence[Row]) -> list[tuple[str, str, list[Row]]]:
    """What is overlaid: (name, "workload" or "model", rows). One line a model, or one line a workload."""
    workloads, models = distinct([row.workload for row in rows]), distinct([row_name(row) for row in rows])
    charts = []
    if len(models) > 1 or len(workloads) == 1:
        charts += [(name, "workload", [row for row in rows if row.workload == name]) for name in workloads]
    if len(workloads) > 1:
        charts += [(name, "model", [row for row in rows if row_name(row) == name]) for name in models]
    return charts


def profile_figure(kind: CurveKind, name: str, rows: Sequence[Row], by: str) -> Markup:
    """One chart with its legend and table; nothing if no row has the curve."""
    having = [row for row in rows if kind.key in row.card.curves.values]
    profiles = [profile_of(row, kind.key, by, place) for place, row in enumerate(having)]
    plot = Plot(
        title=f"{kind.name}, {name}",
        description=kind.note,
        x=Axis("depth: share of the layers' work done", (0.0, 1.0), rounded, (0.0, 0.25, 0.5, 0.75, 1.0)),
        y=Axis(kind.unit, (0.0, 1.0) if kind.share else None, kind.number, include=(0.0,)),
        series=tuple(profiles),
        size=WIDE,
        style="profile-chart",
        overlaid=True,
    )
    if not any(np.isfinite(profile.y).any() for profile in profiles):
        return Markup()
    caption = f"{kind.name} at a depth, {name}"
    columns: list[Column[PlotSeries]] = [
        Column({"workload": "Model", "model": "Workload"}[by], lambda profile: profile.name),
        *(
            Column(f"{100 * depth:.0f} %", partial(value_at, depth=depth), kind.number, numeric=True)
            for depth in DEPTHS
        ),
    ]
    data = Table(columns, caption=caption).html(profiles)
    whole = drawn(plot, data, legend=plot.legend(), kind="measured")
    return fragment("comparison", "profile", whole, kind.name, f"{by}: {name}")


def profile_of(row: Row, key: str, by: str, place: int) -> PlotSeries:
    """A row's curve over depth. place: among those on its plot; each has a colour and a shape of its own."""
    curves = row.card.curves
    limits = curves.intervals.get(key)
    low, high = (None, None) if limits is None else (limits.low, limits.high)
    name = row_name(row) if by == "workload" else row.workload
    x, y = curves.depth_fraction, curves.values[key]
    colour, shape = look(place)
    return PlotSeries(name, x, y, colour, shape, low, high, markers=6, said=[name] * len(x))


def look(place: int) -> tuple[int, int]:
    """Colour and shape of a line: the first six differ in both, later ones in the pair of them."""
    return place % SERIES_COUNT, (place + place // SERIES_COUNT) % SERIES_COUNT


def value_at(profile: PlotSeries, depth: float) -> float | None:
    """The curve at a depth: the value of the last exit up to it, None where it is undefined."""
    reached = np.flatnonzero(profile.x <= depth + 1e-9)
    value = float(profile.y[reached[-1]]) if len(reached) else float("nan")
    return value if np.isfinite(value) else None
