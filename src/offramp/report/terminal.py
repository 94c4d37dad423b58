"""The compact summary that a run prints when it ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from offramp.report.answers import certificate_answer, league_answer, machines_answer
from offramp.report.forecasts import error_sentence, rule_name, short_name
from offramp.report.formats import (
    NumberFormat,
    counted,
    decimal,
    estimate_text,
    gain_text,
    interval_text,
    milliseconds,
    percent,
    times,
    whole_percent,
)
from offramp.report.headline import caveats, headline, overall_decision
from offramp.report.run_result import Decoded, DecodedPolicy, RunResult, WorkloadResult
from offramp.report.timing_words import contender_answer
from offramp.scoring.estimate import Estimate
from offramp.tuning.results import Verdict

DECISION_STYLES = {"pays": "green", "does not pay": "red", "too close to call": "yellow"}


def print_summary(run: RunResult, console: Console, report: Path | None = None) -> None:
    """Print the verdict, the floors, the scores, what to bear in mind, and where the report lies."""
    style = DECISION_STYLES.get(overall_decision(run), "yellow")
    console.print()
    console.print(f"[bold {style}]{escape(headline(run))}[/]")
    console.print()
    console.print(floors_table(run))
    console.print()
    console.print(scores_table(run))
    console.print()
    for line in answer_lines(run):
        console.print(line)
    if run.decoding:
        console.print()
        console.print(decoded_table(run))
        for line in decoded_lines(run):
            console.print(line)
        console.print()
    console.print(plain_line(run))
    for note in caveats(run):
        console.print(f"[dim]{escape(note)}[/]")
    if report is not None:
        console.print(f"\nReport: [bold]{escape(str(report))}[/]", soft_wrap=True)


def answer_lines(run: RunResult) -> list[str]:
    """The best of the league, the certificates and the machines, one line each; only what was asked for."""
    answers: dict[str, Callable[[WorkloadResult], str | None]] = {
        "Best policy": league_answer,
        "Certificates": certificate_answer,
        "Where it would pay": machines_answer,
    }
    lines = []
    for name, answer in answers.items():
        found = [(workload.name, answer(workload)) for workload in run.workloads]
        said = [
            f"[bold]{escape(workload)}[/] {escape(words)}" for workload, words in found if words is not None
        ]
        if said:
            lines.append(f"{name}: {'. '.join(said)}.")
    return lines


def floors_table(run: RunResult) -> Table:
    """One row per workload and floor: what is kept as executed and the speed, then what was replayed."""
    table = Table(title="At the quality you would keep", title_justify="left", box=None, pad_edge=False)
    for name in ("workload", "keep", "verdict and policy"):
        table.add_column(name, overflow="fold")
    for name in ("kept\n(executed)", "speed", "agreement\n(replayed)"):
        table.add_column(name, justify="right")
    for workload in run.workloads:
        for row, verdict in enumerate(workload.verdicts):
            style = DECISION_STYLES[verdict.decision]
            table.add_row(
                escape(workload.name) if row == 0 else "",
                whole_percent(verdict.floor),
                f"[{style}]{verdict.decision}[/]\n[dim]{escape(shown_policy(verdict))}[/]" + saved(verdict),
                kept(verdict),
                speed(verdict),
                stacked(verdict.agreement, percent) + reference(verdict.reference_agreement),
            )
    return table


def shown_policy(verdict: Verdict) -> str:
    """What to decode with, and what was tried where nothing is certified yet."""
    tried = verdict.tried
    return verdict.policy if tried is None else f"never; tried: {rule_name(tried.policy)} · {tried.kv}"


def kept(verdict: Verdict) -> str:
    """Executed agreement and whether it is certified."""
    tried = verdict.tried
    if tried is not None and tried.executed is not None:
        return f"{percent(tried.executed)}\n[dim]{counted(tried.documents, 'document')},\nnot certified[/]"
    if verdict.policy == "never":
        return "–"
    if verdict.certificate is None or not verdict.certificate.executed:
        return "[dim]not executed[/]"
    value = "not known" if verdict.kept is None else stacked(verdict.kept, percent)
    return f"{value}\n[dim]{'certified' if verdict.certified else 'not certified'}[/]"


def speed(verdict: Verdict) -> str:
    """Speed over plain decoding, and how it is known."""
    found = verdict.speed
    if found is None:
        return "–"
    limits = interval_text(found.low, found.high, times)
    return f"{times(found.value)}\n[dim]{limits}{' ' if limits else ''}{found.how}[/]"


def stacked(estimate: Estimate, number: NumberFormat) -> str:
    """A value with its interval on the next line, or the reason why there is none."""
    if estimate.value is None:
        return escape(estimate_text(estimate))
    limits = interval_text(estimate.low, estimate.high, number)
    if not limits or estimate.low == estimate.high:
        return number(estimate.value)
    return f"{number(estimate.value)}\n[dim]{limits}[/]"


def saved(verdict: Verdict) -> str:
    """Where a policy's gain comes from, on a line of its own; nothing for the full model."""
    parts = "" if verdict.policy == "never" else gain_text(verdict.gain)
    return f"\n[dim]saves: {parts}[/]" if parts else ""


def reference(estimate: Estimate | None) -> str:
    """Agreement with the untransformed model on lines of its own, nothing without transforms."""
    return "" if estimate is None else f"\n[dim]untransformed:[/]\n{stacked(estimate, percent)}"


def decoded_table(run: RunResult) -> Table:
    """Predicted beside measured, one row a policy that was decoded for real."""
    table = Table(title="Decoded for real", title_justify="left", box=None, pad_edge=False)
    for name in ("workload", "policy · K,V"):
        table.add_column(name, overflow="fold")
    for name in ("ms a token\n(predicted)", "ms a token\n(measured)", "net speed\n(measured)"):
        table.add_column(name, justify="right")
    for decoded in run.decoding:
        for row, policy in enumerate(decoded.policies):
            timed, forecast = decoded.timed(policy), policy.forecast
            predicted = None if forecast is None else forecast.predicted
            broken = "" if decoded.sound else "\n[red]DEFECT[/]"
            name = f"{escape(decoded.workload)}{broken}" if row == 0 else ""
            seconds, speedup = timed.seconds_per_token, timed.ratio
            table.add_row(
                name,
                escape(short_name(policy)),
                "–" if predicted is None else decimal(1000 * predicted, 1),
                "not timed" if seconds is None else decimal(1000 * seconds.value, 1),
                "–" if speedup is None else f"{times(speedup.value)}\n[dim]{_answer(decoded, policy)}[/]",
            )
    return table


def _answer(decoded: Decoded, policy: DecodedPolicy) -> str:
    return contender_answer(decoded.timed(policy), decoded.bench.worth)


def decoded_lines(run: RunResult) -> list[str]:
    """The prediction of every chosen policy held against the stopwatch."""
    lines = []
    for decoded in run.decoding:
        name, chosen = f"[bold]{escape(decoded.workload)}[/]", decoded.chosen
        if chosen is not None and chosen.forecast is not None:
            lines.append(f"{name} {escape(error_sentence(chosen.forecast))}")
    return lines


def plain_line(run: RunResult) -> str:
    """What plain decoding takes, measured."""
    plain = run.plain_seconds_per_token
    if plain is None:
        return "Plain decoding was not timed."
    interval = interval_text(plain.low, plain.high, milliseconds)
    return (
        f"Plain decoding: {milliseconds(plain.value)} per token{f' ({interval})' if interval else ''}, "
        "measured."
    )


def scores_table(run: RunResult) -> Table:
    """The components and oracles: one row per figure, one column per workload."""
    table = Table(
        title="Suitability from 0 to 1, and oracles", title_justify="left", box=None, pad_edge=False
    )
    table.add_column("measured")
    for workload in run.workloads:
        table.add_column(escape(workload.name), justify="right", overflow="fold")
    figures: tuple[tuple[str, str, NumberFormat], ...] = (
        ("representation quality", "representation", decimal),
        ("information increment", "increment", decimal),
        ("calibration", "calibration", decimal),
        ("first-match oracle skips\n(at 100 % agreement)", "first_match_skip", percent),
        ("saturation oracle skips\n(at 100 % agreement)", "saturation_skip", percent),
        ("composite", "composite", decimal),
    )
    for name, field, number in figures:
        table.add_row(name, *[stacked(getattr(workload.card, field), number) for workload in run.workloads])
    return table
