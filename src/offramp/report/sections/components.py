"""The suitability score: components, EAS between its floor and ceiling, the study's values, the oracles."""

from __future__ import annotations

from offramp.report.charts.interval_chart import IntervalChart, IntervalRow
from offramp.report.charts.scale import nice_range
from offramp.report.formats import NumberFormat, decimal, estimate_text, interval_text, percent, whole_percent
from offramp.report.headline import main_verdict
from offramp.report.markup import element, figure, table, text
from offramp.report.run_result import WorkloadResult
from offramp.report.untransformed import transform_cost
from offramp.scoring.card import ScoreCard
from offramp.scoring.estimate import Estimate
from offramp.scoring.reference import PUBLISHED_EAS, STUDY


def components_section(workload: WorkloadResult) -> str:
    """Components, EAS and oracles side by side."""
    card = workload.card
    charts = component_figure(card) + eas_figure(card) + oracle_figure(workload)
    notes = "".join(element("li", text(note)) for note in card.notes)
    return (
        element("h3", "How suited this model is")
        + transform_note(workload)
        + element("div", charts, class_="charts")
        + (element("ul", notes, class_="note") if notes else "")
    )


def transform_note(workload: WorkloadResult) -> str:
    """What the transform costs by itself; nothing for a model without transforms."""
    cost = transform_cost(workload)
    if cost is None:
        return ""
    said = f"The full model, as transformed, says what the untransformed one says on {cost}."
    return element("p", text(said), class_="note")


def thousandths(value: float) -> str:
    """A score with three decimals: intervals over many documents are narrower than a hundredth."""
    return decimal(value, 3)


def estimate_row(
    name: str, estimate: Estimate, number: NumberFormat = thousandths, *, emphasis: bool = False
) -> IntervalRow:
    """One figure as a row; an undefined one has words and no dot."""
    if estimate.value is None:
        return IntervalRow(name, "undefined", None)
    interval = interval_text(estimate.low, estimate.high, number)
    shown = f"{number(estimate.value)} ({interval})" if interval else number(estimate.value)
    return IntervalRow(name, shown, estimate.value, estimate.low, estimate.high, emphasis=emphasis)


def estimate_table(
    caption: str, figures: list[tuple[str, Estimate]], number: NumberFormat = thousandths
) -> str:
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


def undefined_notes(figures: list[tuple[str, Estimate]]) -> str:
    """Why each undefined figure has no number, below its chart."""
    items = [
        element(
            "p",
            element("strong", text(f"{name} is undefined.")) + " " + text(estimate.undefined or ""),
            class_="reason",
        )
        for name, estimate in figures
        if estimate.value is None
    ]
    return "".join(items)


def component_figure(card: ScoreCard) -> str:
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
    note = (
        "From 0 to 1, higher is more suitable; bars are 95 % intervals over documents. Representation "
        "cannot exceed "
        f"{decimal(card.ceiling)}. That the composite predicts time saved is not shown by this page: that "
        "takes many models."
    )
    chart = IntervalChart(
        "Components of the suitability score", note, rows, (0.0, 1.0), number=lambda v: f"{v:g}"
    )
    figures.append(("Information in the final layer, nats", card.initial_information))
    data = estimate_table("Components of the suitability score", figures)
    return figure("Components", note, chart.svg() + undefined_notes(figures), data, kind="measured")


def eas_figure(card: ScoreCard) -> str:
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
        row = estimate_row(name, variant.score)
        rows.append(IntervalRow(name, row.text, row.value, row.low, row.high, variant.floor, variant.ceiling))
        ends = ["undefined" if end is None else decimal(end, 3) for end in (variant.floor, variant.ceiling)]
        lines.append([name, estimate_text(variant.score, thousandths), *ends])
        figures.append((name, variant.score))
    for other in sorted(PUBLISHED_EAS, key=lambda score: -score.eas):
        rows.append(
            IntervalRow(
                f"{other.model}, published", decimal(other.eas), other.eas, hollow=True, emphasis=True
            )
        )
        lines.append([f"{other.model}, as published", decimal(other.eas), "not published", "not published"])
    chart = IntervalChart(
        "Early-exit Adaptability Score", note, tuple(rows), (0.0, 1.0), number=lambda v: f"{v:g}"
    )
    data = table(
        ["Similarity or model", "EAS", "Floor", "Ceiling"],
        lines,
        caption=f"EAS; published values from {STUDY}",
    )
    return figure("EAS", note, chart.svg() + undefined_notes(figures), data, kind="measured")


def oracle_figure(workload: WorkloadResult) -> str:
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
    found = nice_range([v for row in rows for v in (row.value, row.high) if v is not None], include=(0.0,))
    chart = IntervalChart("Oracles", note, rows, found or (0.0, 1.0), number=lambda v: percent(v, 0))
    data = estimate_table(
        "Layers skipped by the oracles, at 100 % agreement, and by the best policy", figures, number
    )
    return figure("Oracles", note, chart.svg() + undefined_notes(figures), data, kind="measured")
