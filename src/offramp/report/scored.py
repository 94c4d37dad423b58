"""A score card's figures as rows: what a page draws and tables, and what `offramp score` prints."""

from __future__ import annotations

from dataclasses import dataclass

from offramp.report.formats import (
    NumberFormat,
    counted,
    decimal,
    estimate_text,
    interval_text,
    percent,
    range_text,
    thousandths,
)
from offramp.report.table import Cell, Column, Table
from offramp.scoring.card import ScoreCard
from offramp.scoring.estimate import Estimate
from offramp.scoring.readings import Readings

TITLE = "What the exits hold"
COMPONENT_NAMES = (("Representation quality", "representation"), ("Information increment", "increment"))


@dataclass(frozen=True)
class Figure:
    """A figure of a card with its name."""

    name: str
    estimate: Estimate
    number: NumberFormat = thousandths
    reach: tuple[float, float] | None = None
    """The range that it can take."""
    emphasis: bool = False
    """Whether it is drawn in the second colour."""

    @property
    def span(self) -> str:
        """The range in words; "" if it is not known."""
        return "" if self.reach is None else range_text(*map(self.number, self.reach))


def _value(figure: Figure) -> Cell:
    estimate = figure.estimate
    return Cell("undefined" if estimate.value is None else figure.number(estimate.value), value=estimate)


def _limits(figure: Figure) -> str:
    return interval_text(figure.estimate.low, figure.estimate.high, figure.number) or "none"


FIGURES: Table[Figure] = Table(
    (
        Column("Figure", lambda figure: figure.name),
        Column("Value", _value, numeric=True),
        Column("95 % interval", _limits, numeric=True),
        Column("Can reach", lambda figure: figure.span, numeric=True),
        Column("Remark", lambda one: one.estimate.undefined or one.estimate.no_interval or ""),
    ),
)
"""Figures with their intervals, or with the reason why one has none."""


def component_figures(card: ScoreCard) -> list[Figure]:
    """The three components, the composite, and the study's literal calibration."""
    return [
        Figure("Representation quality", card.representation, reach=(0.0, card.ceiling)),
        Figure("Information increment", card.increment),
        Figure("Calibration", card.calibration),
        Figure("Calibration, as the study words it", card.literal_calibration),
        Figure("Composite of the first three", card.composite, emphasis=True),
    ]


def eas_figures(card: ScoreCard) -> list[Figure]:
    """EAS by similarity, between floor and ceiling."""
    return [
        Figure(
            f"EAS, {variant.similarity.replace('_', ' ')} similarity, α {variant.alpha:g}",
            variant.score,
            reach=None
            if variant.floor is None or variant.ceiling is None
            else (variant.floor, variant.ceiling),
        )
        for variant in card.eas_variants
    ]


def oracle_figures(card: ScoreCard) -> list[Figure]:
    """The layers that oracles skip at 100 % agreement, and the time that this could save at most."""
    return [
        Figure("First-match oracle at 100 %", card.first_match_skip, percent),
        Figure("Saturation oracle at 100 %", card.saturation_skip, percent),
        Figure("First match at 100 %, as time", card.time_ceiling_first_match, percent),
        Figure("Saturation at 100 %, as time", card.time_ceiling_saturation, percent),
    ]


def readings_figures(readings: Readings) -> list[Figure]:
    """What the model's own head reads beside what fitted heads read, in the order of a chart."""
    return [
        Figure(
            f"{words.partition(' ')[0]}, {side}",
            getattr(reading, name),
            decimal,
            (0.0, readings.ceiling) if name == "representation" else None,
            reading is readings.fitted,
        )
        for words, name in COMPONENT_NAMES
        for side, reading in (("own head", readings.raw), ("through heads", readings.fitted))
    ]


def exits_hold(readings: Readings) -> list[Figure]:
    """Both readings, and what lies between them."""
    gained = [Figure(f"{words}, gained", getattr(readings.gained, name)) for words, name in COMPONENT_NAMES]
    closed = Figure("Share of the distance closed", readings.closed, percent)
    return [*readings_figures(readings), *gained, closed]


def card_figures(card: ScoreCard) -> list[Figure]:
    """What `offramp score` shows of a card."""
    kept = card.reference_agreement
    original = [] if kept is None else [Figure("Full model agrees with the original one", kept, percent)]
    return [*component_figures(card), *eas_figures(card), *original, *oracle_figures(card)]


def readings_sentence(readings: Readings) -> str:
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
