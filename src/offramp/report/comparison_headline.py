"""What a comparison comes to, in plain words: does early exit pay anywhere, and what is not claimed."""

from __future__ import annotations

from collections.abc import Sequence

from offramp.report.comparison_answers import (
    NEVER,
    NOT_CERTIFIABLE,
    Answer,
    answers_of,
    believed,
    best_certified,
    cell_decisions,
    decision_on,
    decoded,
    fastest,
    floor_kept,
    has_defect,
    overall_decision,
    paying_cells,
    replayed,
    why_no_answer,
)
from offramp.report.comparison_words import distinct, floor_shown, place_of, row_name
from offramp.report.formats import counted, decimal, limits_text, listed, percent, times, whole_percent
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import Comparison, Strategy
from offramp.tuning.from_scores import BASES_NEEDED
from offramp.tuning.verdict import WORTH

NOWHERE = "Early exit does not pay anywhere here"


def headline(comparison: Comparison) -> str:
    """The answer in one sentence."""
    answers = answers_of(comparison)
    if not answers:
        return _uncertified_headline(comparison)
    decision, decisions = overall_decision(comparison), list(cell_decisions(answers).values())
    best = best_certified(comparison)
    timed = best is not None and best.timed is not None
    at_best = "" if best is None else f"{passed_how(best)}, it is at best {_speed(best.net_speedup)}"
    at_best += ", decoded for real" if timed else ""
    if decision == "pays":
        return f"Early exit {_where_it_pays(*paying_cells(answers), len(decisions))}: {at_best}."
    if decision == "too close to call":
        why = at_best or "what is certified has no speed on documents that it has not seen"
        return f"Whether early exit pays is too close to call: {why}."
    if decision == NOT_CERTIFIABLE:
        return _open_headline(decisions, answers)
    if best is None:
        return f"{NOWHERE}: no policy that keeps a floor is faster than the full model."
    return f"{NOWHERE}: {at_best}, and {whole_percent(WORTH)} are what it takes to be worth its trouble."


def _where_it_pays(measured: int, predicted: int, cells: int) -> str:
    """ "pays in 1 of 4 cells, and is predicted to pay in 2 more". predicted: cells without a measurement."""
    verb = "pays" if measured else "is predicted to pay"
    if cells == 1:
        return f"{verb} here"
    more = f", and is predicted to pay in {predicted:,} more" if measured and predicted else ""
    return f"{verb} in {measured or predicted:,} of {counted(cells, 'cell')}{more}"


def _open_headline(decisions: Sequence[str], answers: Sequence[Answer]) -> str:
    """The answer where nothing pays, but not everything could be certified."""
    unknown, refused = decisions.count(NOT_CERTIFIABLE), decisions.count("does not pay")
    why = lacking([answer for answer in answers if answer.decision == NOT_CERTIFIABLE])
    if not refused:
        return f"Whether early exit pays is not certifiable here: {why}."
    return (
        f"Early exit does not pay in {refused:,} of {counted(len(decisions), 'cell')}; in {unknown:,} it is "
        f"not certifiable: {why}."
    )


def lacking(answers: Sequence[Answer]) -> str:
    """What kept these from a certificate, and what the floor that needs least would take."""
    failed = "every faster policy failed the test of its floor"
    short = [answer.saving for answer in answers if answer.saving.lacks == "documents"]
    if not short:
        return failed
    easiest = min(short, key=lambda saving: (saving.documents_needed, saving.documents_in_all))
    said = f"{counted(easiest.documents, 'document')}{easiest.of_tokens} to certify on, "
    said += f"{easiest.documents_needed:,} needed"
    if easiest.documents >= easiest.documents_needed:
        said = "no document is left to search on"
    said += f" for {floor_shown(easiest.floor)} (trace at least {easiest.documents_in_all:,} in all)"
    return said if len(short) == len(answers) else f"{said}; elsewhere {failed}"


def best_sentences(comparison: Comparison) -> list[str]:
    """What stands behind the headline: the best that is certified, replayed and measured, a sentence each."""
    said = []
    best = best_certified(comparison)
    if best is not None:
        how = (
            "predicted on documents that neither search nor certificate saw"
            if best.timed is None
            else f"decoded for real; predicted were {_speed(best.saving.net_speedup)}"
        )
        said.append(
            f"The best speed that passed its floor is {_speed(best.net_speedup)} ({passed_how(best)}): "
            f"{best.place}, {how}."
        )
    found = fastest(replayed(comparison.strategies))
    if found is not None:
        said.append(
            f"By replay, without a certificate, the fastest strategy is {_speed(found.net_speedup)}: "
            f"{found.family}, {place_of(found)}, at {floor_shown(found.floor)}."
        )
    found = fastest(believed(comparison.strategies))
    if found is not None:
        speed = _speed(found.net_speedup)
        where = f"{place_of(found)}, at {floor_shown(found.floor)}"
        said.append(f"Decoded for real, the fastest is {speed}: {found.family}, {where}.")
    return said


def passed_how(answer: Answer) -> str:
    """What a policy passed its floor by: decoding, or a replay alone."""
    return "certified" if answer.saving.executed else "by a replay bound, nothing decoded"


def left_over(comparison: Comparison) -> list[str]:
    """How much could not be certified, or was measured but must not be believed."""
    said = []
    answers = answers_of(comparison)
    unknown = [answer for answer in answers if answer.decision == NOT_CERTIFIABLE]
    if unknown:
        verb = "is" if len(unknown) == 1 else "are"
        said.append(
            f"{len(unknown):,} of {counted(len(answers), 'answer')} (a cell at a floor) {verb} not "
            f"certifiable: {lacking(unknown)}."
        )
    no_answer = why_no_answer(comparison.strategies)
    if no_answer:
        count = len(decoded(comparison.strategies))
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
    answers, strategies = answers_of(comparison), comparison.strategies
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
    passed = [answer.saving for answer in answers if answer.saving.certified]
    if any(not saving.executed for saving in passed):
        said.append(
            "A replay bound speaks of given text with the full model's keys and values: what a policy keeps "
            "when it decodes may be less, so nothing pays by it. Only what was decoded is certified."
        )
    if passed:
        said.append("Each statement about a floor has its own chance of being wrong.")
    few = [row for row in comparison.rows if all(one.low is None for one in row.scores.values())]
    if few:
        names = distinct([f"{row_name(row)} on {row.workload}" for row in few])
        shown = listed(names) if len(names) <= 4 else f"{len(names)} cells"
        said.append(f"No interval is given for {shown}: too few documents to say how sure the figures are.")
    if comparison.failures:
        count = counted(len(comparison.failures), "cell")
        said.append(f"{count} failed or did not run; each is named with its reason.")
    return said + list(comparison.notes)


def _timed(strategies: Sequence[Strategy]) -> str:
    """What the stopwatch adds to predicted speeds."""
    if believed(strategies):
        return "only what is marked measured was timed"
    broken = any(has_defect(one) for one in strategies)
    return "what was timed here has a defect" if broken else "none was timed here"


def _uncertified_headline(comparison: Comparison) -> str:
    """The answer where nothing was tuned for a certificate."""
    measured, predicted = fastest(believed(comparison.strategies)), fastest(replayed(comparison.strategies))
    best = measured or predicted
    if best is None and comparison.combined:
        return _combined_headline(comparison)
    below = [one for one in comparison.strategies if one.policy != NEVER and floor_kept(one) == "missed"]
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
    too_slow = decision_on(best.net_speedup, certified=False, measured=best is measured) == "does not pay"
    answer = NOWHERE if too_slow else "Whether early exit pays is too close to call"
    speed = _speed(best.net_speedup)
    return f"{answer}: {how}, the fastest strategy at {floor_shown(best.floor)} is {speed}."


def _combined_headline(comparison: Comparison) -> str:
    """The answer where accelerations were timed together, and nothing else was asked."""
    count, broken = len(comparison.combined), combined_with_defects(comparison)
    said = f"Early exit was timed beside other accelerations only, in {counted(count, 'measurement')}"
    wrong = f"{broken:,}" if broken else "none"
    return f"{said}, {wrong} of them with a defect: what to use is said of each."


def combined_with_defects(comparison: Comparison) -> int:
    """Measurements of accelerations together with something wrong."""
    return sum(bool(one["defects"]) for one in comparison.combined)


def _speed(speedup: Estimate) -> str:
    """ "1.113 × plain decoding (1.098 to 1.128)"."""
    limits = limits_text(speedup.low, speedup.high, lambda value: decimal(value, 3))
    value = "undefined" if speedup.value is None else times(speedup.value)
    return f"{value} plain decoding{f' ({limits})' if limits else ''}"
