"""The answer of a run or a comparison in one plain sentence, and what it rests on."""

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
    main_findings,
    run_decision,
    speed_of,
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
from offramp.report.names import floor_shown, place_of
from offramp.report.ranking import believed, fastest, floor_kept, replayed
from offramp.report.run_result import RunResult
from offramp.report.verdict_words import (
    machine_name,
    saved_words,
    speed_words,
    worth_words,
)
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import Comparison, Saving
from offramp.tuning.ranking import MachineAnswer
from offramp.tuning.verdict import NEVER, Decision, Speed, Verdict, from_main, kept_words


def headline(run: RunResult) -> str:
    """The verdict at batch size 1 in one sentence: what was executed first, then the speed."""
    found = main_findings(run)
    if run_decision(run) == "depends on the text":
        return mixed_sentence(run.model_name, found, figures=True)
    answer, grounds = short_answer(run), grounds_of(run)
    return f"{answer.removesuffix('.')}: {grounds}" if grounds else answer


def short_answer(run: RunResult) -> str:
    """The decision alone, in a sentence that can be read at a glance."""
    found = main_findings(run)
    texts = listed([one.workload for one in found]) if found else ""
    floor = f"{whole_percent(found[0].detail.floor)} agreement" if found else ""
    model = run.model_name
    where = f"for {model} on {texts} at {floor}."
    match run_decision(run):
        case "undefined" if run.progress is not None:
            return f"There is no verdict for {model} yet."
        case "undefined":
            return f"There is no verdict for {model}."
        case "depends on the text":
            return mixed_sentence(model, found, figures=False)
        case "does not pay":
            return f"Early exit does not pay {where}"
        case "pays":
            return f"Early exit pays {where}"
        case "not enough documents":
            return f"There are not enough documents to say whether early exit pays {where}"
        case "not settled":
            return f"It is not settled whether early exit pays {where}"
        case _:
            return f"It is too close to call whether early exit pays {where}"


def grounds_of(run: RunResult) -> str:
    """What the short answer rests on: the figures, a sentence without a capital; "" if there are none yet."""
    found = main_findings(run)
    match run_decision(run):
        case "undefined" if run.progress is not None:
            return ""
        case "undefined":
            return "no policy could be judged on these workloads."
        case "depends on the text":
            return f"{'; '.join(f'{one.workload}: {short_figures(one.detail)}' for one in found)}."
        case "does not pay":
            return f"{refusal(found)}."
        case "pays":
            return f"{promise(found)}."
        case _:
            return f"{doubt(found)}."


def refusal(found: list[Finding[Verdict]]) -> str:
    """Why it does not pay: what was tried on the best workload, or that nothing was worth a try."""
    first = best(found)
    verdict = first.detail
    if verdict.tried is not None and verdict.tried.executed is not None:
        # What was refused for its agreement says so; its speed decides nothing.
        where = f", on {first.workload}," if len(found) > 1 else ""
        which = (
            "the most cautious policy that could gain enough"
            if verdict.standing == "refuted"
            else "what was tried"
        )
        return f"{which}{where} {figures(verdict)}"
    if verdict.speed is not None:
        where = f"the best, on {first.workload}, " if len(found) > 1 else "the best policy "
        return f"{where}{figures(verdict)}"
    if all(one.detail.standing in ("nothing could pay", "nothing faster") for one in found):
        return (
            f"no policy that was searched is predicted to gain "
            f"{percent(verdict.worth, 0)} over the best decoder without exits"
        )
    return (
        f"no policy, replayed on the measurement, is predicted to gain "
        f"{percent(verdict.worth, 0)}; nothing was decoded"
    )


def promise(found: list[Finding[Verdict]]) -> str:
    """Why it pays: the weakest workload's figures, so that the sentence holds for all."""
    weakest = min(found, key=lambda one: one.speedup)
    even = f"even on {weakest.workload}, the weakest of them, " if len(found) > 1 else ""
    return f"it {even}{figures(weakest.detail)}"


def doubt(found: list[Finding[Verdict]]) -> str:
    """What keeps the answer open, and what would settle it."""
    first = best(found)
    verdict = first.detail
    where = f"the best, on {first.workload}, " if len(found) > 1 else "the best policy "
    said = f"{where}{figures(verdict)}" if verdict.speed is not None else "nothing was decoded"
    missing = f"; missing: {'; '.join(verdict.missing)}" if verdict.missing else ""
    return said + missing


def figures(verdict: Verdict) -> str:
    """What is kept as executed, the speed against the worth, and where it comes from."""
    return f"{kept_words(verdict)}, {speed_words(verdict)}{worth_words(verdict)}{saved_words(verdict)}"


def mixed_sentence(model: str, found: list[Finding[Verdict]], *, figures: bool) -> str:
    """One sentence for workloads that differ, with or without each one's figures."""
    wording: dict[Decision, str] = {
        "pays": "pays on",
        "does not pay": "does not pay on",
        "too close to call": "is too close to call on",
        "not enough documents": "cannot be judged, for want of documents, on",
        "not settled": "is not settled on",
    }
    parts = []
    for decision, words in wording.items():
        texts = [
            f"{one.workload} ({short_figures(one.detail)})" if figures else one.workload
            for one in found
            if one.decision == decision
        ]
        if texts:
            parts.append(f"{words} {listed(texts)}")
    return f"For {model} at {whole_percent(found[0].detail.floor)} agreement, early exit {listed(parts)}."


def short_figures(verdict: Verdict) -> str:
    """One workload's figures in a few words."""
    if verdict.speed is not None:  # what is missing stands among the notes
        return f"{kept_words(verdict)}, {speed_words(verdict)}"
    if verdict.decision == "does not pay":
        return "nothing that could gain enough keeps the floor"
    return f"missing: {'; '.join(verdict.missing)}" if verdict.missing else "nothing was decoded"


def best(found: list[Finding[Verdict]]) -> Finding[Verdict]:
    """The workload with the largest speed: of a certified policy where there is one, else of a tried one."""
    return max(found, key=lambda one: (one.certified == "executed", one.speedup))


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


def _where_it_pays(found: Sequence[Finding[Saving]], cells: int) -> str:
    """ "pays in 1 of 4 cells": by its credit, as timed there."""
    paying = {one.cell for one in found if one.decision == "pays"}
    return "pays here" if cells == 1 else f"pays in {len(paying):,} of {counted(cells, 'cell')}"


def credited(one: Finding[Saving]) -> str:
    """ ", 1.080 × (1.060 to 1.100) the best decoder without exits"; nothing where that was not timed."""
    credit = one.credit
    if credit is None or credit.value is None:
        return ""
    return f", {estimate_text(credit, times)} the best decoder without exits"


def _open_headline(decisions: Sequence[str], found: Sequence[Finding[Saving]]) -> str:
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
            f"{found.family}, {place_of(found)}, at {floor_shown(found.floor)}."
        )
    found = fastest(believed(comparison.strategies))
    if found is not None:
        speed = over_plain(found.net_speedup)
        where = f"{place_of(found)}, at {floor_shown(found.floor)}"
        said.append(f"Decoded for real, the fastest is {speed}: {found.family}, {where}.")
    return said


def passed_how(one: Finding[Saving]) -> str:
    """What a policy passed its floor by: decoding, or a replay alone."""
    return "certified" if one.certified == "executed" else "by a replay bound, nothing decoded"


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


DECISION_WORDS: dict[Decision, str] = {
    "pays": "yes",
    "does not pay": "no",
    "too close to call": "too close to call",
    "not enough documents": "not enough documents",
    "not settled": "not settled",
}


def answers_at_main_floor(answers: Sequence[MachineAnswer]) -> list[MachineAnswer]:
    """The answers at the floor nearest to 95 %, in their order."""
    floor = min((answer.floor for answer in answers), key=from_main)
    return [answer for answer in answers if answer.floor == floor]


def machines_sentence(answers: Sequence[MachineAnswer]) -> str:
    """ "on this machine no; on h100 yes at batch 1, no at batch 8 and 32": at the main floor."""
    by_machine: dict[str, list[MachineAnswer]] = {}
    for answer in answers_at_main_floor(answers):
        by_machine.setdefault(answer.machine, []).append(answer)
    return "; ".join(
        f"on {machine_name(machine)} {batch_words(found)}" for machine, found in by_machine.items()
    )


def batch_words(answers: Sequence[MachineAnswer]) -> str:
    """The decisions of one machine by batch size; one word if they are all the same."""
    by_decision: dict[Decision, list[str]] = {}
    for answer in answers:
        by_decision.setdefault(answer.decision, []).append(str(answer.batch))
    if len(by_decision) == 1:
        return DECISION_WORDS[answers[0].decision]
    return ", ".join(
        f"{DECISION_WORDS[decision]} at batch {listed(batches)}" for decision, batches in by_decision.items()
    )
