"""A comparison in the terminal: the answer, the models, the best strategies, and what is sure of pairs."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from offramp.decoding.measurement.combined import CombineResult
from offramp.records.typed import from_json
from offramp.report.combined_words import advice
from offramp.report.comparison_answers import NEVER, has_defect, overall_decision
from offramp.report.comparison_headline import best_sentences, headline, left_over, not_claimed
from offramp.report.comparison_words import (
    distinct,
    floor_order,
    floor_shown,
    line_name,
    machine_shown,
    row_name,
)
from offramp.report.formats import NumberFormat, limits_text, percent, short_source, thousandths, times
from offramp.report.sections.compare_figures import best_saving, floors_of, score, without_speed
from offramp.report.sections.compare_leaderboard import ordered
from offramp.report.sections.compare_pairs import said
from offramp.report.sections.compare_strategies import Standing, beside, floor_note
from offramp.report.sections.compare_validity import claims
from offramp.report.terminal import DECISION_STYLES
from offramp.report.word_table import WordTable
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import Comparison, Row

SHOWN = 12
"""Rows of a table; the page has them all."""

SCORES: tuple[tuple[str, str, NumberFormat], ...] = (
    ("saturation_skip", "oracle skips\nat 100 %", percent),
    ("composite", "composite", thousandths),
)


def comparison_terminal(comparison: Comparison, console: Console) -> None:
    """Print the answer, models, the fastest strategies, what combinations, pairs and scores say, failures."""
    style = DECISION_STYLES.get(overall_decision(comparison), "yellow")
    console.print()
    console.print(f"[bold {style}]{escape(headline(comparison))}[/]")
    for sentence in best_sentences(comparison):
        console.print(escape(sentence))
    console.print()
    console.print(models_table(ordered(comparison.rows)))
    if comparison.strategies:
        console.print()
        console.print(strategies_table(comparison))
    findings = [*advices(comparison), *said(comparison.pairs), *claims(comparison.validity)]
    if findings:
        console.print()
        for sentence in findings:
            console.print(escape(sentence))
    console.print()
    for name, why in comparison.failures.items():
        console.print(f"[red]not run:[/] {escape(name)}: {escape(why)}")
    for note in [*left_over(comparison), *not_claimed(comparison)]:
        console.print(f"[dim]{escape(note)}[/]")


def advices(comparison: Comparison) -> list[str]:
    """What to use of accelerations that were timed together, a sentence for each measurement."""
    found = [from_json(CombineResult, value) for value in comparison.combined]
    return [f"{one.model} on {one.workload or 'the prompts'}: {advice(one)}" for one in found]


def models_table(rows: Sequence[Row]) -> WordTable:
    """One line for each trace: the best certified speed at every floor and the scores."""
    floors = floors_of(rows)
    title = "Models" if len(rows) <= SHOWN else f"Models, {SHOWN} of {len(rows)}; the page has all"
    table = WordTable(title=title)
    for name in ("model", "workload"):
        table.add_column(name)
    for floor in floors:
        table.add_column(f"speed at\n{floor_shown(floor)}", justify="right")
    for _, name, _ in SCORES:
        table.add_column(name, justify="right")
    for row in rows[:SHOWN]:
        speeds = [speed_text(row, floor) for floor in floors]
        scores = [stacked(score(row, key), number) for key, _, number in SCORES]
        table.add_row(escape(row_name(row)), escape(short_source(row.workload)), *speeds, *scores)
    return table


def speed_text(row: Row, floor: str) -> str:
    """The best certified speed at a floor, or why there is none."""
    saving = best_saving(row, floor)
    if saving is None:
        return f"[dim]{without_speed(row, floor)}[/]"
    return "[dim]never exits[/]" if saving.policy == NEVER else stacked(saving.net_speedup, times)


def strategies_table(comparison: Comparison) -> WordTable:
    """The fastest strategies that can be followed, one for each place and floor; those that miss it last."""
    standings = sorted(beside(comparison.strategies), key=lambda standing: standing.rank)
    best: dict[tuple[str, ...], Standing] = {}
    for standing in standings:
        one = standing.shown
        if one.reachable:
            best.setdefault((one.model, one.workload, one.heads, one.machine, one.floor), standing)
    kept = sorted(best.values(), key=lambda standing: (standing.rank, floor_order(standing.shown.floor)))
    title = "Fastest strategies" + (
        "" if len(kept) <= SHOWN else f", {SHOWN} of {len(kept)}; the page has all"
    )
    table = WordTable(title=title, caption="what misses its floor stands last, and is marked")
    for name in ("strategy", "where", "floor"):
        table.add_column(name)
    for name in ("speed\n(predicted)", "speed\n(measured)", "agreement"):
        table.add_column(name, justify="right")
    for standing in kept[:SHOWN]:
        table.add_row(*_cells(standing))
    return table


def _cells(standing: Standing) -> list[str]:
    one, measured = standing.shown, standing.measured
    place = (line_name(one.model, one.heads), short_source(one.workload), machine_shown(one.machine))
    where = " · ".join(distinct(list(place)))
    note = floor_note(one)
    timed = "–" if measured is None else stacked(measured.net_speedup, times)
    if measured is not None and has_defect(measured):
        timed = "[red]DEFECT[/]"
    return [
        escape(one.family),
        escape(where),
        escape(floor_shown(one.floor)),
        "–" if standing.predicted is None else stacked(standing.predicted.net_speedup, times),
        timed,
        "\n".join([stacked(one.agreement, percent), *([f"[red]{note}[/]"] if note else [])]),
    ]


def stacked(estimate: Estimate, number: NumberFormat) -> str:
    """A value with its interval on the next line."""
    if estimate.value is None:
        return "[dim]undefined[/]"
    limits = limits_text(estimate.low, estimate.high, thousandths if number is times else number)
    shown = number(estimate.value)
    return f"{shown}\n[dim]{limits}[/]" if limits else shown
