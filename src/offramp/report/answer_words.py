"""What a run found, in sentences: the answer by its decision, what it rests on, what to bear in mind.

Those of a comparison: `offramp.report.comparison_page`; those of a certificate stand beside its table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from offramp.defaults import BYTES, LOCAL
from offramp.policies.figures import PLAIN_DECODING
from offramp.report.findings import Finding, main_findings, main_verdicts, run_decision
from offramp.report.formats import (
    counted,
    decimal,
    estimate_text,
    faster,
    gain_text,
    interval_text,
    listed,
    percent,
    timed_text,
    times,
    whole_percent,
)
from offramp.report.run_result import RunResult, WorkloadResult
from offramp.scoring.documents import lengths_of, lengths_text
from offramp.scoring.estimate import DOCUMENTS_NEEDED, Estimate
from offramp.scoring.text_quality import Measure, TextQuality
from offramp.tuning.ranking import MachineAnswer, RankedPolicy, ReplayedCredit, replayed_credit
from offramp.tuning.verdict import Decision, Lack, Speed, Verdict, from_main
from offramp.tuning.verdict_words import CUT, baseline_words, ceiling_words, kept_words, without_words
from offramp.workloads.packing import SHORTEST_CAP


@dataclass(frozen=True)
class Words:
    """How a decision is said."""

    answer: str
    """Of all texts: to go before "for smollm2 on prose at 95 % agreement"."""
    on: str
    """Of some texts among others: to go between "early exit" and their names."""
    short: str
    """Of a machine among others."""


WORDS: Mapping[Decision, Words] = {
    "pays": Words("Early exit pays", "pays on", "yes"),
    "does not pay": Words("Early exit does not pay", "does not pay on", "no"),
    "inconclusive": Words("It is inconclusive whether early exit pays", "is inconclusive on", "inconclusive"),
}

LACKS: Mapping[Lack, str] = {
    "interval": "the interval holds the minimum gain",
    "time": "it needs more time",
    "data": "it needs more documents",
}
"""Why an answer is inconclusive."""

NOT_EARLY = 0.03
"""Share of the time that leaving layers out saves, below which a gain is called the shortlist's."""


MOST_NUMBERS = 2
"""Texts whose numbers have room in one sentence."""


# The answer.


def headline(run: RunResult) -> str:
    """The verdict at batch size 1 in one sentence: what was executed first, then the speed."""
    if run_decision(run) == "depends on the text":
        return mixed_sentence(run.model_name, main_findings(run), figures=True)
    answer, grounds = short_answer(run), grounds_of(run)
    return f"{answer} {grounds[:1].upper()}{grounds[1:]}" if grounds else answer


def short_answer(run: RunResult) -> str:
    """The number and the decision, in a sentence that can be read at a glance."""
    findings, decision = main_findings(run), run_decision(run)
    if decision == "depends on the text":
        return mixed_sentence(run.model_name, findings, figures=False)
    if not findings:
        return f"There is no verdict for {run.model_name}{'' if run.progress is None else ' yet'}."
    texts = listed([finding.workload for finding in findings])
    where = f"on {texts} at {whole_percent(findings[0].detail.floor)} agreement"
    # The weakest text's number where it pays, else the strongest's, so that the sentence holds for all.
    which = min if decision == "pays" else max
    verdict = which((finding.detail for finding in findings), key=_reached)
    claim, label = speed_claim(verdict), label_of(verdict)
    if claim is None:
        return f"{WORDS[verdict.decision].answer} for {run.model_name} {where}."
    subject = "Early exit" if is_early(verdict) else "A shortlist, not early exit,"
    return f"{subject} makes {run.model_name} {claim} {where}: {label}."


def label_of(verdict: Verdict) -> str:
    """ "pays", "does not pay", or "inconclusive, it needs more documents"."""
    return verdict.decision if verdict.lack is None else f"{verdict.decision}, {LACKS[verdict.lack]}"


def is_early(verdict: Verdict) -> bool:
    """Whether what a policy gains is early exit's, and not a shortlist's alone."""
    return verdict.gain is None or verdict.gain.layers >= NOT_EARLY or verdict.gain.head <= 0.0


def _over_baseline(verdict: Verdict) -> Estimate:
    """Speed over the best baseline as far as it is known, else over plain decoding."""
    credit, speed = verdict.credit, verdict.speed
    if credit is not None and credit.value is not None:
        return credit
    return verdict.net_speedup if speed is None else Estimate(speed.value, speed.low, speed.high)


def _reached(verdict: Verdict) -> float:
    """What a verdict says at best: the upper limit where there is one."""
    known = _over_baseline(verdict)
    if verdict.decision == "pays" or known.high is None:
        return known.value or 0.0
    return known.high


def speed_claim(verdict: Verdict) -> str | None:
    """ "at most 1.070 × as fast": the number that a verdict rests on; None without any."""
    known, worth_it = _over_baseline(verdict), 1.0 + verdict.worth
    if verdict.hopeless is not None:
        return f"at most {times(verdict.hopeless.ceiling)} as fast"
    if verdict.decision == "pays":
        return None if known.value is None else f"{times(known.value)} as fast as the best baseline"
    if verdict.decision == "does not pay" and (known.high is None or known.high >= worth_it):
        return f"less than {times(worth_it)} as fast"  # nothing that could gain more keeps the floor
    if known.value is None:
        return None
    if known.high is not None:
        return f"at most {times(known.high)} as fast"
    how = "predicted" if verdict.speed is None else verdict.speed.how
    return f"about {times(known.value)} as fast ({how})"


def mixed_sentence(model: str, findings: Sequence[Finding[Verdict]], *, figures: bool) -> str:
    """One sentence for workloads that differ, with or without each one's figures."""
    parts, numbers = [], len(findings) <= MOST_NUMBERS
    for decision, words in WORDS.items():
        texts = [
            f"{finding.workload} ({short_figures(finding.detail)})"
            if figures
            else _in_short(finding, numbers)
            for finding in findings
            if finding.decision == decision
        ]
        if texts:
            parts.append(f"{words.on} {listed(texts)}")
    return f"For {model} at {whole_percent(findings[0].detail.floor)} agreement, early exit {listed(parts)}."


def _in_short(finding: Finding[Verdict], numbers: bool) -> str:
    """A text, with its number if there is room for numbers: "prose (at most 1.070 ×)"."""
    claim = speed_claim(finding.detail) if numbers else None
    return finding.workload if claim is None else f"{finding.workload} ({claim.partition(' as fast')[0]})"


def grounds_of(run: RunResult) -> str:
    """What the short answer rests on: the figures, a sentence without a capital; "" if there are none yet."""
    findings = main_findings(run)
    match run_decision(run):
        case "undefined":
            return "no policy could be judged on these workloads." if run.progress is None else ""
        case "depends on the text":
            said = (f"{finding.workload}: {short_figures(finding.detail)}" for finding in findings)
            return f"{'; '.join(said)}."
        case "does not pay":
            return f"{_refusal(findings)}."
        case "pays":
            # The weakest text's figures, so that the sentence holds for all.
            weakest = min(findings, key=lambda finding: finding.speedup)
            even = f"even on {weakest.workload}, the weakest of them, " if len(findings) > 1 else ""
            return f"it {even}{_figures(weakest.detail)}."
        case _:
            return f"{_doubt(findings)}."


def _refusal(findings: Sequence[Finding[Verdict]]) -> str:
    """Why it does not pay: what was tried on the best text, or that nothing was worth a try."""
    first = _best(findings)
    verdict = first.detail
    if verdict.tried is not None and verdict.tried.executed is not None:
        # What was refused for its agreement says so; its speed decides nothing.
        where = f", on {first.workload}," if len(findings) > 1 else ""
        cautious = "the most cautious policy that could gain enough"
        which = cautious if verdict.standing == "refuted" else "what was tried"
        return f"{which}{where} {_figures(verdict)}"
    if verdict.speed is not None:
        return f"{_which(first, findings)} {_figures(verdict)}"
    if verdict.hopeless is not None:
        return ceiling_words(verdict.hopeless)
    if all(finding.detail.standing in ("nothing could pay", "nothing faster") for finding in findings):
        searched, over = "that was searched", f" over {_baseline(findings)}"
    else:
        searched, over = "replayed on the measurement,", "; nothing was decoded"
    policy = "no policy" if searched.startswith("that") else "no policy,"
    return f"{policy} {searched} is predicted to gain {percent(verdict.worth, 0)}{over}"


def _baseline(findings: Sequence[Finding[Verdict]]) -> str:
    """The best decoder without exits, with what it gains, where all texts have the same."""
    details = [finding.detail for finding in findings]
    speeds = [detail.without_speed for detail in details if detail.without_speed is not None]
    if len(speeds) < len(details) or len({detail.without for detail in details}) > 1:
        return "the best decoder without exits"
    return f"{without_words(details[0].without)}, {baseline_words(min(speeds))}"


def _doubt(findings: Sequence[Finding[Verdict]]) -> str:
    """What keeps the answer open, and what would settle it."""
    first = _best(findings)
    verdict = first.detail
    said = f"{_which(first, findings)} {_figures(verdict)}" if verdict.speed else "nothing was decoded"
    return said + (f"; {missing_words(verdict)}" if verdict.missing else "")


def _best(findings: Sequence[Finding[Verdict]]) -> Finding[Verdict]:
    """The text with the largest speed: of a certified policy where there is one, else of a tried one."""
    return max(findings, key=lambda finding: (finding.certified == "executed", finding.speedup))


def _which(first: Finding[Verdict], findings: Sequence[Finding[Verdict]]) -> str:
    """The best text's policy, before what it does."""
    return f"the best, on {first.workload}," if len(findings) > 1 else "the best policy"


# Figures of a verdict.


def _figures(verdict: Verdict) -> str:
    """What is kept as executed, the speed against the worth, and where it comes from."""
    return f"{kept_words(verdict)}, {speed_words(verdict)}{_worth_words(verdict)}{_saved_words(verdict)}"


def short_figures(verdict: Verdict) -> str:
    """One text's figures in a few words."""
    if verdict.speed is not None:  # what is missing stands among the notes
        return f"{kept_words(verdict)}, {speed_words(verdict)}"
    if verdict.hopeless is not None:
        return f"a request could become at most {times(verdict.hopeless.ceiling)} as fast"
    if verdict.decision == "does not pay":
        return "nothing that could gain enough keeps the floor"
    return missing_words(verdict) if verdict.missing else "nothing was decoded"


def missing_words(verdict: Verdict) -> str:
    """What would settle a verdict: "missing: a timing of this policy"."""
    return f"missing: {'; '.join(verdict.missing)}"


def speed_words(verdict: Verdict) -> str:
    """ "measured 1.081 × (1.061 to 1.099)" or "predicted ..."; what is missing where there is none."""
    speed = verdict.speed
    if speed is None:
        return "without a speed"
    said, decoding = f"{how_words(speed)} {timed_text(speed, times)}", verdict.decoding
    alone = "" if decoding is None else f" for a whole request ({timed_text(decoding, times)} in decoding)"
    return f"{said}{alone}"


def how_words(speed: Speed) -> str:
    """How a speed is known."""
    if speed.how == "measured":
        return "measured"
    return f"predicted for {machine_name(speed.machine)}"


def _worth_words(verdict: Verdict) -> str:
    """The gain that counts as paying: "; a gain counts from 5 % on (--worth)"."""
    if verdict.speed is None:
        return ""
    return f"; a gain counts from {percent(verdict.worth, 0 if verdict.worth >= 0.01 else 1)} on (--worth)"


def _saved_words(verdict: Verdict) -> str:
    """Where the gain comes from, and what exits add to the best decoder without them."""
    parts = gain_text(verdict.gain)
    said = f"; saves of plain decoding, by price: {parts}" if parts else ""
    said += "" if is_early(verdict) else ", so that the gain is the shortlist's, not early exit's"
    credit, speed = verdict.credit, verdict.speed
    same = speed is None or credit is None or credit.value is None or credit.value == speed.value
    if same or credit is None or credit.value is None or speed is None:
        return said
    shown = timed_text(credit, times)
    return f"{said}; {how_words(speed)} {shown} over {without_words(verdict.without)}"


def reference_line(reference: Estimate | None) -> str:
    """Agreement with the untransformed model, to stand below an agreement; "" without transforms."""
    if reference is None:
        return ""
    if reference.value is None:
        return "untransformed: undefined"
    return f"untransformed: {estimate_text(reference, percent)}"


MEASURED: Mapping[Measure, str] = {"word error rate": "words wrong", "exact match": "answers exactly right"}
"""What answers are judged by, as it stands in a sentence."""


def quality_short(quality: TextQuality | None) -> str:
    """ "words wrong: 17.3 → 23.8 %", to stand below an agreement; "" where nothing is known of the texts."""
    if quality is None:
        return ""
    what, full, policy = MEASURED[quality.measure], quality.full.value, quality.policy.value
    if full is None or policy is None:
        return f"{what}: not counted"
    return f"{what}: {decimal(100 * full, 1)} → {percent(policy)}"


def quality_words(quality: TextQuality) -> str:
    """How good the texts are: "words wrong: 17.3 % full model, 23.8 % with exits: +6.5 points (2.1 to 10.9)
    on 60 documents, in lower case without punctuation; none of the answers ran into the limit ..."."""
    what, difference = MEASURED[quality.measure], quality.difference
    full, policy, points = quality.full.value, quality.policy.value, difference.value
    if full is None or policy is None or points is None:
        return f"{what}: not counted, {quality.full.undefined}"

    def in_points(share: float) -> str:
        return decimal(100 * share, 1)

    limits = interval_text(difference.low, difference.high, in_points)
    said = f"{what}: {percent(full)} full model, {percent(policy)} with exits: "
    said += f"{'+' if round(100 * points, 1) > 0 else ''}{in_points(points)} points"
    said += f" ({limits}) on " if limits else " on "
    said += counted(quality.documents, "document")
    said += "" if limits else f" (no interval: {DOCUMENTS_NEEDED} are needed)"
    said += "" if quality.normaliser is None else f", {quality.normaliser}"
    if quality.full_cut or quality.policy_cut:
        cut = f"{quality.full_cut:,} and {quality.policy_cut:,} of the answers"
    else:
        cut = "none of the answers"
    return f"{said}; {cut} ran into the limit of {counted(quality.new_tokens, 'token')}"


def quality_lines(run: RunResult) -> list[str]:
    """`quality_words` of each text's verdicts, floors together that are about the same answers."""
    floors: dict[tuple[str, TextQuality], list[str]] = {}
    for workload in run.workloads:
        for verdict in workload.verdicts:
            if verdict.text_quality is not None:
                key = (workload.name, verdict.text_quality)
                floors.setdefault(key, []).append(whole_percent(verdict.floor))
    several = len({name for name, _ in floors}) > 1
    return [
        f"{f'{name}, at' if several else 'At'} {listed(same)}: {quality_words(quality)}."
        for (name, quality), same in floors.items()
    ]


# Machines, and what speeds rest on.


def machine_name(name: str) -> str:
    """A machine as it stands in a sentence."""
    return "this machine" if name == LOCAL else name


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
        f"on {machine_name(machine)} {batch_words(of_machine)}" for machine, of_machine in by_machine.items()
    )


def batch_words(answers: Sequence[MachineAnswer]) -> str:
    """The decisions of one machine by batch size; one word if they are all the same."""
    by_decision: dict[Decision, list[str]] = {}
    for answer in answers:
        by_decision.setdefault(answer.decision, []).append(str(answer.batch))
    if len(by_decision) == 1:
        return WORDS[answers[0].decision].short
    return ", ".join(
        f"{WORDS[decision].short} at batch {listed(batches)}" for decision, batches in by_decision.items()
    )


def bases(run: RunResult) -> list[str]:
    """What the run's verdicts rest on, each once."""
    return list(dict.fromkeys(verdict.basis for workload in run.workloads for verdict in workload.verdicts))


def basis_words(basis: str) -> str:
    """What a speed is predicted from, to follow "predicted from"."""
    if basis == BYTES:
        return "the bytes each token moves through memory"
    if basis == LOCAL:
        return "the times of layers, probes and head measured on this machine"
    return f"the times of layers, probes and head that the profile of {basis} gives"


def plain_seconds(run: RunResult, workload: WorkloadResult, basis: str) -> float | None:
    """Seconds per token of plain decoding, at batch size 1, that a speed refers to; None if unknown.

    Of the basis machine's own profile where that is known, so that prediction and reference have the same
    source; else the stopwatch's, which holds for this machine only.
    """
    if basis != BYTES:
        if run.hardware is not None and run.hardware.name == basis:
            return run.hardware.plain_seconds_per_token
        known = [a.plain_seconds_per_token for a in workload.machines if (a.machine, a.batch) == (basis, 1)]
        known += [t.plain_seconds_per_token for t in workload.tuned if (t.machine, t.batch) == (basis, 1)]
        if known:
            return known[0]
    measured = run.plain_seconds_per_token
    return measured.value if measured is not None and basis in (BYTES, LOCAL) else None


def credits_of(families: Sequence[RankedPolicy]) -> list[ReplayedCredit]:
    """What replay credits early exit with at each floor, the strictest first; none without ranks."""
    if all(entry.rank is None for entry in families):
        return []
    floors = sorted({entry.floor for entry in families}, reverse=True)
    return [replayed_credit(families, floor) for floor in floors]


def credit_sentence(credit: ReplayedCredit) -> str:
    """One floor in a sentence or two."""
    if credit.ratio is None or credit.speedup is None:
        return (
            f"No early exit holds {whole_percent(credit.floor)} agreement in replay on the documents that "
            "judge."
        )
    if credit.without == PLAIN_DECODING:
        return (
            "In replay nothing that leaves no layer out is faster than plain decoding, so that all that the "
            f"best early exit would gain is its own: {faster(credit.speedup)}."
        )
    return (
        f"In replay, without any early exit, {CUT} is {faster(credit.without_speedup)}. The best early exit, "
        f"{faster(credit.speedup)} than plain decoding, would be credited with what it adds to that: "
        f"{faster(credit.ratio)}."
    )


# What to bear in mind.


def caveats(run: RunResult) -> list[str]:
    """What a reader must know before quoting the headline; first, how the figures were obtained."""
    cost = transform_sentence(run)
    return [
        *how_obtained(run),
        *([] if cost is None else [cost]),
        *verdict_caveats(run),
        *trace_caveats(run),
        *other_texts_notes(run),
    ]


def other_texts_notes(run: RunResult) -> list[str]:
    """Which answers lie in the folder beside those that are shown, and what shows all; none without any."""
    if not run.other_texts:
        return []
    said = f"The folder also has what earlier runs found on {listed(list(run.other_texts))}, not shown here"
    return [f"{said}." if run.all_texts is None else f"{said}; all texts together: {run.all_texts}"]


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
    exits = any(verdict.policy != PLAIN_DECODING or verdict.tried is not None for verdict in shown)
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
    """What went wrong in a run, which a reader of the answer has to know: no timing, defects, what was left
    out."""
    not_decoded = [f"{name} was not decoded: {why}." for name, why in run.not_decoded.items()]
    why = run.provenance.get("machine_not_timed") if BYTES in bases(run) else None
    in_bytes = [f"This machine was not timed, so speeds are in bytes moved: {why}."] if why else []
    return [*in_bytes, *defect_notes(run), *not_decoded, *lost_documents(run)]


def repair_note(run: RunResult) -> str:
    """What keys and values of skipped layers change: measured where a policy was decoded, else not known."""
    shares = []
    for decoded in run.decoding:
        policy = decoded.main
        if policy is None or policy.free_running is None or policy.forecast is None:
            continue
        replayed = policy.forecast.predicted_agreement
        if replayed is not None:
            shares.append(
                f"on {decoded.workload} ({policy.kv}) {percent(replayed)} replayed and "
                f"{percent(policy.free_running.agreement.value)} of the text that the policy generated"
            )
    return f"{REPAIR_NOTE} Of the policies decoded agreement is {listed(shares)}." if shares else REPAIR_NOTE


def verdict_caveats(run: RunResult) -> list[str]:
    """Few documents, and what would settle an open verdict."""
    notes = []
    traces = {workload.name: workload.trace for workload in run.workloads}
    for name, verdict in main_verdicts(run):
        if verdict.missing:
            notes.append(f"On {name} the verdict is open; {missing_words(verdict)}.")
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
        [note for note in several[0].notes if all(note in result.notes for result in several)]
        if several
        else []
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


def transform_sentence(run: RunResult) -> str | None:
    """What the transforms of the model cost before any early exit; None for a model without transforms."""
    costs = [cost for workload in run.workloads if (cost := transform_cost(workload)) is not None]
    if not costs:
        return None
    return (
        "What the transform itself costs: the full model, as transformed, says what the untransformed one "
        f"says on {listed(costs)}. Agreement is with the transformed full model wherever “untransformed” is "
        "not said."
    )


def transform_cost(workload: WorkloadResult) -> str | None:
    """Agreement of the transformed full model with the untransformed one on one workload."""
    kept = workload.card.reference_agreement
    if kept is None or kept.value is None:
        return None
    limits = interval_text(kept.low, kept.high, percent)
    why = f"95 % interval {limits}" if limits else f"no interval: {kept.no_interval}"
    return f"{percent(kept.value)} of the tokens of {workload.name} ({why})"
