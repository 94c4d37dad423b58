"""The verdict in one plain sentence, and what to bear in mind beside it."""

from __future__ import annotations

from typing import Literal

from offramp.report.basis import cheaper, how_obtained
from offramp.report.formats import counted, faster, interval_text, listed, percent, whole_percent
from offramp.report.judgement import Judgement, judge_measured
from offramp.report.run_result import RunResult, WorkloadResult
from offramp.report.untransformed import transform_sentence
from offramp.scoring.bootstrap import DOCUMENTS_NEEDED
from offramp.scoring.documents import lengths_of, lengths_text
from offramp.tuning.results import Decision, Verdict
from offramp.tuning.verdict import WORTH
from offramp.workloads.packing import SHORTEST_CAP

HEADLINE_FLOOR = 0.95
OverallDecision = Literal["pays", "does not pay", "too close to call", "depends on the text", "undefined"]


def main_verdict(workload: WorkloadResult) -> Verdict | None:
    """The verdict at the floor nearest to 95 % agreement, None if there is none."""
    return min(workload.verdicts, key=lambda verdict: abs(verdict.floor - HEADLINE_FLOOR), default=None)


def main_judgements(run: RunResult) -> list[Judgement]:
    """The main verdict of every workload that has one, with what decoding said of it."""
    found = [(workload, main_verdict(workload)) for workload in run.workloads]
    return [judge_measured(run, workload, verdict) for workload, verdict in found if verdict is not None]


def overall_decision(run: RunResult) -> OverallDecision:
    """The decision that all workloads share, or that they differ."""
    decisions = {judgement.decision for judgement in main_judgements(run)}
    if not decisions:
        return "undefined"
    return decisions.pop() if len(decisions) == 1 else "depends on the text"


def headline(run: RunResult) -> str:
    """The verdict at batch size 1 in one sentence, with the figure that decides it and its kind."""
    found = main_judgements(run)
    decision = overall_decision(run)
    texts = listed([judgement.name for judgement in found]) if found else ""
    match decision:
        case "undefined" if run.progress is not None:
            return f"There is no verdict for {run.model_name} yet."
        case "undefined":
            return f"There is no verdict for {run.model_name}: no policy could be judged on these workloads."
        case "depends on the text":
            return mixed_sentence(run.model_name, found)
        case "does not pay":
            return f"Early exit would not pay for {run.model_name} on {texts}: {refusal(found)}."
        case "pays":
            return f"Early exit would pay for {run.model_name} on {texts}: {promise(found)}."
        case _:
            return (
                f"It is too close to call whether early exit would pay for {run.model_name} on "
                f"{texts}: {doubt(found)}."
            )


def refusal(found: list[Judgement]) -> str:
    """Why it does not pay: the best workload's figure against the worth."""
    floor = whole_percent(found[0].verdict.floor)
    if all(judgement.verdict.policy == "never" for judgement in found):
        words = listed(list(dict.fromkeys(cheaper(judgement.verdict.basis) for judgement in found)))
        return (
            f"at {floor} agreement no policy replayed on the measurement {words} than the full model, so the "
            "best choice is never to exit"
        )
    chosen = best(found)
    value = chosen.speed
    if value is None:
        return missing_speed(chosen.verdict)
    where = f" ({chosen.name})" if len(found) > 1 else ""
    if chosen.measured is not None:
        return f"at {floor} agreement the best policy{where}, {measured_refusal(chosen, value)}"
    if value <= 1:
        return (
            f"at {floor} agreement even the best policy{where} is predicted to be {faster(value)} than "
            "plain decoding"
        )
    return (
        f"at {floor} agreement the best policy{where} is predicted to decode only {faster(value)}, less "
        "than the "
        f"{whole_percent(WORTH)} that would make it worth the trouble"
    )


def measured_refusal(judgement: Judgement, value: float) -> str:
    """What was predicted of a policy and what was measured."""
    predicted = "" if judgement.predicted is None else f"predicted to decode {faster(judgement.predicted)}, "
    if value <= 1:
        return f"{predicted}was measured to decode {faster(value)} than plain decoding"
    return (
        f"{predicted}was measured to decode only {faster(value)}, less than the {whole_percent(WORTH)} that "
        "would make it worth the trouble"
    )


def promise(found: list[Judgement]) -> str:
    """Why it pays: the weakest workload's figure, so that the sentence holds for all."""
    weakest = min(found, key=speed)
    value = weakest.speed
    floor = whole_percent(weakest.verdict.floor)
    if value is None:
        return missing_speed(weakest.verdict)
    limits = f" ({weakest.interval})" if weakest.interval else ""
    even = f"even on {weakest.name}, the weakest of them, " if len(found) > 1 else ""
    if weakest.measured is not None:
        return f"at {floor} agreement the best policy was {even}measured to decode {faster(value)}{limits}"
    return (
        f"at {floor} agreement, replayed on unseen documents, the best policy is {even}predicted to "
        f"decode {faster(value)}{limits}"
    )


def doubt(found: list[Judgement]) -> str:
    """What keeps the answer open: the measurement, the interval around the worth, or a missed floor."""
    chosen = best(found)
    verdict = chosen.verdict
    floor = whole_percent(verdict.floor)
    value = verdict.net_speedup.value
    if value is None:
        return missing_speed(verdict)
    where = f" ({chosen.name})" if len(found) > 1 else ""
    if chosen.why is not None and verdict.policy == "never":
        return f"at {floor} agreement{where} {chosen.why}"
    if chosen.why is not None:
        return f"the best policy{where} at {floor} agreement was predicted to decode {faster(value)}; " + (
            chosen.why
        )
    limits = verdict.net_speedup
    interval = interval_text(limits.low, limits.high, lambda v: percent(v - 1))
    low, kept = limits.low, verdict.agreement.value
    if low is not None and low > 1 + WORTH and kept is not None:
        return (
            f"the best policy{where} is predicted to decode {faster(value)} ({interval}), but it kept "
            f"{percent(kept)} agreement on unseen documents where {floor} was asked for"
        )
    found_text = f"at {floor} agreement the best policy{where} is predicted to decode {faster(value)}"
    if interval:
        return f"{found_text}, but anything from {interval} fits the documents seen"
    return f"{found_text}, without an interval: {limits.no_interval or 'no reason recorded'}"


def missing_speed(verdict: Verdict) -> str:
    """Why no speed stands in the sentence."""
    why = verdict.net_speedup.undefined or "no reason recorded"
    return f"its speed at {whole_percent(verdict.floor)} agreement is undefined: {why}"


def mixed_sentence(model: str, found: list[Judgement]) -> str:
    """One sentence for workloads that differ."""
    wording: dict[Decision, str] = {
        "pays": "would pay on",
        "does not pay": "would not pay on",
        "too close to call": "is too close to call on",
    }
    parts = []
    for decision, words in wording.items():
        texts = [f"{j.name} ({speed_words(j)})" for j in found if j.decision == decision]
        if texts:
            parts.append(f"{words} {listed(texts)}")
    floor = whole_percent(found[0].verdict.floor)
    measured = [judgement.name for judgement in found if judgement.measured is not None]
    source = "predicted decoding speed"
    if measured:
        source = f"decoding speed, measured on {listed(measured)}"
        source += "" if len(measured) == len(found) else " and predicted elsewhere,"
    return f"For {model}, early exit {', '.join(parts)}: {source} at {floor} agreement."


def speed_words(judgement: Judgement) -> str:
    """The speed of one workload's policy in two words."""
    value = judgement.speed
    if judgement.verdict.policy == "never":
        return "never exits"
    return "undefined" if value is None else faster(value)


def speed(judgement: Judgement) -> float:
    """The net speedup, below everything if undefined."""
    return float("-inf") if judgement.speed is None else judgement.speed


def best(found: list[Judgement]) -> Judgement:
    """The workload with the largest net speedup."""
    return max(found, key=speed)


def caveats(run: RunResult) -> list[str]:
    """What a reader must know before quoting the headline; first, how the figures were obtained."""
    cost = transform_sentence(run)
    return [
        *how_obtained(run),
        *([] if cost is None else [cost]),
        *verdict_caveats(run),
        *trace_caveats(run),
    ]


def verdict_caveats(run: RunResult) -> list[str]:
    """Few documents, and floors that did not hold."""
    notes = []
    traces = {workload.name: workload.trace for workload in run.workloads}
    for judgement in main_judgements(run):
        name, verdict = judgement.name, judgement.verdict
        if verdict.report_documents < DOCUMENTS_NEEDED:
            notes.append(
                f"On {name} the verdict rests on {counted(verdict.report_documents, 'document')}"
                f"{lengths_text(lengths_of(traces[name]))}; {DOCUMENTS_NEEDED} are needed for an interval, "
                "and as many to choose a policy on: give "
                f"--tokens {2 * DOCUMENTS_NEEDED * SHORTEST_CAP:,} or more, if the workload has them."
            )
        if not verdict.floor_held and verdict.policy != "never":
            held = verdict.agreement.value
            notes.append(
                f"On {name} the {whole_percent(verdict.floor)} floor, met on the documents the policy was "
                "chosen on, "
                f"was not held on unseen ones{'' if held is None else f': {percent(held)}'}."
            )
    return notes


def trace_caveats(run: RunResult) -> list[str]:
    """Notes of all workloads once, documents left out, and notes of single workloads."""
    several = run.workloads if len(run.workloads) > 1 else ()
    common = (
        [note for note in several[0].notes if all(note in one.notes for one in several)] if several else []
    )
    notes = [f"{note[:1].upper()}{note[1:]}." for note in common]
    for workload in run.workloads:
        invalid = [document for document in workload.trace.documents if not document.valid]
        notes += [
            f"{workload.name}: document {document.id} is left out: {document.reason or 'no reason recorded'}."
            for document in invalid
        ]
        notes += [f"{workload.name}: {note}" for note in workload.notes if note not in common]
    return notes
