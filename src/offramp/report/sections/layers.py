"""Curves over the layers of one trace, and whether a layer is right as often as it is sure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from offramp.report.curves import CURVES, CurveKind, rounded
from offramp.report.formats import NumberFormat, decimal, listed
from offramp.report.html import fragment
from offramp.report.plot.drawing import drawn, figure
from offramp.report.plot.plot import SMALL, Axis, Plot, Series
from offramp.report.run_result import WorkloadResult
from offramp.report.table import Column, Table
from offramp.scoring.card import Curve, LayerCurves, ReliabilityDiagram

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
    first = CURVES[spec.curves[0]]
    number: NumberFormat = rounded if first.share else tidy
    series = tuple(
        Series(
            kind.name, exits, curves.values[kind.key][shown], place, place, *interval_of(curves, kind, shown)
        )
        for place, kind in enumerate(present)
    )
    plot = Plot(
        title=spec.title,
        description=spec.note,
        x=Axis("layer", layer_range(curves), "{:.0f}".format, ticks=6),
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


def layer_range(curves: LayerCurves) -> tuple[float, float]:
    """The layers' axis; a single exit still gets a width."""
    first, last = float(curves.exits[0]), float(curves.exits[-1])
    return (first, last) if last > first else (first - 1, last + 1)


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


def spread(diagrams: list[ReliabilityDiagram], count: int) -> list[ReliabilityDiagram]:
    """At most `count` diagrams, evenly spaced, the full model's own left out where there are others.

    The full model agrees with itself, so its diagram says nothing about exits.
    """
    early = diagrams[:-1] or diagrams
    if len(early) <= count:
        return early
    return [early[round(index * (len(early) - 1) / (count - 1))] for index in range(count)]


def reliability_figure(workload: WorkloadResult) -> Markup:
    """Reliability diagrams at some layers, all in one figure; nothing without a token."""
    filled = [diagram for diagram in workload.card.reliability if diagram.count.sum()]
    diagrams = spread(filled, RELIABILITY_DIAGRAMS)
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
    discs = Series(
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
        series=(Series("", ends, ends, style="rule", markers=0), discs),
        size=SMALL,
        style="small",
        heading=f"layer {diagram.exit}",
    )
