"""The answer of a comparison in one plain sentence, and what it rests on."""

from __future__ import annotations

from collections.abc import Sequence

from offramp.kit.defaults import WORTH
from offramp.report.caveats import combined_with_defects, lacking
from offramp.report.findings import (
    NOT_CERTIFIABLE,
    Finding,
    best_certified,
    cell_decisions,
    comparison_decision,
    decision_on,
    findings_of,
    speed_of,
)
from offramp.report.formats import (
    counted,
    estimate_text,
    limits_text,
    percent,
    thousandths,
    times,
    whole_percent,
)
from offramp.report.names import floor_shown, place_shown
from offramp.report.ranking import believed, fastest, floor_kept, replayed
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import Comparison
from offramp.tuning.tuned import Tuned
from offramp.tuning.verdict import Speed

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
    if decision in ("too close to call", "not settled"):
        why = at_best or "what is certified has no speed on documents that it has not seen"
        if best is not None and best.missing:
            why += f"; missing: {'; '.join(best.missing)}"
        return f"Whether early exit pays is {decision}: {why}."
    if decision == NOT_CERTIFIABLE:
        return _open_headline(decisions, found)
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


def _open_headline(decisions: Sequence[str], found: Sequence[Finding[Tuned]]) -> str:
    """The answer where nothing pays, but not everything could be certified."""
    unknown, refused = decisions.count(NOT_CERTIFIABLE), decisions.count("does not pay")
    why = lacking([one for one in found if one.decision == NOT_CERTIFIABLE])
    if not refused:
        return f"Whether early exit pays is not certifiable here: {why}."
    return (
        f"Early exit does not pay in {refused:,} of {counted(len(decisions), 'cell')}; in {unknown:,} it is "
        f"not certifiable: {why}."
    )


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
    speed = speed_of(best.net_speedup, measured=best is measured)
    too_slow = decision_on(speed, certified=False) == "does not pay"
    answer = NOWHERE if too_slow else "Whether early exit pays is not settled"
    return f"{answer}: {how}, the fastest strategy at {floor_shown(best.floor)} is {over_plain(speed)}."


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
