"""Layer by layer: agreement, calibration, information, similarity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from offramp.report.formats import NumberFormat, decimal, listed, percent
from offramp.report.html import figure, fragment, table
from offramp.report.plot.plot import SMALL, Axis, Plot, Series
from offramp.report.run_result import WorkloadResult
from offramp.scoring.card import Curve, LayerCurves, ReliabilityDiagram

RELIABILITY_DIAGRAMS = 6
LARGEST_RADIUS = 9.0


@dataclass(frozen=True)
class LayerFigure:
    """One chart over the layers: its curves by name and label, and what to say where they are undefined."""

    title: str
    note: str
    y_label: str
    curves: tuple[tuple[str, str], ...]
    undefined: str
    share: bool = False
    early_only: bool = False


FIGURES = (
    LayerFigure(
        "Agreement by layer",
        "How often the layer's most probable token is the full model's, and how sure the layer is on "
        "average. Where "
        "the dashed line is above the solid one the layer is overconfident.",
        "share of tokens",
        (
            ("agreement", "agrees with the full model"),
            ("max_prob", "mean confidence"),
            ("reference_agreement", "agrees with the untransformed one"),
        ),
        "the trace holds no tokens",
        share=True,
    ),
    LayerFigure(
        "Information still missing",
        "How far the layer's distribution is from the full model's, KL(full ‖ layer), and how undecided "
        "the layer itself is. A divergence that falls late means that the last layers do the work.",
        "nats",
        (("kl_to_final", "KL to the full model"), ("entropy", "entropy of the layer")),
        "the trace holds no tokens",
    ),
    LayerFigure(
        "Calibration by layer",
        "Expected calibration error (ECE) of the raw confidence against agreement and against the text's "
        "own token, and "
        "the Brier score raw and recalibrated on other documents. Lower is better. ECE is biased upwards "
        "in small "
        "samples, so it has no interval.",
        "error",
        (
            ("ece_agreement", "ECE, agreement"),
            ("ece_token", "ECE, text"),
            ("brier", "Brier, raw"),
            ("recalibrated_brier", "Brier, recalibrated"),
        ),
        "every token has the same confidence",
        early_only=True,
    ),
    LayerFigure(
        "Does confidence rank exits",
        "Probability that a token that agrees has the higher confidence (AUROC; 0.5 is guessing), and "
        "the area under "
        "the risk-coverage curve (AURC; lower is better).",
        "area",
        (("auroc", "AUROC"), ("aurc", "AURC")),
        "at every layer fewer than 20 tokens agree, or fewer than 20 do not",
        early_only=True,
    ),
    LayerFigure(
        "Similarity to the last layer",
        "Cosines that the Early-exit Adaptability Score is made of. The shuffled line compares with "
        "another token's "
        "final logits: the level of chance.",
        "cosine",
        (
            ("logit_cosine", "logits"),
            ("centred_logit_cosine", "centred logits"),
            ("hidden_cosine_to_final", "hidden state"),
            ("shuffled_logit_cosine", "shuffled (chance)"),
        ),
        "the trace holds no tokens",
    ),
    LayerFigure(
        "How much each layer changes",
        "Norm of the layer's update over the norm of what it reads. Small values mean a layer that could "
        "be skipped.",
        "ratio",
        (("update_norm", "update norm"),),
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
    present = [(name, label) for name, label in spec.curves if name in curves.values]
    if not present:
        return fragment("run", "undefined_figure", spec.title, "the score card has no such curve.")
    # The full model agrees with itself: what holds an exit against agreement says nothing there.
    shown = slice(0, -1) if spec.early_only and len(curves.exits) > 1 else slice(None)
    exits = curves.exits[shown].astype(np.float64)
    number: NumberFormat = (lambda value: percent(value, 0)) if spec.share else tidy
    series = tuple(
        Series(label, exits, curves.values[name][shown], index, index, *interval_of(curves, name, shown))
        for index, (name, label) in enumerate(present)
    )
    plot = Plot(
        title=spec.title,
        description=spec.note,
        x=Axis("layer", layer_range(curves), "{:.0f}".format, ticks=6),
        y=Axis(spec.y_label, (0.0, 1.0) if spec.share else None, number, include=(0.0,)),
        series=series,
    )
    svg = plot.svg()
    data = curve_table(spec, curves, present)
    if not svg:
        return fragment("run", "undefined_figure", spec.title, f"Undefined: {spec.undefined}.")
    note = spec.note
    absent = [label for name, label in spec.curves if name not in curves.values]
    if absent:
        note += f" Undefined on this workload: {listed(absent)}."
    if any(np.isnan(curves.values[name][shown]).any() for name, _ in present):
        note += f" A gap: undefined there ({spec.undefined.replace('at every layer ', '')})."
    return figure(spec.title, note, svg, data, legend=plot.legend(), kind="measured")


def interval_of(curves: LayerCurves, name: str, shown: slice) -> tuple[Curve | None, Curve | None]:
    """The limits of a curve at the layers shown, if it has any."""
    if name not in curves.intervals:
        return None, None
    low, high = curves.intervals[name]
    return low[shown], high[shown]


def layer_range(curves: LayerCurves) -> tuple[float, float]:
    """The layers' axis; a single exit still gets a width."""
    first, last = float(curves.exits[0]), float(curves.exits[-1])
    return (first, last) if last > first else (first - 1, last + 1)


def tidy(value: float) -> str:
    """Up to two decimals, without trailing zeros."""
    short = f"{value:.2f}".rstrip("0").rstrip(".")
    return decimal(value, 0) if short in ("", "-0") else short.replace("-", "−")


def curve_table(spec: LayerFigure, curves: LayerCurves, present: list[tuple[str, str]]) -> Markup:
    """The curves of one chart as a table, intervals beside them."""
    header, columns = ["Layer"], [[str(int(layer)) for layer in curves.exits]]
    for name, label in present:
        header.append(label)
        columns.append([cell(value) for value in curves.values[name]])
        if name in curves.intervals:
            low, high = curves.intervals[name]
            header.append("95 % interval")
            columns.append([interval_cell(low, high, row) for row in range(len(curves.exits))])
    rows = [list(row) for row in zip(*columns, strict=True)]
    return table(header, rows, caption=spec.title)


def cell(value: float) -> str:
    """A number, or that it is undefined."""
    return decimal(float(value), 3) if np.isfinite(value) else "undefined"


def interval_cell(low: Curve, high: Curve, row: int) -> str:
    """An interval, or that there is none."""
    if not np.isfinite(low[row] + high[row]):
        return "none"
    return f"{decimal(float(low[row]), 3)} to {decimal(float(high[row]), 3)}"


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
    rows = [
        [
            f"layer {diagram.exit}",
            f"{diagram.edges[i]:.2f} to {diagram.edges[i + 1]:.2f}",
            str(int(diagram.count[i])),
            cell(float(diagram.confidence[i])),
            cell(float(diagram.agreement[i])),
        ]
        for diagram in diagrams
        for i in range(len(diagram.count))
        if diagram.count[i]
    ]
    data = table(
        ["Exit", "Confidence bin", "Tokens", "Mean confidence", "Agreement"],
        rows,
        caption="Reliability by layer and bin",
    )
    note = (
        "Is a layer right as often as it is sure? A disc is a bin of tokens, its area their number; "
        "discs below the "
        "diagonal are overconfident, and the line from a disc to the diagonal is the error."
    )
    plots = fragment("run", "small_charts", [reliability_plot(diagram).svg() for diagram in diagrams])
    return figure("Reliability", note, plots, data, kind="measured")


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
