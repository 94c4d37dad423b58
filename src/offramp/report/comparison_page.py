"""A comparison shown: the answer in words and cards, its page, and its terminal output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from markupsafe import Markup

from offramp.defaults import WORTH
from offramp.files import write_text_atomically
from offramp.report.answer_words import WORDS
from offramp.report.combined import advice, combined_sections, place_of
from offramp.report.comparison_data import downloads_section
from offramp.report.curves import profiles_section
from offramp.report.findings import (
    Finding,
    best_certified,
    cell_decisions,
    certified_section,
    comparison_decision,
    findings_of,
    lacking,
    passed_how,
)
from offramp.report.formats import (
    counted,
    estimate_text,
    limits_text,
    listed,
    percent,
    thousandths,
    times,
    whole_percent,
)
from offramp.report.html import KeyNumber, Kind, fragment
from offramp.report.names import (
    distinct,
    floor_shown,
    heads_name,
    line_name,
    machine_shown,
    row_name,
)
from offramp.report.sections.compared import (
    bytes_section,
    citation_section,
    compared_section,
    filters,
    validity_section,
    validity_words,
)
from offramp.report.sections.leaderboard import leaderboard, leaderboard_section, ordered
from offramp.report.sections.load import loads_section
from offramp.report.sections.strategies import (
    STRATEGIES,
    believed,
    decoded_for_real,
    fastest,
    fastest_of_each,
    floor_kept,
    replayed,
    strategies_section,
    why_no_answer,
)
from offramp.report.sections.training import trained_groups, trained_section
from offramp.report.table import TERMINAL_STYLES, Column, reasons
from offramp.scoring.card import ESTIMATES
from offramp.scoring.estimate import BASES_NEEDED, Estimate
from offramp.studies.comparison.results import Comparison, StrategyResult
from offramp.tuning.tuned import Tuned
from offramp.tuning.verdict import INCONCLUSIVE, Decision, Speed

if TYPE_CHECKING:
    from rich.console import Console


NOWHERE = "Early exit does not pay anywhere here"


def comparison_headline(comparison: Comparison) -> str:
    """The answer in one sentence."""
    findings = findings_of(comparison)
    if not findings:
        return _uncertified_headline(comparison)
    decision, decisions = comparison_decision(comparison), list(cell_decisions(findings).values())
    best = best_certified(findings)
    at_best = "" if best is None else f"{passed_how(best)}, it is at best {over_plain(best.speed)}"
    if best is not None and best.timed:
        at_best += f", decoded for real{credited(best)}"
    if decision == "pays":
        paying, cells = (
            {finding.cell for finding in findings if finding.decision == "pays"},
            counted(len(decisions), "cell"),
        )
        where = "here" if len(decisions) == 1 else f"in {len(paying):,} of {cells}"
        return f"Early exit pays {where}: {at_best}."
    if decision == INCONCLUSIVE:
        if not any(finding.decision == decision and finding.certified for finding in findings):
            return _open_headline(decision, decisions, findings)
        why = at_best or "what is certified has no speed on documents that it has not seen"
        if best is not None and best.missing:
            why += f"; missing: {'; '.join(best.missing)}"
        return f"{WORDS[decision].answer}: {why}."
    if best is None:
        return f"{NOWHERE}: no policy that keeps a floor is faster than the full model."
    return f"{NOWHERE}: {at_best}, and {whole_percent(WORTH)} are what it takes to be worth its trouble."


def credited(finding: Finding[Tuned]) -> str:
    """ ", 1.080 × (1.060 to 1.100) the best decoder without exits"; nothing where that was not timed."""
    credit = finding.credit
    if credit is None or credit.value is None:
        return ""
    return f", {estimate_text(credit, times)} the best decoder without exits"


def _open_headline(
    decision: Decision, decisions: Sequence[Decision], findings: Sequence[Finding[Tuned]]
) -> str:
    """The answer where nothing pays, and what is open is not certified."""
    why = lacking([finding for finding in findings if finding.unknown])
    if refused := decisions.count("does not pay"):
        cells = counted(len(decisions), "cell")
        return f"Early exit does not pay in {refused:,} of {cells}; the others are open; {why}."
    return f"{WORDS[decision].answer} here; {why}."


def _uncertified_headline(comparison: Comparison) -> str:
    """The answer where nothing was tuned for a certificate."""
    measured, predicted = fastest(believed(comparison.strategies)), fastest(replayed(comparison.strategies))
    best = measured or predicted
    if best is None and comparison.combined:
        return _combined_headline(comparison)
    below = [
        strategy
        for strategy in comparison.strategies
        if not strategy.plain and floor_kept(strategy) == "missed"
    ]
    if best is None and below:
        closest = max(below, key=lambda one: one.agreement.value or 0.0)
        return (
            f"None of the {len(below):,} policies that were tried keeps its floor: the closest agrees on "
            f"{percent(closest.agreement.value or 0.0)} of the tokens, and {floor_shown(closest.floor)} was "
            'asked for; "tuned" among the policies of a study lets the tuner search.'
        )
    if best is None:
        return "These are scores alone: whether early exit pays in time was not asked."
    how = "decoded for real" if measured else "by replay and without a certificate"
    too_slow = comparison_decision(comparison) == "does not pay"
    answer = NOWHERE if too_slow else WORDS[INCONCLUSIVE].answer
    speed = over_plain(best.net_speedup)
    return f"{answer}: {how}, the fastest strategy at {floor_shown(best.floor)} is {speed}."


def _combined_headline(comparison: Comparison) -> str:
    """The answer where accelerations were timed together, and nothing else was asked."""
    count, broken = len(comparison.combined), combined_with_defects(comparison)
    said = f"Early exit was timed beside other accelerations only, in {counted(count, 'measurement')}"
    wrong = f"{broken:,}" if broken else "none"
    return f"{said}, {wrong} of them with a defect: what to use is said of each."


def over_plain(speed: Speed | Estimate | None) -> str:
    """ "1.113 × plain decoding (1.098 to 1.128)"."""
    if speed is None or speed.value is None:
        return "undefined plain decoding"
    limits = limits_text(speed.low, speed.high, thousandths)
    return f"{times(speed.value)} plain decoding{f' ({limits})' if limits else ''}"


# What to bear in mind.


def left_over(comparison: Comparison) -> list[str]:
    """How much could not be certified, or was measured but must not be believed."""
    said = []
    answers = findings_of(comparison)
    unknown = [answer for answer in answers if answer.unknown]
    if unknown:
        verb = "is" if len(unknown) == 1 else "are"
        said.append(
            f"{len(unknown):,} of {counted(len(answers), 'answer')} (a cell at a floor) {verb} open "
            f"without a certificate; {lacking(unknown)}."
        )
    no_answer = why_no_answer(comparison.strategies)
    if no_answer:
        count = len(decoded_for_real(comparison.strategies))
        said.append(
            f"Of {counted(count, 'measurement')} of policies decoded for real, left out: {no_answer}."
        )
    missed = sum(answer.missed for answer in answers if answer.exits)
    if missed:
        count = len(answers)
        said.append(
            f"Of {counted(count, 'answer')}, certified on given text and below the floor when decoded, and "
            f"so not said to pay: {missed:,}."
        )
    broken = combined_with_defects(comparison)
    if broken:
        count = len(comparison.combined)
        said.append(
            f"Of {counted(count, 'measurement')} of accelerations together, with a defect: {broken:,}."
        )
    return said


def not_claimed(comparison: Comparison) -> list[str]:
    """What a reader must not take from the comparison."""
    said = []
    answers, strategies = findings_of(comparison), comparison.strategies
    bases = distinct([row.model.base for row in comparison.rows])
    if len(bases) < BASES_NEEDED:
        said.append(
            "Nothing is claimed about models in general: "
            f"{counted(len(bases), 'independently trained model')} of the {BASES_NEEDED} that it takes. "
            "Variants of one model are not independent."
        )
    if strategies or answers:
        said.append(
            "A predicted speed is computed from a replay and a machine's prices, its interval is over "
            f"documents, not over these prices; {_timed(strategies)}."
        )
    if len(answers) > 1 or len(replayed(strategies)) > 1:
        said.append(
            "The best of many is chosen with hindsight, and its own interval does not account for that."
        )
    passed = {answer.certified for answer in answers} - {""}
    if "replayed" in passed:
        said.append(
            "A replay bound speaks of given text with the full model's keys and values: what a policy keeps "
            "when it decodes may be less, so nothing pays by it. Only what was decoded is certified."
        )
    if passed:
        said.append("Each statement about a floor has its own chance of being wrong.")
    few = [row for row in comparison.rows if all(getattr(row.card, name).low is None for name in ESTIMATES)]
    if few:
        names = distinct([f"{row_name(row)} on {row.workload}" for row in few])
        shown = listed(names) if len(names) <= 4 else f"{len(names)} cells"
        said.append(f"No interval is given for {shown}: too few documents to say how sure the figures are.")
    if comparison.failures:
        count = counted(len(comparison.failures), "cell")
        said.append(f"{count} failed or did not run; each is named with its reason.")
    return said + list(comparison.notes)


def _timed(strategies: Sequence[StrategyResult]) -> str:
    """What the stopwatch adds to predicted speeds."""
    if believed(strategies):
        return "only what is marked measured was timed"
    broken = any(strategy.defect for strategy in strategies)
    return "what was timed here has a defect" if broken else "none was timed here"


def combined_with_defects(comparison: Comparison) -> int:
    """Measurements of accelerations together with something wrong."""
    return sum(bool(combined.defects) for combined in comparison.combined)


def answer_section(comparison: Comparison) -> Markup:
    """Headline, the best of each kind as cards, and what is not claimed."""
    return fragment(
        "comparison",
        "verdict",
        title=comparison.title,
        decision=comparison_decision(comparison),
        size=size_of(comparison),
        headline=comparison_headline(comparison),
        cards=cards_of(comparison),
        not_claimed=[*left_over(comparison), *not_claimed(comparison)],
    )


def size_of(comparison: Comparison) -> str:
    """ "9 models · 2 workloads · 1,920 tokens each"."""
    rows = comparison.rows
    models = distinct([row.model.shown for row in rows])
    workloads = distinct([row.workload for row in rows])
    tokens = sorted({row.card.tokens for row in rows})
    each = f"{tokens[0]:,} tokens each" if len(tokens) == 1 else "unequal numbers of tokens"
    parts = [counted(len(models), "model"), counted(len(workloads), "workload"), *([each] if tokens else [])]
    bases = distinct([row.model.base for row in rows])
    if len(bases) < len(models):
        parts.insert(1, f"{counted(len(bases), 'independent training')}")
    return " · ".join(parts)


def cards_of(comparison: Comparison) -> list[KeyNumber]:
    """The best certified, replayed and measured speed, and the most suited by score."""
    findings, strategies = findings_of(comparison), comparison.strategies
    cards = []
    if findings:
        cards.append(_certified_card(best_certified(findings), len(findings)))
    predicted = fastest(replayed(strategies))
    if predicted is not None:
        cards.append(_strategy_card("Fastest by replay", "predicted", predicted))
    if any(strategy.basis == "measured" for strategy in strategies):
        measured, title = fastest(believed(strategies)), "Fastest decoded for real"
        if measured is None:
            nothing = why_no_answer(strategies) or "no policy that exits was decoded"
            cards.append(KeyNumber("measured", "none", nothing, (), title))
        else:
            cards.append(_strategy_card(title, "measured", measured))
    return cards + _suited_card(comparison)


def _certified_card(best: Finding[Tuned] | None, asked: int) -> KeyNumber:
    title = "Best net speed that passed its floor"
    if best is None:
        said = f"no policy that exits early passed in {counted(asked, 'answer')}"
        return KeyNumber("predicted", "none", said, (), title)
    model, workload, machine = best.cell
    facts = {
        "model": model,
        "workload": workload,
        "machine": machine_shown(machine),
        "keeps": floor_shown(best.floor),
        "passed": passed_how(best),
        **({"predicted": over_plain(best.predicted)} if best.timed else {}),
    }
    kind: Kind = "measured" if best.timed else "predicted"
    return KeyNumber(kind, *_speed(best.speed), list(facts.items()), title, best.policy)


def _strategy_card(title: str, kind: Kind, strategy: StrategyResult) -> KeyNumber:
    place = strategy.place
    facts = {
        "strategy": strategy.family,
        "model": line_name(place.model, place.heads),
        "workload": place.workload,
        "machine": machine_shown(place.machine),
        "floor": floor_shown(strategy.floor),
        "agreement": "–" if strategy.agreement.value is None else percent(strategy.agreement.value),
    }
    return KeyNumber(kind, *_speed(strategy.net_speedup), list(facts.items()), title, str(strategy.policy))


def _suited_card(comparison: Comparison) -> list[KeyNumber]:
    """The row with the highest composite; none without one."""
    known = [row for row in comparison.rows if row.card.composite.value is not None]
    if not known:
        return []
    best = max(known, key=lambda row: row.card.composite.value or 0.0)
    composite, skips = best.card.composite, best.card.saturation_skip.value
    facts = {
        "model": best.model.shown,
        "workload": best.workload,
        "exit heads": heads_name(best.heads),
        "oracle skips": "–" if skips is None else percent(skips),
    }
    limits = limits_text(composite.low, composite.high, thousandths)
    what = f"composite of 0 to 1{f', {limits}' if limits else ''}"
    big = thousandths(composite.value or 0.0)
    return [KeyNumber("measured", big, what, list(facts.items()), "Most suited by score")]


def _speed(speed: Speed | Estimate | None) -> tuple[str, str]:
    """A speed in large, and what it is over with its interval."""
    assert speed is not None, "the best has a speed"
    limits = limits_text(speed.low, speed.high, thousandths)
    without = ", no interval" if speed.low is None else ""
    return times(speed.value or 0.0), f"plain decoding{f', {limits}' if limits else without}"


T = TypeVar("T")

NAVIGATION = (
    ("verdict", "Answer"),
    ("compared", "Compared"),
    ("leaderboard", "Models"),
    ("trainings", "Trained"),
    ("certified", "Certified"),
    ("strategies", "Strategies"),
    ("profiles", "Layers"),
    ("validity", "Scores"),
    ("combined", "Combined"),
    ("loads", "Under load"),
    ("bytes", "Per byte"),
    ("downloads", "Tables"),
    ("cite", "Cite"),
    ("glossary", "Words"),
)
"""Sections by id; the page links to those that it has."""

SHOWN_ROWS = 12
"""Rows of a table on a terminal; the page has them all."""


def write_comparison_page(comparison: Comparison, path: Path) -> Path:
    """Write the page in one step and return its path. Raises OfframpError if the disk is full."""
    write_text_atomically(path, render_comparison(comparison))
    return path


def render_comparison(comparison: Comparison) -> str:
    """The whole page as HTML; the same comparison gives the same bytes."""
    sections = {
        "verdict": answer_section(comparison),
        "compared": compared_section(comparison),
        "filters": filters(comparison),
        "leaderboard": leaderboard_section(comparison),
        "trainings": trained_section(comparison),
        "strategies": strategies_section(comparison),
        "certified": certified_section(comparison),
        "profiles": profiles_section(comparison),
        "validity": validity_section(comparison),
        "combined": combined_sections(comparison),
        "loads": loads_section(comparison),
        "bytes": bytes_section(comparison),
        "downloads": downloads_section(comparison),
        "cite": citation_section(comparison),
        "glossary": fragment("glossary", "comparison", comparison.validity),
    }
    links = [(identity, name) for identity, name in NAVIGATION if sections[identity]]
    return fragment("comparison", "page", comparison.title, links, sections.values())


def comparison_terminal(comparison: Comparison, console: Console) -> None:
    """Print the answer, models, the fastest strategies, what trainings and scores say, failures."""
    from rich.markup import escape

    style = TERMINAL_STYLES.get(comparison_decision(comparison), "yellow")
    console.print(f"\n[bold {style}]{escape(comparison_headline(comparison))}[/]")
    for card in cards_of(comparison):
        if card.lines:
            where = " · ".join(f"{name} {fact}" for name, fact in card.lines)
            console.print(escape(f"{card.title}: {card.big} {card.what}; {where}."))
    console.print()
    rows = ordered(comparison.rows)
    models = leaderboard(rows)
    console.print(models.rich(rows, caption="Models", most=SHOWN_ROWS))
    _print_reasons(figures_of(models.columns, rows[:SHOWN_ROWS]), console)
    if comparison.strategies:
        best = fastest_of_each(comparison)
        console.print()
        console.print(STRATEGIES.rich(best, caption="Fastest strategies", most=SHOWN_ROWS))
        console.print("[dim]what misses its floor stands last, and is marked[/]")
        _print_reasons(figures_of(STRATEGIES.columns, best[:SHOWN_ROWS]), console)
    trained = [f"{name}: {' '.join(sentences)}" for name, sentences in trained_groups(comparison)]
    advised = [f"{place_of(one)}: {advice(one)}" for one in comparison.combined]
    loads = [
        f"{line_name(load.place.model, load.place.heads)} · {load.place.workload} · {load.load} · "
        f"{machine_shown(load.place.machine)}: {load.answer}."
        for load in comparison.loads
    ]
    said = [*trained, *advised, *loads, *validity_words(comparison.validity)]
    if said:
        console.print()
        for sentence in said:
            console.print(escape(sentence))
    console.print()
    for name, why in comparison.failures.items():
        console.print(f"[red]not run:[/] {escape(name)}: {escape(why)}")
    for note in [*left_over(comparison), *not_claimed(comparison)]:
        console.print(f"[dim]{escape(note)}[/]")


def figures_of(columns: Iterable[Column[T]], rows: Iterable[T]) -> list[Estimate]:
    """What a terminal shows of rows that may be undefined."""
    shown = [column for column in columns if column.name and column.on != "page"]
    values = [column.cell(row).value for row in rows for column in shown]
    return [value for value in values if isinstance(value, Estimate)]


def _print_reasons(estimates: Iterable[Estimate], console: Console) -> None:
    """Below a table, why figures in it are undefined."""
    from rich.markup import escape

    for why in reasons([estimate for estimate in estimates if estimate.value is None]):
        console.print(f"[dim]{escape(why)}[/]")
