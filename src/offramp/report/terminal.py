"""A run and a comparison in the terminal: the answer first, then tables, then what to bear in mind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from offramp.decoding.measurement.combined import CombineResult
from offramp.records.typed import from_json
from offramp.report.caveats import caveats, left_over, not_claimed
from offramp.report.combined import advice
from offramp.report.data_table import reasons
from offramp.report.findings import comparison_decision, run_decision
from offramp.report.formats import (
    NumberFormat,
    counted,
    decimal,
    estimate_text,
    gain_text,
    limits_text,
    milliseconds,
    percent,
    short_source,
    thousandths,
    timed_interval,
    times,
    whole_percent,
)
from offramp.report.headline import (
    best_sentences,
    certificate_answer,
    comparison_headline,
    families_answer,
    headline,
    machines_answer,
)
from offramp.report.names import (
    distinct,
    floor_order,
    floor_shown,
    line_name,
    machine_shown,
    row_name,
)
from offramp.report.ranking import (
    NAMES,
    Standing,
    basis_text,
    beside,
    floor_note,
    has_defect,
    kept_text,
    sample_text,
    ways_ranked,
)
from offramp.report.readings import COMPONENT_NAMES, readings_sentence
from offramp.report.run_result import Decoded, RunResult, WorkloadResult
from offramp.report.sections.claims import claims, said
from offramp.report.sections.leaderboard import best_saving, floors_of, ordered, score, without_speed
from offramp.report.sections.published import published_claims
from offramp.report.sections.trained import trained_groups
from offramp.report.timing import PolicyNames, contender_answer, error_sentence
from offramp.report.word_table import WordTable
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import Comparison, Row
from offramp.tuning.verdict import NEVER, Verdict

DECISION_STYLES = {
    "pays": "green",
    "does not pay": "red",
    "too close to call": "yellow",
    "not enough documents": "yellow",
}


def print_summary(run: RunResult, console: Console, report: Path | None = None) -> None:
    """Print the verdict, the floors, the scores, what to bear in mind, and where the report lies."""
    style = DECISION_STYLES.get(run_decision(run), "yellow")
    console.print()
    console.print(f"[bold {style}]{escape(headline(run))}[/]")
    console.print()
    names = PolicyNames()
    for workload in run.workloads:
        console.print(floors_table(workload, names))
        console.print()
    console.print(scores_table(run))
    console.print()
    for line in answer_lines(run):
        console.print(line)
    by_name = {workload.name: workload for workload in run.workloads}
    for decoded in run.decoding:
        console.print()
        console.print(ranking_table(decoded, by_name.get(decoded.workload), names))
        for line in not_timed_lines(decoded):
            console.print(line)
    for line in decoded_lines(run):
        console.print(line)
    if names.lines():
        console.print("\nPolicies in full:")
        for line in names.lines():
            console.print(f"  [dim]{escape(line)}[/]", soft_wrap=True)
    console.print()
    console.print(plain_line(run))
    for note in caveats(run):
        console.print(f"[dim]{escape(note)}[/]")
    if report is not None:
        console.print(f"\nReport: [bold]{escape(str(report))}[/]", soft_wrap=True)


def print_verdict_so_far(run: RunResult, console: Console) -> None:
    """Print the verdict as certified and predicted, before policies are timed."""
    style = DECISION_STYLES.get(run_decision(run), "yellow")
    console.print(f"\nBefore the timing: [bold {style}]{escape(headline(run))}[/]")
    console.print(
        "[dim]What is kept is as executed, speeds are predicted. Policies are decoded and timed next.[/]"
    )


def answer_lines(run: RunResult) -> list[str]:
    """The best family, the certificates and the machines, one line each; only what was asked for."""
    answers: dict[str, Callable[[WorkloadResult], str | None]] = {
        "What the exits hold": readings_answer,
        "Best policy": families_answer,
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


def floors_table(workload: WorkloadResult, names: PolicyNames) -> WordTable:
    """One row per floor of a text: what is kept as executed and the speed, then what was replayed."""
    table = WordTable(title=f"At the quality you would keep: [bold]{escape(workload.name)}[/]")
    for name in ("keep", "verdict and policy"):
        table.add_column(name)
    for name in ("kept\n(executed)", "speed", "agreement\n(replayed)"):
        table.add_column(name, justify="right")
    for verdict in workload.verdicts:
        style = DECISION_STYLES[verdict.decision]
        policy = escape(shown_policy(verdict, names))
        table.add_row(
            whole_percent(verdict.floor),
            f"[{style}]{verdict.decision}[/]\n[dim]{policy}[/]" + saved(verdict),
            kept(verdict),
            speed(verdict),
            stacked(verdict.agreement, percent) + reference(verdict.reference_agreement),
        )
    return table


def shown_policy(verdict: Verdict, names: PolicyNames) -> str:
    """What to decode with, and what was tried where nothing is certified yet."""
    tried = verdict.tried
    if tried is not None:
        return f"never; tried: {names.of(tried.policy)} · {tried.kv}"
    return names.of(verdict.policy)


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
    limits = timed_interval(found.value, found.low, found.high, times)
    below = f"{limits}\n{found.how}" if limits else found.how
    return f"{times(found.value)}\n[dim]{below}[/]"


def stacked(estimate: Estimate, number: NumberFormat) -> str:
    """A value with its interval on the next line, or the reason why there is none."""
    return escape(estimate_text(estimate)) if estimate.value is None else short_stacked(estimate, number)


def short_stacked(estimate: Estimate, number: NumberFormat) -> str:
    """A value with its interval on the next line; where there is none, the reason stands elsewhere."""
    if estimate.value is None:
        return "[dim]undefined[/]"
    limits = limits_text(estimate.low, estimate.high, thousandths if number is times else number)
    return f"{number(estimate.value)}\n[dim]{limits}[/]" if limits else number(estimate.value)


def saved(verdict: Verdict) -> str:
    """Where a policy's gain comes from, on a line of its own; nothing for the full model."""
    parts = "" if verdict.policy == "never" else gain_text(verdict.gain)
    return f"\n[dim]saves: {parts}[/]" if parts else ""


def reference(estimate: Estimate | None) -> str:
    """Agreement with the untransformed model on lines of its own, nothing without transforms."""
    return "" if estimate is None else f"\n[dim]untransformed:[/]\n{stacked(estimate, percent)}"


def ranking_table(decoded: Decoded, workload: WorkloadResult | None, names: PolicyNames) -> WordTable:
    """Every way to decode that was timed on a text: how fast it is and what it keeps, the best first."""
    broken = "" if decoded.sound else " [red](DEFECT)[/]"
    table = WordTable(
        title=f"Decoded for real, ranked: [bold]{escape(decoded.workload)}[/], {sample_text(decoded)}{broken}"
    )
    table.add_column("")
    table.add_column("way to decode")
    for name in ("speed\n(measured)", "agreement\n(executed)", "ms a token\n(predicted)", "(measured)"):
        table.add_column(name, justify="right")
    place = 0
    for one in ways_ranked(decoded, workload):
        place += not one.misses
        policy, timed = one.policy, one.timed
        name = one.name if policy is None else f"{names.of(policy.policy)} · {policy.kv}"
        predicted = None if policy is None or policy.forecast is None else policy.forecast.predicted
        basis, seconds = basis_text(one), timed.seconds_per_token
        assert timed.ratio is not None, "only what was timed is ranked"
        table.add_row(
            "–" if one.misses else str(place),
            escape(name),
            f"{times(timed.ratio.value)}\n[dim]{contender_answer(timed, decoded.bench.worth)}[/]",
            kept_text(one) + (f"\n[{'red' if one.misses else 'dim'}]{basis}[/]" if basis else ""),
            "–" if predicted is None else decimal(1000 * predicted, 1),
            "–" if seconds is None else decimal(1000 * seconds.value, 1),
        )
    return table


def not_timed_lines(decoded: Decoded) -> list[str]:
    """Policies and peers that were to take part and did not, with the reason."""
    return [
        f"[dim]not timed: {escape(NAMES.get(one.name, one.name))}: {escape(one.left_out)}[/]"
        for one in decoded.bench.contenders
        if one.left_out is not None
    ]


def decoded_lines(run: RunResult) -> list[str]:
    """The prediction of every chosen policy held against the stopwatch."""
    lines = []
    for decoded in run.decoding:
        name, chosen = f"[bold]{escape(decoded.workload)}[/]", decoded.chosen
        if chosen is not None and chosen.forecast is not None:
            lines.append(f"{name} {escape(error_sentence(chosen.forecast))}")
    return lines


def readings_answer(workload: WorkloadResult) -> str | None:
    """How much more fitted heads read than the model's own, None where only one of them was traced."""
    readings = workload.card.readings
    return None if readings is None else readings_sentence(readings).removesuffix(".")


def plain_line(run: RunResult) -> str:
    """What plain decoding takes, measured."""
    plain = run.plain_seconds_per_token
    if plain is None:
        return "Plain decoding was not timed."
    interval = timed_interval(plain.value, plain.low, plain.high, milliseconds)
    return (
        f"Plain decoding: {milliseconds(plain.value)} per token{f' ({interval})' if interval else ''}, "
        "measured."
    )


def scores_table(run: RunResult) -> WordTable:
    """The components and oracles: one row per figure, one column per workload."""
    table = WordTable(title="Suitability from 0 to 1, and oracles")
    table.add_column("measured")
    for workload in run.workloads:
        table.add_column(escape(short_source(workload.name)), justify="right")
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
    both = [workload.card.readings for workload in run.workloads]
    for words, field in COMPONENT_NAMES if any(both) else ():
        raw = ["–" if one is None else stacked(getattr(one.raw, field), decimal) for one in both]
        table.add_row(f"{words.lower()},\nread by the model's own head", *raw)
    return table


SHOWN_ROWS = 12
"""Rows of a table; the page has them all."""

SCORES: tuple[tuple[str, str, NumberFormat], ...] = (
    ("saturation_skip", "oracle skips\nat 100 %", percent),
    ("composite", "composite", thousandths),
)


def comparison_terminal(comparison: Comparison, console: Console) -> None:
    """Print the answer, models, the fastest strategies, what trainings, pairs and scores say, failures."""
    style = DECISION_STYLES.get(comparison_decision(comparison), "yellow")
    console.print()
    console.print(f"[bold {style}]{escape(comparison_headline(comparison))}[/]")
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
    findings = [*trained, *advices(comparison), *said(comparison.pairs), *claims(comparison.validity)]
    findings += published_claims(comparison.eas)
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
