"""The verdict in one plain sentence, and what to bear in mind beside it."""

from __future__ import annotations

from typing import Literal

from offramp.report.basis import how_obtained
from offramp.report.formats import counted, listed, whole_percent
from offramp.report.run_result import RunResult, WorkloadResult
from offramp.report.verdict_words import saved_words, speed_words, transform_sentence, worth_words
from offramp.scoring.documents import lengths_of, lengths_text
from offramp.scoring.estimate import DOCUMENTS_NEEDED
from offramp.tuning.verdict import Decision, Verdict, kept_words
from offramp.workloads.packing import SHORTEST_CAP

HEADLINE_FLOOR = 0.95
OverallDecision = Decision | Literal["depends on the text", "undefined"]
Named = tuple[str, Verdict]


def main_verdict(workload: WorkloadResult) -> Verdict | None:
    """The verdict at the floor nearest to 95 % agreement, None if there is none."""
    return min(workload.verdicts, key=lambda verdict: abs(verdict.floor - HEADLINE_FLOOR), default=None)


def main_verdicts(run: RunResult) -> list[Named]:
    """The main verdict of every workload that has one, with the workload's name."""
    found = [(workload.name, main_verdict(workload)) for workload in run.workloads]
    return [(name, verdict) for name, verdict in found if verdict is not None]


def overall_decision(run: RunResult) -> OverallDecision:
    """The decision that all workloads share, or that they differ."""
    decisions: set[Decision] = {verdict.decision for _, verdict in main_verdicts(run)}
    if not decisions:
        return "undefined"
    return decisions.pop() if len(decisions) == 1 else "depends on the text"


def headline(run: RunResult) -> str:
    """The verdict at batch size 1 in one sentence: what was executed first, then the speed."""
    found = main_verdicts(run)
    if overall_decision(run) == "depends on the text":
        return mixed_sentence(run.model_name, found, figures=True)
    answer, grounds = short_answer(run), grounds_of(run)
    return f"{answer.removesuffix('.')}: {grounds}" if grounds else answer


def short_answer(run: RunResult) -> str:
    """The decision alone, in a sentence that can be read at a glance."""
    found = main_verdicts(run)
    texts = listed([name for name, _ in found]) if found else ""
    model = run.model_name
    match overall_decision(run):
        case "undefined" if run.progress is not None:
            return f"There is no verdict for {model} yet."
        case "undefined":
            return f"There is no verdict for {model}."
        case "depends on the text":
            return mixed_sentence(model, found, figures=False)
        case "does not pay":
            return f"Early exit does not pay for {model} on {texts}."
        case "pays":
            return f"Early exit pays for {model} on {texts}."
        case "not enough documents":
            return f"There are not enough documents to say whether early exit pays for {model} on {texts}."
        case _:
            return f"It is too close to call whether early exit pays for {model} on {texts}."


def grounds_of(run: RunResult) -> str:
    """What the short answer rests on: the figures, a sentence without a capital; "" if there are none yet."""
    found = main_verdicts(run)
    match overall_decision(run):
        case "undefined" if run.progress is not None:
            return ""
        case "undefined":
            return "no policy could be judged on these workloads."
        case "depends on the text":
            return f"{'; '.join(f'{name}: {short_figures(one)}' for name, one in found)}."
        case "does not pay":
            return f"{refusal(found)}."
        case "pays":
            return f"{promise(found)}."
        case _:
            return f"{doubt(found)}."


def refusal(found: list[Named]) -> str:
    """Why it does not pay: the best workload's figure against the worth."""
    name, verdict = best(found)
    floor = whole_percent(verdict.floor)
    if verdict.speed is None:
        if all(one.certificate is not None and one.certificate.executed for _, one in found):
            return f"at {floor} agreement nothing faster than plain decoding keeps the floor as executed"
        return f"at {floor} agreement no policy, replayed on the measurement, is faster than plain decoding"
    where = f"the best, on {name}, " if len(found) > 1 else "the best policy "
    return f"at {floor} agreement {where}{figures(verdict)}"


def promise(found: list[Named]) -> str:
    """Why it pays: the weakest workload's figures, so that the sentence holds for all."""
    name, verdict = min(found, key=lambda named: speed(named[1]))
    even = f"even on {name}, the weakest of them, " if len(found) > 1 else ""
    return f"at {whole_percent(verdict.floor)} agreement it {even}{figures(verdict)}"


def doubt(found: list[Named]) -> str:
    """What keeps the answer open, and what would settle it."""
    name, verdict = best(found)
    where = f"the best, on {name}, " if len(found) > 1 else "the best policy "
    said = f"at {whole_percent(verdict.floor)} agreement "
    said += f"{where}{figures(verdict)}" if verdict.speed is not None else "nothing could be certified"
    missing = f"; missing: {'; '.join(verdict.missing)}" if verdict.missing else ""
    return said + missing


def figures(verdict: Verdict) -> str:
    """What is kept as executed, the speed against the worth, and where it comes from."""
    return f"{kept_words(verdict)}, {speed_words(verdict)}{worth_words(verdict)}{saved_words(verdict)}"


def mixed_sentence(model: str, found: list[Named], *, figures: bool) -> str:
    """One sentence for workloads that differ, with or without each one's figures."""
    wording: dict[Decision, str] = {
        "pays": "pays on",
        "does not pay": "does not pay on",
        "too close to call": "is too close to call on",
        "not enough documents": "cannot be judged, for want of documents, on",
    }
    parts = []
    for decision, words in wording.items():
        texts = [
            f"{name} ({short_figures(one)})" if figures else name
            for name, one in found
            if one.decision == decision
        ]
        if texts:
            parts.append(f"{words} {listed(texts)}")
    return f"For {model} at {whole_percent(found[0][1].floor)} agreement, early exit {', '.join(parts)}."


def short_figures(verdict: Verdict) -> str:
    """One workload's figures in a few words."""
    if verdict.speed is not None:  # what is missing stands among the notes
        return f"{kept_words(verdict)}, {speed_words(verdict)}"
    if verdict.decision == "does not pay":
        return "nothing faster is certified"
    return f"missing: {'; '.join(verdict.missing)}" if verdict.missing else "nothing is certified yet"


def speed(verdict: Verdict) -> float:
    """The speed over plain decoding, below everything if there is none."""
    return float("-inf") if verdict.speed is None else verdict.speed.value


def best(found: list[Named]) -> Named:
    """The workload with the largest speed: of a certified policy where there is one, else of a tried one."""
    return max(found, key=lambda named: (named[1].certified, speed(named[1])))


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
    """Few documents, and what would settle an open verdict."""
    notes = []
    traces = {workload.name: workload.trace for workload in run.workloads}
    for name, verdict in main_verdicts(run):
        if verdict.missing:
            notes.append(f"On {name} the verdict is open; missing: {'; '.join(verdict.missing)}.")
        if verdict.report_documents < DOCUMENTS_NEEDED:
            notes.append(
                f"On {name} what is replayed rests on {counted(verdict.report_documents, 'document')}"
                f"{lengths_text(lengths_of(traces[name]))}; {DOCUMENTS_NEEDED} are needed for an interval, "
                "and as many to choose a policy on: give "
                f"--tokens {2 * DOCUMENTS_NEEDED * SHORTEST_CAP:,} or more, if the workload has them."
            )
    cells = {v.certificate.delta for _, v in main_verdicts(run) if v.certificate and v.certificate.delta}
    if len(run.workloads) > 1 and cells:
        notes.append(
            f"The sentence is about {len(run.workloads)} texts: each certificate spends a chance of "
            f"{max(cells):.2g} to be wrong, all of them together {len(run.workloads) * max(cells):.2g}."
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
