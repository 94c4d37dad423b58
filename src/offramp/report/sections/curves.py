"""Curves over depth: layer by layer of one trace, and many models or texts on one plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from offramp.report.formats import NumberFormat, decimal, listed, percent, plain_tick
from offramp.report.html import figure, fragment, table
from offramp.report.names import distinct, row_name
from offramp.report.plot.drawing import SERIES_COUNT
from offramp.report.plot.plot import BANDS, SMALL, WIDE, Axis, Plot, Series
from offramp.report.run_result import WorkloadResult
from offramp.scoring.card import Curve, LayerCurves, ReliabilityDiagram
from offramp.studies.comparison.results import Comparison, Row

RELIABILITY_DIAGRAMS = 4
TABLE_LAYERS = 8
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
    limits = curves.intervals[name]
    return limits.low[shown], limits.high[shown]


def layer_range(curves: LayerCurves) -> tuple[float, float]:
    """The layers' axis; a single exit still gets a width."""
    first, last = float(curves.exits[0]), float(curves.exits[-1])
    return (first, last) if last > first else (first - 1, last + 1)


def tidy(value: float) -> str:
    """Up to two decimals, without trailing zeros."""
    short = f"{value:.2f}".rstrip("0").rstrip(".")
    return decimal(value, 0) if short in ("", "-0") else short.replace("-", "−")


def curve_table(spec: LayerFigure, curves: LayerCurves, present: list[tuple[str, str]]) -> Markup:
    """The curves of one chart at some layers."""
    count = len(curves.exits)
    shown = np.unique(np.linspace(0, count - 1, min(count, TABLE_LAYERS)).round().astype(np.int64))
    header = ["Layer", *[label for _, label in present]]
    rows = [
        [str(int(curves.exits[at])), *[cell(curves.values[name][at]) for name, _ in present]] for at in shown
    ]
    return table(header, rows, caption=f"{spec.title}; summary.json has every layer and interval")


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


DEPTHS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
"""Where the table beside a chart gives the value; it holds from an exit to the next."""


rounded = partial(percent, digits=0)


@dataclass(frozen=True)
class CurveKind:
    """A curve: its key in a row, name, unit on the axis, what it says, and how it is written."""

    key: str
    name: str
    unit: str
    note: str
    number: NumberFormat = decimal
    share: bool = False


CURVES = (
    CurveKind(
        "agreement",
        "Agreement",
        "share of tokens",
        "How often the exit's most probable token is the full model's. Steep and early is good for exits.",
        rounded,
        share=True,
    ),
    CurveKind(
        "kl_to_final", "KL to the full model", "nats", "How far the exit's distribution still is.", plain_tick
    ),
    CurveKind(
        "remaining_information",
        "Information still missing",
        "share of R₀",
        "What of the information about the final prediction has not arrived yet.",
        rounded,
        share=True,
    ),
    CurveKind(
        "max_prob",
        "Confidence",
        "mean probability",
        "How sure the exit is. Where it exceeds agreement the exit is overconfident.",
        rounded,
        share=True,
    ),
    CurveKind("entropy", "Entropy", "nats", "How undecided the exit is.", plain_tick),
    CurveKind(
        "nll", "NLL of the text", "nats", "How badly the exit predicts the text's own tokens.", plain_tick
    ),
    CurveKind(
        "recalibrated_brier",
        "Brier score, recalibrated",
        "squared error",
        "What confidence says about agreement at its best. Lower is better.",
        plain_tick,
    ),
    CurveKind(
        "ece_agreement",
        "Calibration error (ECE)",
        "error",
        "Raw confidence against agreement. It is biased upwards in small samples.",
        plain_tick,
    ),
    CurveKind(
        "auroc", "Does confidence rank exits (AUROC)", "area", "0.5 is guessing, 1 is perfect.", plain_tick
    ),
    CurveKind(
        "centred_logit_cosine",
        "Similarity to the last exit, centred logits",
        "cosine",
        "Cosine of the exit's logits to the full model's, the vocabulary's mean removed.",
        plain_tick,
    ),
    CurveKind(
        "hidden_cosine_to_final",
        "Similarity to the last exit, hidden state",
        "cosine",
        "Cosine of the hidden state to the last one.",
        plain_tick,
    ),
    CurveKind(
        "block_influence",
        "Block influence",
        "1 − cosine",
        "How much each layer turns the hidden state. Small: the layer could be left out.",
        plain_tick,
    ),
    CurveKind(
        "update_norm", "Size of each layer's update", "ratio", "Its norm over what it reads.", plain_tick
    ),
)


def profiles_section(comparison: Comparison) -> Markup:
    """Every curve, over the models of a workload and over the workloads of a model."""
    groups = charts_of(comparison.rows)
    drawn = [
        (kind.name, [found for name, by, rows in groups if (found := profile_figure(kind, name, rows, by))])
        for kind in CURVES
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
    found = []
    if len(models) > 1 or len(workloads) == 1:
        found += [(name, "workload", [row for row in rows if row.workload == name]) for name in workloads]
    if len(workloads) > 1:
        found += [(name, "model", [row for row in rows if row_name(row) == name]) for name in models]
    return found


def profile_figure(kind: CurveKind, name: str, rows: Sequence[Row], by: str) -> Markup:
    """One chart with its legend and table; nothing if no row has the curve."""
    having = [row for row in rows if kind.key in row.curves]
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
    drawn = plot.svg()
    if not drawn:
        return Markup()
    caption = f"{kind.name} at a depth, {name}"
    lines = [[profile.name, *depth_cells(profile, kind.number)] for profile in profiles]
    header = [{"workload": "Model", "model": "Workload"}[by], *[f"{100 * depth:.0f} %" for depth in DEPTHS]]
    data = table(header, lines, caption=caption)
    whole = figure(f"{kind.name}, {name}", kind.note, drawn, data, legend=plot.legend(), kind="measured")
    return fragment("comparison", "profile", whole, kind.name, f"{by}: {name}")


def profile_of(row: Row, key: str, by: str, place: int) -> Series:
    """A row's curve over depth. place: among those on its plot; each has a colour and a shape of its own."""
    limits = row.intervals.get(key)
    low, high = (None, None) if limits is None else (curve(limits["low"]), curve(limits["high"]))
    name = row_name(row) if by == "workload" else row.workload
    x, y = curve(row.depth_fraction), curve(row.curves[key])
    colour, shape = look(place)
    return Series(name, x, y, colour, shape, low, high, markers=6, said=[name] * len(x))


def look(place: int) -> tuple[int, int]:
    """Colour and shape of a line: the first six differ in both, later ones in the pair of them."""
    return place % SERIES_COUNT, (place + place // SERIES_COUNT) % SERIES_COUNT


def curve(values: Sequence[float | None]) -> NDArray[np.float64]:
    """Numbers with NaN for what is undefined: float64 [exits]."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def depth_cells(profile: Series, number: NumberFormat) -> list[str]:
    """The curve at each depth of the table: the value of the last exit up to it."""
    cells = []
    for depth in DEPTHS:
        reached = np.flatnonzero(profile.x <= depth + 1e-9)
        value = float(profile.y[reached[-1]]) if len(reached) else float("nan")
        cells.append(number(value) if np.isfinite(value) else "–")
    return cells
