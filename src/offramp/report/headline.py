"""The verdict in one plain sentence, and what to bear in mind beside it."""

from __future__ import annotations

from typing import Literal

from offramp.report.basis import REPAIR_NOTE, cheaper, not_decoded
from offramp.report.formats import counted, faster, interval_text, listed, percent, whole_percent
from offramp.report.run_result import RunResult, WorkloadResult
from offramp.scoring.bootstrap import DOCUMENTS_NEEDED
from offramp.tuning.results import Decision, Verdict
from offramp.tuning.verdict import WORTH
from offramp.workloads.packing import SHORTEST_CAP

HEADLINE_FLOOR = 0.95
OverallDecision = Literal["pays", "does not pay", "too close to call", "depends on the text", "undefined"]


def main_verdict(workload: WorkloadResult) -> Verdict | None:
    """The verdict at the floor nearest to 95 % agreement, None if there is none."""
    return min(workload.verdicts, key=lambda verdict: abs(verdict.floor - HEADLINE_FLOOR), default=None)


def main_verdicts(run: RunResult) -> list[tuple[str, Verdict]]:
    """The main verdict of every workload that has one, by workload name."""
    pairs = [(workload.name, main_verdict(workload)) for workload in run.workloads]
    return [(name, verdict) for name, verdict in pairs if verdict is not None]


def overall_decision(run: RunResult) -> OverallDecision:
    """The decision that all workloads share, or that they differ."""
    decisions = {verdict.decision for _, verdict in main_verdicts(run)}
    if not decisions:
        return "undefined"
    return decisions.pop() if len(decisions) == 1 else "depends on the text"


def headline(run: RunResult) -> str:
    """The verdict at batch size 1 in one sentence, with the figure that decides it and its kind."""
    found = main_verdicts(run)
    decision = overall_decision(run)
    texts = listed([name for name, _ in found]) if found else ""
    match decision:
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


def refusal(found: list[tuple[str, Verdict]]) -> str:
    """Why it does not pay: the best workload's figure against the worth."""
    floor = whole_percent(found[0][1].floor)
    if all(verdict.policy == "never" for _, verdict in found):
        words = listed(list(dict.fromkeys(cheaper(verdict.basis) for _, verdict in found)))
        return (
            f"at {floor} agreement no policy replayed on the measurement {words} than the full model, so the "
            "best choice is never to exit"
        )
    name, verdict = best(found)
    value = verdict.net_speedup.value
    if value is None:
        return missing_speed(verdict)
    where = f" ({name})" if len(found) > 1 else ""
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


def promise(found: list[tuple[str, Verdict]]) -> str:
    """Why it pays: the weakest workload's figure, so that the sentence holds for all."""
    name, verdict = min(found, key=lambda pair: speed(pair[1]))
    value = verdict.net_speedup.value
    floor = whole_percent(verdict.floor)
    if value is None:
        return missing_speed(verdict)
    interval = interval_text(verdict.net_speedup.low, verdict.net_speedup.high, lambda v: percent(v - 1))
    weakest = f"even on {name}, the weakest of them, " if len(found) > 1 else ""
    return (
        f"at {floor} agreement, replayed on unseen documents, the best policy is {weakest}predicted to "
        "decode "
        f"{faster(value)}{f' ({interval})' if interval else ''}"
    )


def doubt(found: list[tuple[str, Verdict]]) -> str:
    """What keeps the answer open: the interval around the worth, that there is none, or a missed floor."""
    name, verdict = best(found)
    floor = whole_percent(verdict.floor)
    value = verdict.net_speedup.value
    if value is None:
        return missing_speed(verdict)
    interval = interval_text(verdict.net_speedup.low, verdict.net_speedup.high, lambda v: percent(v - 1))
    where = f" ({name})" if len(found) > 1 else ""
    low, kept = verdict.net_speedup.low, verdict.agreement.value
    if low is not None and low > 1 + WORTH and kept is not None:
        return (
            f"the best policy{where} is predicted to decode {faster(value)} ({interval}), but it kept "
            f"{percent(kept)} agreement on unseen documents where {floor} was asked for"
        )
    found_text = f"at {floor} agreement the best policy{where} is predicted to decode {faster(value)}"
    if interval:
        return f"{found_text}, but anything from {interval} fits the documents seen"
    return f"{found_text}, without an interval: {verdict.net_speedup.no_interval or 'no reason recorded'}"


def missing_speed(verdict: Verdict) -> str:
    """Why no speed stands in the sentence."""
    why = verdict.net_speedup.undefined or "no reason recorded"
    return f"its speed at {whole_percent(verdict.floor)} agreement is undefined: {why}"


def mixed_sentence(model: str, found: list[tuple[str, Verdict]]) -> str:
    """One sentence for workloads that differ."""
    wording: dict[Decision, str] = {
        "pays": "would pay on",
        "does not pay": "would not pay on",
        "too close to call": "is too close to call on",
    }
    parts = []
    for decision, words in wording.items():
        texts = [
            f"{name} ({speed_words(verdict)})" for name, verdict in found if verdict.decision == decision
        ]
        if texts:
            parts.append(f"{words} {listed(texts)}")
    floor = whole_percent(found[0][1].floor)
    return f"For {model}, early exit {', '.join(parts)}: predicted decoding speed at {floor} agreement."


def speed_words(verdict: Verdict) -> str:
    """The predicted speed of one verdict in two words."""
    value = verdict.net_speedup.value
    return "never exits" if verdict.policy == "never" else "undefined" if value is None else faster(value)


def speed(verdict: Verdict) -> float:
    """The net speedup, below everything if undefined."""
    return float("-inf") if verdict.net_speedup.value is None else verdict.net_speedup.value


def best(found: list[tuple[str, Verdict]]) -> tuple[str, Verdict]:
    """The workload with the largest net speedup."""
    return max(found, key=lambda pair: speed(pair[1]))


def caveats(run: RunResult) -> list[str]:
    """What a reader must know before quoting the headline; first, how the figures were obtained."""
    notes = [not_decoded(run)]
    if any(verdict.policy != "never" for workload in run.workloads for verdict in workload.verdicts):
        notes.append(REPAIR_NOTE)
    for name, verdict in main_verdicts(run):
        if verdict.report_documents < DOCUMENTS_NEEDED:
            notes.append(
                f"On {name} the verdict rests on {counted(verdict.report_documents, 'document')}; "
                f"{DOCUMENTS_NEEDED} are needed for an interval, and as many to choose a policy on: give "
                f"--tokens {2 * DOCUMENTS_NEEDED * SHORTEST_CAP:,} or more, if the workload has them."
            )
        if not verdict.floor_held and verdict.policy != "never":
            held = verdict.agreement.value
            notes.append(
                f"On {name} the {whole_percent(verdict.floor)} floor, met on the documents the policy was "
                "chosen on, "
                f"was not held on unseen ones{'' if held is None else f': {percent(held)}'}."
            )
    for workload in run.workloads:
        invalid = [document for document in workload.trace.documents if not document.valid]
        notes += [
            f"{workload.name}: document {document.id} is left out: {document.reason or 'no reason recorded'}."
            for document in invalid
        ]
        notes += [f"{workload.name}: {note}" for note in workload.notes]
    return notes
