"""What to bear in mind before quoting a headline: how figures were had, and what is not claimed."""

from __future__ import annotations

from collections.abc import Sequence

from offramp.report.findings import NOT_CERTIFIABLE, Finding, findings_of, main_verdicts
from offramp.report.formats import counted, listed, percent
from offramp.report.names import distinct, floor_shown, row_name
from offramp.report.ranking import believed, decoded_for_real, has_defect, replayed, why_no_answer
from offramp.report.run_result import RunResult
from offramp.report.verdict_words import bases, basis_words, transform_sentence
from offramp.scoring.documents import lengths_of, lengths_text
from offramp.scoring.estimate import DOCUMENTS_NEEDED
from offramp.scoring.rank_correlation import BASES_NEEDED
from offramp.studies.comparison.results import Comparison, Saving, Strategy
from offramp.tuning.pricing import BYTES
from offramp.workloads.packing import SHORTEST_CAP

REPAIR_NOTE = (
    "A token that leaves early is charged for the keys and values that later tokens need of the layers it "
    "skipped. Propagated and mapped ones are approximate, and how much that changes later predictions is not "
    "in a replayed agreement; recomputed ones are exact."
)


def how_obtained(run: RunResult) -> list[str]:
    """Where agreement, skipped layers and speed come from: replayed, predicted, decoded for real."""
    words = listed([basis_words(basis) for basis in bases(run)] or [basis_words(BYTES)])
    replayed = (
        f"agreement and skipped layers are replayed on the measurement, speed is predicted from {words}."
    )
    shown = [verdict for workload in run.workloads for verdict in workload.verdicts]
    exits = any(verdict.policy != "never" or verdict.tried is not None for verdict in shown)
    if not run.decoding:
        when = "in this run" if run.progress is None else "yet"
        notes = [f"No policy was decoded for real {when}: {replayed}"]
        notes += [f"{name} was not decoded: {why}." for name, why in run.not_decoded.items()]
        return notes + [REPAIR_NOTE] * exits
    texts = listed([decoded.workload for decoded in run.decoding])
    notes = [
        "Under “Decoded for real” stand the policies that were decoded and timed, on a few prompts of "
        f"{texts}. Of all others {replayed}"
    ]
    notes += defect_notes(run)
    notes += [f"{name} was not decoded: {why}." for name, why in run.not_decoded.items()]
    return notes + ([repair_note(run)] if exits else [])


def defect_notes(run: RunResult) -> list[str]:
    """Which measurements have a defect, and which one; said once for all texts that share it."""
    by_reason: dict[str, list[str]] = {}
    for decoded in run.decoding:
        if not decoded.sound:
            by_reason.setdefault("; ".join(decoded.bench.defects), []).append(decoded.workload)
    return [
        f"The measurement on {listed(texts)} has a defect and changes no verdict: {why}."
        for why, texts in by_reason.items()
    ]


def wrong_with(run: RunResult) -> list[str]:
    """What went wrong in a run, which a reader of the answer has to know: defects, what was left out."""
    not_decoded = [f"{name} was not decoded: {why}." for name, why in run.not_decoded.items()]
    return [*defect_notes(run), *not_decoded, *lost_documents(run)]


def repair_note(run: RunResult) -> str:
    """What keys and values of skipped layers change: measured where a policy was decoded, else not known."""
    found = []
    for decoded in run.decoding:
        policy = decoded.chosen
        if policy is None or policy.free_running is None or policy.forecast is None:
            continue
        replayed = policy.forecast.predicted_agreement
        if replayed is not None:
            found.append(
                f"on {decoded.workload} ({policy.kv}) {percent(replayed)} replayed and "
                f"{percent(policy.free_running.agreement.value)} of the text that the policy generated"
            )
    return f"{REPAIR_NOTE} Of the policies decoded agreement is {listed(found)}." if found else REPAIR_NOTE


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
    notes += lost_documents(run)
    for workload in run.workloads:
        notes += [f"{workload.name}: {note}" for note in workload.notes if note not in common]
    return notes


def lost_documents(run: RunResult) -> list[str]:
    """The documents that are no part of any figure, each with its reason."""
    return [
        f"{workload.name}: document {document.id} is left out: {document.reason or 'no reason recorded'}."
        for workload in run.workloads
        for document in workload.trace.documents
        if not document.valid
    ]


def lacking(findings: Sequence[Finding[Saving]]) -> str:
    """What kept these from a certificate, and what the floor that needs least would take."""
    short = [one.detail for one in findings if one.detail.lacks == "documents"]
    open_yet = sum(one.detail.lacks == "time" for one in findings)
    failed = len(findings) - len(short) - open_yet
    said = []
    if short:
        said.append(_too_few_documents(short))
    if open_yet:
        where = "" if open_yet == len(findings) else f"in {open_yet:,} "
        said.append(f"{where}the time to decode in was used up before a test was settled")
    if failed:
        where = "elsewhere " if said else ""
        said.append(f"{where}every faster policy failed the test of its floor")
    return "; ".join(said)


def _too_few_documents(short: Sequence[Saving]) -> str:
    """What was at hand to certify on, and what the floor that needs least would take."""
    easiest = min(short, key=lambda saving: (saving.documents_needed, saving.documents_in_all))
    said = f"{counted(easiest.documents, 'document')}{easiest.of_tokens} to certify on, "
    said += f"{easiest.documents_needed:,} needed"
    if easiest.documents >= easiest.documents_needed:
        said = "no document is left to search on"
    return f"{said} for {floor_shown(easiest.floor)} (trace at least {easiest.documents_in_all:,} in all)"


def left_over(comparison: Comparison) -> list[str]:
    """How much could not be certified, or was measured but must not be believed."""
    said = []
    answers = findings_of(comparison)
    unknown = [one for one in answers if one.decision == NOT_CERTIFIABLE]
    if unknown:
        verb = "is" if len(unknown) == 1 else "are"
        said.append(
            f"{len(unknown):,} of {counted(len(answers), 'answer')} (a cell at a floor) {verb} not "
            f"certifiable: {lacking(unknown)}."
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


def combined_with_defects(comparison: Comparison) -> int:
    """Measurements of accelerations together with something wrong."""
    return sum(bool(one["defects"]) for one in comparison.combined)
