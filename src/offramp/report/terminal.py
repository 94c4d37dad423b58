"""A run and a comparison in the terminal: the answer first, then tables, then what to bear in mind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from offramp.decoding.measurement.combined import CombineResult
from offramp.kit.typed import from_json
from offramp.report.caveats import left_over, not_claimed
from offramp.report.combined import advice
from offramp.report.data_table import reasons
from offramp.report.findings import comparison_decision, run_decision
from offramp.report.formats import (
    NumberFormat,
    estimate_text,
    limits_text,
    percent,
    short_source,
    thousandths,
    times,
)
from offramp.report.headline import best_sentences, comparison_headline
from offramp.report.names import (
    distinct,
    floor_order,
    floor_shown,
    line_name,
    machine_shown,
    row_name,
)
from offramp.report.next_step import next_step
from offramp.report.ranking import (
    Standing,
    beside,
    floor_note,
    has_defect,
)
from offramp.report.run_result import RunResult
from offramp.report.sections.claims import validity_words
from offramp.report.sections.first_screen import VERDICTS, grounds_line, verdicts_of
from offramp.report.sections.leaderboard import best_saving, floors_of, ordered, score, without_speed
from offramp.report.sections.trained import trained_groups
from offramp.report.table import TERMINAL_STYLES
from offramp.report.word_table import WordTable
from offramp.report.words import headline, short_answer, wrong_with
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import Comparison, Row
from offramp.tuning.verdict import NEVER


def print_summary(run: RunResult, console: Console, report: Path | None = None) -> None:
    """Print the verdict and what it rests on, a row a text and floor, what is wrong, and what to do next."""
    _print_answer(run_decision(run), short_answer(run), console)
    if grounds := grounds_line(run):
        console.print(escape(grounds))
    if verdicts := verdicts_of(run):
        console.print()
        console.print(VERDICTS.rich(verdicts))
    console.print()
    for note in wrong_with(run):
        console.print(f"[dim]{escape(note)}[/]")
    if report is not None:
        console.print(f"Report: [bold]{escape(str(report))}[/]", soft_wrap=True)
    if step := next_step(run):
        console.print(f"\n[bold]Next[/]: {escape(step.reason)} [dim]{escape(step.expected)}[/]")
        for command in filter(None, (step.command, step.then)):
            console.print(f"  {escape(command)}", soft_wrap=True)


def _print_answer(decision: str, answer: str, console: Console) -> None:
    """The answer in the colour of its decision."""
    style = TERMINAL_STYLES.get(decision, "yellow")
    console.print(f"\n[bold {style}]{escape(answer)}[/]")


def print_verdict_so_far(run: RunResult, console: Console) -> None:
    """Print the verdict as certified and predicted, before policies are timed."""
    _print_answer(run_decision(run), f"Before the timing: {headline(run)}", console)
    console.print(
        "[dim]What is kept is as executed, speeds are predicted. Policies are decoded and timed next.[/]"
    )


def stacked(estimate: Estimate, number: NumberFormat) -> str:
    """A value with its interval on the next line, or the reason why there is none."""
    return escape(estimate_text(estimate)) if estimate.value is None else short_stacked(estimate, number)


def short_stacked(estimate: Estimate, number: NumberFormat) -> str:
    """A value with its interval on the next line; where there is none, the reason stands elsewhere."""
    if estimate.value is None:
        return "[dim]undefined[/]"
    limits = limits_text(estimate.low, estimate.high, thousandths if number is times else number)
    return f"{number(estimate.value)}\n[dim]{limits}[/]" if limits else number(estimate.value)


SHOWN_ROWS = 12
"""Rows of a table; the page has them all."""

SCORES: tuple[tuple[str, str, NumberFormat], ...] = (
    ("saturation_skip", "oracle skips\nat 100 %", percent),
    ("composite", "composite", thousandths),
)


def comparison_terminal(comparison: Comparison, console: Console) -> None:
    """Print the answer, models, the fastest strategies, what trainings and scores say, failures."""
    _print_answer(comparison_decision(comparison), comparison_headline(comparison), console)
    for sentence in best_sentences(comparison):
        console.print(escape(sentence))
    console.print()
    rows = ordered(comparison.rows)
    console.print(models_table(rows))
    _print_reasons([score(row, key) for row in rows[:SHOWN_ROWS] for key, _, _ in SCORES], console)
    if comparison.strategies:
        console.print()
        best = fastest_of_each(comparison)
        console.print(strategies_table(best))
        _print_reasons([found for one in best[:SHOWN_ROWS] for found in _figures(one)], console)
    trained = [f"{name}: {' '.join(sentences)}" for name, sentences in trained_groups(comparison)]
    findings = [*trained, *advices(comparison), *validity_words(comparison.validity)]
    if findings:
        console.print()
        for sentence in findings:
            console.print(escape(sentence))
    console.print()
    for name, why in comparison.failures.items():
        console.print(f"[red]not run:[/] {escape(name)}: {escape(why)}")
    for note in [*left_over(comparison), *not_claimed(comparison)]:
        console.print(f"[dim]{escape(note)}[/]")


def _print_reasons(estimates: Sequence[Estimate], console: Console) -> None:
    """Below a table, why figures in it are undefined."""
    for why in reasons([estimate for estimate in estimates if estimate.value is None]):
        console.print(f"[dim]{escape(why)}[/]")


def advices(comparison: Comparison) -> list[str]:
    """What to use of accelerations that were timed together, a sentence for each measurement."""
    found = [from_json(CombineResult, value) for value in comparison.combined]
    return [f"{one.model} on {one.workload or 'the prompts'}: {advice(one)}" for one in found]


def models_table(rows: Sequence[Row]) -> WordTable:
    """One line for each trace: the best certified speed at every floor and the scores."""
    floors = floors_of(rows)
    title = "Models" if len(rows) <= SHOWN_ROWS else f"Models, {SHOWN_ROWS} of {len(rows)}; the page has all"
    table = WordTable(title=title)
    for name in ("model", "workload"):
        table.add_column(name)
    for floor in floors:
        table.add_column(f"speed at\n{floor_shown(floor)}", justify="right")
    for _, name, _ in SCORES:
        table.add_column(name, justify="right")
    for row in rows[:SHOWN_ROWS]:
        speeds = [speed_text(row, floor) for floor in floors]
        scores = [short_stacked(score(row, key), number) for key, _, number in SCORES]
        table.add_row(escape(row_name(row)), escape(short_source(row.workload)), *speeds, *scores)
    return table


def speed_text(row: Row, floor: str) -> str:
    """The best certified speed at a floor, or why there is none."""
    saving = best_saving(row, floor)
    if saving is None:
        return f"[dim]{without_speed(row, floor)}[/]"
    return "[dim]never exits[/]" if saving.policy == NEVER else short_stacked(saving.net_speedup, times)


def fastest_of_each(comparison: Comparison) -> list[Standing]:
    """The fastest strategies that can be followed, one for each place and floor; those that miss it last."""
    standings = sorted(beside(comparison.strategies), key=lambda standing: standing.rank)
    best: dict[tuple[str, ...], Standing] = {}
    for standing in standings:
        one = standing.shown
        if one.reachable:
            best.setdefault((one.model, one.workload, one.heads, one.machine, one.floor), standing)
    return sorted(best.values(), key=lambda standing: (standing.rank, floor_order(standing.shown.floor)))


def strategies_table(kept: Sequence[Standing]) -> WordTable:
    """The first of these strategies, one a line, with what each of them keeps."""
    title = "Fastest strategies" + (
        "" if len(kept) <= SHOWN_ROWS else f", {SHOWN_ROWS} of {len(kept)}; the page has all"
    )
    table = WordTable(title=title, caption="what misses its floor stands last, and is marked")
    for name in ("strategy", "where", "floor"):
        table.add_column(name)
    for name in ("speed\n(predicted)", "speed\n(measured)", "agreement"):
        table.add_column(name, justify="right")
    for standing in kept[:SHOWN_ROWS]:
        table.add_row(*_cells(standing))
    return table


def _figures(standing: Standing) -> list[Estimate]:
    """What is shown of a strategy and may be undefined."""
    timed = [one.net_speedup for one in (standing.predicted, standing.measured) if one is not None]
    return [*timed, standing.shown.agreement]


def _cells(standing: Standing) -> list[str]:
    one, measured = standing.shown, standing.measured
    place = (line_name(one.model, one.heads), short_source(one.workload), machine_shown(one.machine))
    where = " · ".join(distinct(list(place)))
    note = floor_note(one)
    timed = "–" if measured is None else short_stacked(measured.net_speedup, times)
    if measured is not None and has_defect(measured):
        timed = "[red]DEFECT[/]"
    return [
        escape(one.family),
        escape(where),
        escape(floor_shown(one.floor)),
        "–" if standing.predicted is None else short_stacked(standing.predicted.net_speedup, times),
        timed,
        "\n".join([short_stacked(one.agreement, percent), *([f"[red]{note}[/]"] if note else [])]),
    ]
