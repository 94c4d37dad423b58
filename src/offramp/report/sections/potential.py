"""How suited a model is: the figures of a score card, on a page and in `offramp score`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from markupsafe import Markup

from offramp.heads.described import RAW
from offramp.report.answer_words import transform_cost
from offramp.report.drawing import drawn
from offramp.report.findings import main_verdict
from offramp.report.formats import (
    NumberFormat,
    counted,
    decimal,
    estimate_text,
    interval_text,
    percent,
    range_text,
    thousandths,
    whole_percent,
)
from offramp.report.html import fragment
from offramp.report.plots import PlotRow, Point, RowPlot, Track
from offramp.report.run_result import WorkloadResult
from offramp.report.table import Cell, Column, Table
from offramp.scoring.card import PUBLISHED_EAS, STUDY, PairedReadings, ScoreCard
from offramp.scoring.estimate import Estimate

TITLE = "What the exits hold"
COMPONENT_NAMES = (("Representation quality", "representation"), ("Information increment", "increment"))


EMPHASIS, PUBLISHED = (1, 3), (1, 4)
"""Looks of what stands out, and of what others published."""


@dataclass(frozen=True)
class ShownFigure:
    """A figure of a card with its name."""

    name: str
    estimate: Estimate
    number: NumberFormat = thousandths
    reach: tuple[float, float] | None = None
    """The range that it can take."""
    look: tuple[int, int] = (0, 0)
    """Colour and marker that it is drawn with."""

    @property
    def span(self) -> str:
        """The range in words; "" if it is not known."""
        return "" if self.reach is None else range_text(*map(self.number, self.reach))


def _value(figure: ShownFigure) -> Cell:
    estimate = figure.estimate
    return Cell("undefined" if estimate.value is None else figure.number(estimate.value), value=estimate)


def _limits(figure: ShownFigure) -> str:
    return interval_text(figure.estimate.low, figure.estimate.high, figure.number) or "none"


FIGURES: Table[ShownFigure] = Table(
    (
        Column("Figure", lambda figure: figure.name),
        Column("Value", _value, numeric=True),
        Column("95 % interval", _limits, numeric=True),
        Column("Can reach", lambda figure: figure.span, numeric=True),
        Column("Remark", lambda figure: figure.estimate.undefined or figure.estimate.no_interval or ""),
    ),
)
"""Figures with their intervals, or with the reason why one has none."""


def component_figures(card: ScoreCard) -> list[ShownFigure]:
    """The three components, the composite, and the study's literal calibration."""
    return [
        ShownFigure("Representation quality", card.representation, reach=(0.0, card.ceiling)),
        ShownFigure("Information increment", card.increment),
        ShownFigure("Calibration", card.calibration),
        ShownFigure("Calibration, as the study words it", card.literal_calibration),
        ShownFigure("Composite of the first three", card.composite, look=EMPHASIS),
    ]


def eas_figures(card: ScoreCard) -> list[ShownFigure]:
    """EAS by similarity, between floor and ceiling."""
    return [
        ShownFigure(
            f"EAS, {variant.similarity.replace('_', ' ')} similarity, α {variant.alpha:g}",
            variant.score,
            reach=None
            if variant.floor is None or variant.ceiling is None
            else (variant.floor, variant.ceiling),
        )
        for variant in card.eas_variants
    ]


def oracle_figures(card: ScoreCard) -> list[ShownFigure]:
    """The layers that oracles skip at 100 % agreement, and the time that this could save at most."""
    return [
        ShownFigure("First-match oracle at 100 %", card.first_match_skip, percent),
        ShownFigure("Saturation oracle at 100 %", card.saturation_skip, percent),
        ShownFigure("First match at 100 %, as time", card.time_ceiling_first_match, percent),
        ShownFigure("Saturation at 100 %, as time", card.time_ceiling_saturation, percent),
    ]


def readings_figures(readings: PairedReadings) -> list[ShownFigure]:
    """What the model's own head reads beside what fitted heads read, in the order of a chart."""
    return [
        ShownFigure(
            f"{words.partition(' ')[0]}, {side}",
            getattr(reading, name),
            decimal,
            (0.0, readings.ceiling) if name == "representation" else None,
            EMPHASIS if reading is readings.fitted else (0, 0),
        )
        for words, name in COMPONENT_NAMES
        for side, reading in (("own head", readings.raw), ("through heads", readings.fitted))
    ]


def gained_figures(readings: PairedReadings) -> list[ShownFigure]:
    """What lies between both readings."""
    gained = [
        ShownFigure(f"{words}, gained", getattr(readings.gained, name)) for words, name in COMPONENT_NAMES
    ]
    return [*gained, ShownFigure("Share of the distance closed", readings.closed, percent)]


def card_figures(card: ScoreCard) -> list[ShownFigure]:
    """What `offramp score` shows of a card."""
    kept = card.reference_agreement
    original = [] if kept is None else [ShownFigure("Full model agrees with the original one", kept, percent)]
    return [*component_figures(card), *eas_figures(card), *original, *oracle_figures(card)]


def readings_sentence(readings: PairedReadings) -> str:
    """How much of the distance between the raw reading and the ceiling the fitted heads close, in words."""
    closed, raw = readings.closed, readings.raw.representation
    through = readings.through[:1].upper() + readings.through[1:]
    left_out = readings.left_out
    taken = (
        f" (on {counted(readings.documents, 'document')}; {left_out} that fitting saw "
        f"{'is' if left_out == 1 else 'are'} left out)"
        if left_out
        else ""
    )
    if closed.value is None or raw.value is None:
        return f"What {readings.through} closes is undefined: {closed.undefined}{taken}."
    between = f"between what the model's own head reads ({decimal(raw.value)}) and the ceiling"
    distance = f"of the distance in representation quality {between} ({decimal(readings.ceiling)})"
    share = estimate_text(closed, percent)
    if closed.low is not None and closed.high is not None and closed.low <= 0.0 <= closed.high:
        return f"{through}: not shown to close anything {distance}: {share}{taken}."
    if closed.value < 0.0:
        return f"{through} reads less than the model's own head: {share} {distance}{taken}."
    return f"{through} closes {share} {distance}{taken}."


def components_section(workload: WorkloadResult) -> Markup:
    """Components, EAS and oracles side by side."""
    card, cost = workload.card, transform_cost(workload)
    said = f"The full model, as transformed, says what the untransformed one says on {cost}."
    figures = [component_figure(card), *readings_charts(card), eas_figure(card), oracle_figure(workload)]
    return fragment("run", "components", "" if cost is None else said, figures, card.notes)


def figure_row(figure: ShownFigure) -> PlotRow:
    """One figure as a row; an undefined one has words and no point."""
    estimate = figure.estimate
    if estimate.value is None:
        return PlotRow(figure.name, (Track(),), "undefined")
    shown = estimate_text(estimate, figure.number)
    said = f"{figure.name}: {shown}"
    point = Point(estimate, said, *figure.look, figure.reach)
    return PlotRow(figure.name, (Track((point,)),), shown)


def _drawn(
    name: str,
    note: str,
    figures: Sequence[ShownFigure],
    axis: tuple[float, float] | None = (0.0, 1.0),
    number: NumberFormat = "{:g}".format,
    *,
    also: Sequence[ShownFigure] = (),
    title: str = "",
    caption: str = "",
) -> Markup:
    """Figures drawn, with why some are undefined, and as a table. also: of the table alone."""
    plot = RowPlot(name, note, tuple(map(figure_row, figures)), axis, number=number, include=(0.0,))
    undefined = [
        (figure.name, figure.estimate.undefined or "") for figure in figures if figure.estimate.value is None
    ]
    data = FIGURES.html((*figures, *also), caption=caption or name)
    below = fragment("run", "undefined_notes", undefined)
    return drawn(plot, data, title=title, below=below, kind="measured")


def component_figure(card: ScoreCard) -> Markup:
    """The three components, the composite, and the study's literal calibration."""
    through = "" if card.read_through == RAW else f"Exits are read through {card.read_through}. "
    note = (
        f"{through}From 0 to 1, higher is more suitable; bars are 95 % intervals over documents. "
        "Representation cannot exceed "
        f"{decimal(card.ceiling)}. That the composite predicts time saved is not shown by this page: that "
        "takes many models."
    )
    information = ShownFigure("Information in the final layer, nats", card.initial_information)
    name = "Components of the suitability score"
    return _drawn(name, note, component_figures(card), also=[information], title="Components")


def readings_charts(card: ScoreCard) -> list[Markup]:
    """What the model's own head reads beside what fitted heads read, where both were traced."""
    readings = card.readings
    if readings is None:
        return []
    note = (
        "The same tokens at the same exits: what the model's own head reads there, and what the exits hold, "
        f"as far as {readings.through} finds it. Brackets end at the ceiling. {readings_sentence(readings)}"
    )
    return [_drawn(TITLE, note, readings_figures(readings), also=gained_figures(readings))]


def eas_figure(card: ScoreCard) -> Markup:
    """EAS by similarity between floor and ceiling, and what the study reports for other models."""
    note = (
        "The study's Early-exit Adaptability Score. Brackets run from the floor (another token's logits) "
        "to the ceiling (every layer equal to the last). Hollow dots: as published. The study does not "
        "publish its similarity, so its values are for orientation only."
    )
    why = "the study publishes no interval"
    published = [
        ShownFigure(f"{model}, published", Estimate(eas, no_interval=why), decimal, look=PUBLISHED)
        for model, eas in sorted(PUBLISHED_EAS.items(), key=lambda published: -published[1])
    ]
    figures, caption = [*eas_figures(card), *published], f"EAS; published values from {STUDY}"
    return _drawn("Early-exit Adaptability Score", note, figures, title="EAS", caption=caption)


def oracle_figure(workload: WorkloadResult) -> Markup:
    """The oracles' skip ratios, the time they could save at most, and what the best policy skips."""
    card, verdict = workload.card, main_verdict(workload)
    figures = oracle_figures(card)
    if verdict is not None:
        name = f"Best policy at {whole_percent(verdict.floor)}, replayed"
        figures.append(ShownFigure(name, verdict.skip_ratio, percent, look=EMPHASIS))
    note = (
        "Share of layers skipped by an oracle that knows the full model's answer, at 100 % agreement: a "
        "policy that may change some answers can skip more. First match is the most that can be skipped "
        "without changing any answer; saturation leaves out matches that later layers undo. "
        f"As time: less the output head's {percent(card.head_share)} of a token's work."
    )
    caption = "Layers skipped by the oracles, at 100 % agreement, and by the best policy"
    return _drawn("Oracles", note, figures, None, partial(percent, digits=0), caption=caption)
