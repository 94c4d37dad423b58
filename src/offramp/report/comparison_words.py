"""What a comparison found, in sentences: the answer, the best behind it, and what is not claimed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from offramp.kit.defaults import WORTH
from offramp.report.findings import (
    Finding,
    best_certified,
    cell_decisions,
    comparison_decision,
    findings_of,
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
from offramp.report.names import distinct, floor_shown, place_shown, row_name
from offramp.report.ranking import believed, decoded_for_real, fastest, floor_kept, replayed, why_no_answer
from offramp.report.words import WORDS
from offramp.scoring.card import ESTIMATES
from offramp.scoring.estimate import Estimate
from offramp.scoring.rank_correlation import BASES_NEEDED
from offramp.studies.comparison.results import Comparison, Strategy
from offramp.tuning.tuned import Tuned
from offramp.tuning.verdict import OPEN, Decision, Speed

MOST_MISSING = 3
"""Things that verdicts miss which are named."""

NOWHERE = "Early exit does not pay anywhere here"


def comparison_headline(comparison: Comparison) -> str:
    """The answer in one sentence."""
    found = findings_of(comparison)
    if not found:
        return _uncertified_headline(comparison)
    decision, decisions = comparison_decision(comparison), list(cell_decisions(found).values())
    best = best_certified(found)
    at_best = "" if best is None else f"{passed_how(best)}, it is at best {over_plain(best.speed)}"
    if best is not None and best.timed:
        at_best += f", decoded for real{credited(best)}"
    if decision == "pays":
        return f"Early exit {_where_it_pays(found, len(decisions))}: {at_best}."
    if decision in OPEN:
        if not any(one.decision == decision and one.certified for one in found):
            return _open_headline(decision, decisions, found)
        why = at_best or "what is certified has no speed on documents that it has not seen"
        if best is not None and best.missing:
            why += f"; missing: {'; '.join(best.missing)}"
        return f"{WORDS[decision].answer}: {why}."
    if best is None:
        return f"{NOWHERE}: no policy that keeps a floor is faster than the full model."
    return f"{NOWHERE}: {at_best}, and {whole_percent(WORTH)} are what it takes to be worth its trouble."


def _where_it_pays(found: Sequence[Finding[Tuned]], cells: int) -> str:
    """ "pays in 1 of 4 cells": by its credit, as timed there."""
    paying = {one.cell for one in found if one.decision == "pays"}
    return "pays here" if cells == 1 else f"pays in {len(paying):,} of {counted(cells, 'cell')}"


def credited(one: Finding[Tuned]) -> str:
    """ ", 1.080 × (1.060 to 1.100) the best decoder without exits"; nothing where that was not timed."""
    credit = one.credit
    if credit is None or credit.value is None:
        return ""
    return f", {estimate_text(credit, times)} the best decoder without exits"


def _open_headline(decision: Decision, decisions: Sequence[Decision], found: Sequence[Finding[Tuned]]) -> str:
    """The answer where nothing pays, and what is open is not certified."""
    why = lacking([one for one in found if one.unknown])
    if refused := decisions.count("does not pay"):
        cells = counted(len(decisions), "cell")
        return f"Early exit does not pay in {refused:,} of {cells}; the others are open; {why}."
    return f"{WORDS[decision].answer} here; {why}."


def best_sentences(comparison: Comparison) -> list[str]:
    """What stands behind the headline: the best that is certified, replayed and measured, a sentence each."""
    said = []
    best = best_certified(findings_of(comparison))
    if best is not None:
        how = (
            f"decoded for real; predicted were {over_plain(best.predicted)}"
            if best.timed
            else "predicted on documents that neither search nor certificate saw"
        )
        said.append(
            f"The best speed that passed its floor is {over_plain(best.speed)} ({passed_how(best)}): "
            f"{best.place}, {how}."
        )
    found = fastest(replayed(comparison.strategies))
    if found is not None:
        said.append(
            f"By replay, without a certificate, the fastest strategy is {over_plain(found.net_speedup)}: "
            f"{found.family}, {place_shown(found.place)}, at {floor_shown(found.floor)}."
        )
    found = fastest(believed(comparison.strategies))
    if found is not None:
        speed = over_plain(found.net_speedup)
        where = f"{place_shown(found.place)}, at {floor_shown(found.floor)}"
        said.append(f"Decoded for real, the fastest is {speed}: {found.family}, {where}.")
    return said


def passed_how(one: Finding[Tuned]) -> str:
    """What a policy passed its floor by: decoding, or a replay alone."""
    return "certified" if one.certified == "executed" else "by a replay bound, nothing decoded"


def _uncertified_headline(comparison: Comparison) -> str:
    """The answer where nothing was tuned for a certificate."""
    measured, predicted = fastest(believed(comparison.strategies)), fastest(replayed(comparison.strategies))
    best = measured or predicted
    if best is None and comparison.combined:
        return _combined_headline(comparison)
    below = [one for one in comparison.strategies if not one.plain and floor_kept(one) == "missed"]
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
    answer = NOWHERE if too_slow else WORDS["not settled"].answer
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


def lacking(findings: Sequence[Finding[Tuned]]) -> str:
    """What these miss, the most frequent first, in how many of them if not in all."""
    counts = Counter(missing for one in findings for missing in one.missing)
    said = [
        missing if count == len(findings) else f"{missing} (in {count:,})"
        for missing, count in counts.most_common(MOST_MISSING)
    ]
    others = len(counts) - len(said)
    return "missing: " + "; ".join([*said, *([counted(others, "other thing")] if others else [])])


def left_over(comparison: Comparison) -> list[str]:
    """How much could not be certified, or was measured but must not be believed."""
    said = []
    answers = findings_of(comparison)
    unknown = [one for one in answers if one.unknown]
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
    missed = sum(one.missed for one in answers if one.exits)
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
    passed = {one.certified for one in answers} - {""}
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


def _timed(strategies: Sequence[Strategy]) -> str:
    """What the stopwatch adds to predicted speeds."""
    if believed(strategies):
        return "only what is marked measured was timed"
    broken = any(one.defect for one in strategies)
    return "what was timed here has a defect" if broken else "none was timed here"


def combined_with_defects(comparison: Comparison) -> int:
    """Measurements of accelerations together with something wrong."""
    return sum(bool(combined.defects) for combined in comparison.combined)
