"""How suited a model is: the components of the score, the oracles and EAS."""

from __future__ import annotations

from markupsafe import Markup

from offramp.report.findings import main_verdict
from offramp.report.formats import (
    NumberFormat,
    decimal,
    estimate_text,
    interval_text,
    percent,
    thousandths,
    whole_percent,
)
from offramp.report.html import figure, fragment, table
from offramp.report.plot.rows import Point, Row, RowPlot, Track
from offramp.report.readings import COMPONENT_NAMES, TITLE, readings_sentence
from offramp.report.run_result import WorkloadResult
from offramp.report.verdict_words import transform_cost
from offramp.scoring.card import PUBLISHED_EAS, STUDY, ScoreCard
from offramp.scoring.estimate import Estimate
from offramp.tracing.described_heads import RAW


def components_section(workload: WorkloadResult) -> Markup:
    """Components, EAS and oracles side by side."""
    card, cost = workload.card, transform_cost(workload)
    said = f"The full model, as transformed, says what the untransformed one says on {cost}."
    figures = [component_figure(card), *readings_figures(card), eas_figure(card), oracle_figure(workload)]
    return fragment("run", "components", "" if cost is None else said, figures, card.notes)


def estimate_row(
    name: str,
    estimate: Estimate,
    number: NumberFormat = thousandths,
    *,
    emphasis: bool = False,
    reach: tuple[float, float] | None = None,
) -> Row:
    """One figure as a row; an undefined one has words and no point. emphasis: drawn in the second colour."""
    if estimate.value is None:
        return Row(name, (Track(),), "undefined")
    shown = estimate_text(estimate, number)
    colour, shape = (1, 3) if emphasis else (0, 0)
    point = Point(estimate.value, f"{name}: {shown}", estimate.low, estimate.high, colour, shape, reach)
    return Row(name, (Track((point,)),), shown)


def estimate_table(
    caption: str, figures: list[tuple[str, Estimate]], number: NumberFormat = thousandths
) -> Markup:
    """Figures with interval, or with the reason why one has none."""
    rows = [
        [
            name,
            "undefined" if estimate.value is None else number(estimate.value),
            interval_text(estimate.low, estimate.high, number) or "none",
            estimate.undefined or estimate.no_interval or "",
        ]
        for name, estimate in figures
    ]
    return table(["Figure", "Value", "95 % interval", "Remark"], rows, caption=caption)


def undefined_notes(figures: list[tuple[str, Estimate]]) -> Markup:
    """Why each undefined figure has no number, below its chart."""
    notes = [(name, estimate.undefined or "") for name, estimate in figures if estimate.value is None]
    return fragment("run", "undefined_notes", notes)


def component_figure(card: ScoreCard) -> Markup:
    """The three components, the composite, and the study's literal calibration."""
    figures = [
        ("Representation quality", card.representation),
        ("Information increment", card.increment),
        ("Calibration", card.calibration),
        ("Calibration, as the study words it", card.literal_calibration),
        ("Composite of the first three", card.composite),
    ]
    rows = tuple(
        estimate_row(name, estimate, emphasis=name.startswith("Composite")) for name, estimate in figures
    )
    through = "" if card.read_through == RAW else f"Exits are read through {card.read_through}. "
    note = (
        f"{through}From 0 to 1, higher is more suitable; bars are 95 % intervals over documents. "
        "Representation cannot exceed "
        f"{decimal(card.ceiling)}. That the composite predicts time saved is not shown by this page: that "
        "takes many models."
    )
    plot = RowPlot("Components of the suitability score", note, rows, (0.0, 1.0), number="{:g}".format)
    figures.append(("Information in the final layer, nats", card.initial_information))
    data = estimate_table("Components of the suitability score", figures)
    return figure("Components", note, plot.svg() + undefined_notes(figures), data, kind="measured")


def readings_figures(card: ScoreCard) -> list[Markup]:
    """What the model's own head reads beside what fitted heads read, where both were traced."""
    readings = card.readings
    if readings is None:
        return []
    sides = (("own head", readings.raw), ("through heads", readings.fitted))
    rows, figures = [], []
    for words, name in COMPONENT_NAMES:
        reach = (0.0, readings.ceiling) if name == "representation" else None
        for side, reading in sides:
            estimate, short = getattr(reading, name), f"{words.partition(' ')[0]}, {side}"
            fitted = reading is readings.fitted
            rows.append(estimate_row(short, estimate, decimal, emphasis=fitted, reach=reach))
            figures.append((f"{words}, {side}", estimate))
    note = (
        "The same tokens at the same exits: what the model's own head reads there, and what the exits hold, "
        f"as far as {readings.through} finds it. Brackets end at the ceiling. {readings_sentence(readings)}"
    )
    plot = RowPlot(TITLE, note, tuple(rows), (0.0, 1.0), number="{:g}".format)
    gained = [(f"{words}, gained", getattr(readings.gained, name)) for words, name in COMPONENT_NAMES]
    data = estimate_table(TITLE, [*figures, *gained, ("Share of the distance closed", readings.closed)])
    return [figure(TITLE, note, plot.svg() + undefined_notes(figures), data, kind="measured")]


def eas_figure(card: ScoreCard) -> Markup:
    """EAS by similarity between floor and ceiling, and what the study reports for other models."""
    note = (
        "The study's Early-exit Adaptability Score. Brackets run from the floor (another token's logits) "
        "to the ceiling "
        "(every layer equal to the last). Hollow dots: as published. The study does not publish its "
        "similarity, so its "
        "values are for orientation only."
    )
    rows, lines = [], []
    figures = []
    for variant in card.eas_variants:
        name = f"{variant.similarity.replace('_', ' ')} similarity, α {variant.alpha:g}"
        floor, ceiling = variant.floor, variant.ceiling
        reach = None if floor is None or ceiling is None else (floor, ceiling)
        rows.append(estimate_row(name, variant.score, reach=reach))
        ends = ["undefined" if end is None else decimal(end, 3) for end in (variant.floor, variant.ceiling)]
        lines.append([name, estimate_text(variant.score, thousandths), *ends])
        figures.append((name, variant.score))
    for other in sorted(PUBLISHED_EAS, key=lambda score: -score.eas):
        name = f"{other.model}, published"
        point = Point(other.eas, f"{name}: {decimal(other.eas)}", colour=1, shape=4)
        rows.append(Row(name, (Track((point,)),), decimal(other.eas)))
        lines.append([f"{other.model}, as published", decimal(other.eas), "not published", "not published"])
    plot = RowPlot("Early-exit Adaptability Score", note, rows, (0.0, 1.0), number="{:g}".format)
    data = table(
        ["Similarity or model", "EAS", "Floor", "Ceiling"],
        lines,
        caption=f"EAS; published values from {STUDY}",
    )
    return figure("EAS", note, plot.svg() + undefined_notes(figures), data, kind="measured")


def oracle_figure(workload: WorkloadResult) -> Markup:
    """The oracles' skip ratios, the time they could save at most, and what the best policy skips."""
    card = workload.card
    figures = [
        ("First-match oracle at 100 %", card.first_match_skip),
        ("Saturation oracle at 100 %", card.saturation_skip),
        ("First match at 100 %, as time", card.time_ceiling_first_match),
        ("Saturation at 100 %, as time", card.time_ceiling_saturation),
    ]
    verdict = main_verdict(workload)
    if verdict is not None:
        figures.append((f"Best policy at {whole_percent(verdict.floor)}, replayed", verdict.skip_ratio))
    number: NumberFormat = percent
    rows = tuple(
        estimate_row(name, estimate, number, emphasis=name.startswith("Best")) for name, estimate in figures
    )
    note = (
        "Share of layers skipped by an oracle that knows the full model's answer, at 100 % agreement: a "
        "policy that may change some answers can skip more. First match is the most that can be skipped "
        "without changing any answer; saturation leaves out matches that later layers undo. "
        f"As time: less the output head's {percent(card.head_share)} of a token's work."
    )
    plot = RowPlot("Oracles", note, rows, number=lambda value: percent(value, 0), include=(0.0,))
    data = estimate_table(
        "Layers skipped by the oracles, at 100 % agreement, and by the best policy", figures, number
    )
    return figure("Oracles", note, plot.svg() + undefined_notes(figures), data, kind="measured")
