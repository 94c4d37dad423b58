"""How suited a model is: the components of the score, the oracles and EAS."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from offramp.report.findings import main_verdict
from offramp.report.formats import decimal, estimate_text, percent, whole_percent
from offramp.report.html import fragment
from offramp.report.plot.drawing import drawn
from offramp.report.plot.rows import Point, Row, RowPlot, Track
from offramp.report.run_result import WorkloadResult
from offramp.report.scored import (
    FIGURES,
    TITLE,
    Figure,
    component_figures,
    eas_figures,
    exits_hold,
    oracle_figures,
    readings_figures,
    readings_sentence,
)
from offramp.report.words import transform_cost
from offramp.scoring.card import PUBLISHED_EAS, STUDY, ScoreCard
from offramp.scoring.estimate import Estimate
from offramp.tracing.described_heads import RAW


def components_section(workload: WorkloadResult) -> Markup:
    """Components, EAS and oracles side by side."""
    card, cost = workload.card, transform_cost(workload)
    said = f"The full model, as transformed, says what the untransformed one says on {cost}."
    figures = [component_figure(card), *readings_charts(card), eas_figure(card), oracle_figure(workload)]
    return fragment("run", "components", "" if cost is None else said, figures, card.notes)


def figure_row(figure: Figure) -> Row:
    """One figure as a row; an undefined one has words and no point."""
    estimate = figure.estimate
    if estimate.value is None:
        return Row(figure.name, (Track(),), "undefined")
    shown = estimate_text(estimate, figure.number)
    colour, shape = (1, 3) if figure.emphasis else (0, 0)
    said = f"{figure.name}: {shown}"
    point = Point(estimate.value, said, estimate.low, estimate.high, colour, shape, figure.reach)
    return Row(figure.name, (Track((point,)),), shown)


def _drawn(plot: RowPlot, figures: Sequence[Figure], *, title: str = "", caption: str = "") -> Markup:
    """Figures drawn, with why some are undefined, and as a table."""
    undefined = [(one.name, one.estimate.undefined or "") for one in figures if one.estimate.value is None]
    data = FIGURES.html(figures, caption=caption or plot.title)
    below = fragment("run", "undefined_notes", undefined)
    return drawn(plot, data, title=title, below=below, kind="measured")


def component_figure(card: ScoreCard) -> Markup:
    """The three components, the composite, and the study's literal calibration."""
    figures = component_figures(card)
    through = "" if card.read_through == RAW else f"Exits are read through {card.read_through}. "
    note = (
        f"{through}From 0 to 1, higher is more suitable; bars are 95 % intervals over documents. "
        "Representation cannot exceed "
        f"{decimal(card.ceiling)}. That the composite predicts time saved is not shown by this page: that "
        "takes many models."
    )
    rows = tuple(map(figure_row, figures))
    plot = RowPlot("Components of the suitability score", note, rows, (0.0, 1.0), number="{:g}".format)
    figures.append(Figure("Information in the final layer, nats", card.initial_information))
    return _drawn(plot, figures, title="Components")


def readings_charts(card: ScoreCard) -> list[Markup]:
    """What the model's own head reads beside what fitted heads read, where both were traced."""
    readings = card.readings
    if readings is None:
        return []
    figures = readings_figures(readings)
    note = (
        "The same tokens at the same exits: what the model's own head reads there, and what the exits hold, "
        f"as far as {readings.through} finds it. Brackets end at the ceiling. {readings_sentence(readings)}"
    )
    rows = tuple(map(figure_row, figures))
    plot = RowPlot(TITLE, note, rows, (0.0, 1.0), number="{:g}".format)
    return [_drawn(plot, exits_hold(readings))]


def eas_figure(card: ScoreCard) -> Markup:
    """EAS by similarity between floor and ceiling, and what the study reports for other models."""
    note = (
        "The study's Early-exit Adaptability Score. Brackets run from the floor (another token's logits) "
        "to the ceiling "
        "(every layer equal to the last). Hollow dots: as published. The study does not publish its "
        "similarity, so its "
        "values are for orientation only."
    )
    figures = eas_figures(card)
    rows = [figure_row(figure) for figure in figures]
    for other in sorted(PUBLISHED_EAS, key=lambda score: -score.eas):
        name = f"{other.model}, published"
        point = Point(other.eas, f"{name}: {decimal(other.eas)}", colour=1, shape=4)
        rows.append(Row(name, (Track((point,)),), decimal(other.eas)))
        why = "the study publishes no interval"
        figures.append(Figure(name, Estimate(other.eas, no_interval=why), decimal))
    plot = RowPlot("Early-exit Adaptability Score", note, rows, (0.0, 1.0), number="{:g}".format)
    return _drawn(plot, figures, title="EAS", caption=f"EAS; published values from {STUDY}")


def oracle_figure(workload: WorkloadResult) -> Markup:
    """The oracles' skip ratios, the time they could save at most, and what the best policy skips."""
    card, verdict = workload.card, main_verdict(workload)
    figures = oracle_figures(card)
    if verdict is not None:
        name = f"Best policy at {whole_percent(verdict.floor)}, replayed"
        figures.append(Figure(name, verdict.skip_ratio, percent, emphasis=True))
    note = (
        "Share of layers skipped by an oracle that knows the full model's answer, at 100 % agreement: a "
        "policy that may change some answers can skip more. First match is the most that can be skipped "
        "without changing any answer; saturation leaves out matches that later layers undo. "
        f"As time: less the output head's {percent(card.head_share)} of a token's work."
    )
    rows = tuple(map(figure_row, figures))
    plot = RowPlot("Oracles", note, rows, number=lambda value: percent(value, 0), include=(0.0,))
    caption = "Layers skipped by the oracles, at 100 % agreement, and by the best policy"
    return _drawn(plot, figures, caption=caption)
