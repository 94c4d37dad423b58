"""Timings in words, and ways to decode a text beside each other: what each keeps, and how fast it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from offramp.policies.figures import NEVER
from offramp.policies.grammar import parse_policy
from offramp.policies.policy import ExitPolicy
from offramp.policies.short_names import SHORT_HEAD, short_name
from offramp.report.formats import (
    NumberFormat,
    Timed,
    counted,
    decimal,
    duration,
    estimate_text,
    limits_of,
    listed,
    moment,
    percent,
    thousandths,
    timed_text,
    times,
    too_wide,
    whole_percent,
)
from offramp.report.run_result import Decoded, RunResult, WorkloadResult
from offramp.report.table import NOTHING, Cell
from offramp.scoring.estimate import Estimate
from offramp.studies.work.decode import DecodedChoice
from offramp.timing.prediction import PredictionVerdict
from offramp.timing.results import (
    Answer,
    BenchResult,
    CombineResult,
    Contender,
    FloorCheck,
    Forecast,
    PartError,
    Stopped,
)
from offramp.tuning.certificate import Candidate
from offramp.tuning.verdict_words import TOO_WIDE

ENDED: Mapping[Stopped, str] = {
    "answered": "every question was answered",
    "seconds": "the seconds were spent",
    "rounds": "the rounds were over",
}

DECISIONS: Mapping[Answer, str] = {
    "faster": "pays",
    "slower": "does-not-pay",
    "defect": "does-not-pay",
    "equivalent": "open",
    "unresolved": "open",
}
"""The colour that an answer has on a page, as a class of its decisions."""


def contender_answer(contender: Contender, worth: float) -> str:
    """What a timing says, with what it stands on; why there is nothing.

    "equivalent within ± 5 %", "unresolved at ± 3.4 %", "faster".
    """
    resolution = contender.resolution
    if contender.ratio is None:
        return f"not timed: {contender.left_out or 'no reason recorded'}"
    if contender.answer == "equivalent":
        return f"equivalent within ± {whole_percent(worth)}"
    if contender.answer != "unresolved":
        return contender.answer
    if resolution is None:
        return "unresolved: one prompt has no interval" if contender.clusters else "in the pilot only"
    if contender.shortage is not None:
        return contender.shortage
    if resolution >= TOO_WIDE - 1.0:
        return "unresolved: too few prompts"
    return f"unresolved at ± {percent(resolution)}"


def with_interval(timed: Timed | None, number: NumberFormat, *below: str) -> Cell:
    """A figure of a timing with its interval below it; below: further lines."""
    if timed is None or timed.value is None:
        return Cell(NOTHING)
    value = Estimate(timed.value, timed.low, timed.high)
    return Cell(number(timed.value), below=(limits_of(timed, number), *below), value=value)


def circumstances_text(result: BenchResult | CombineResult) -> str:
    """What was run, when, and how equal the plain decoder came out to itself."""
    return (
        f"Measured {moment(result.date)}: {counted(result.prompts, 'prompt')}, {result.new_tokens} "
        f"new tokens, {counted(result.rounds, 'round')}, in turns of a few tokens; "
        f"{stopped_text(result.stopped, result.seconds_spent)}. The plain decoder against itself came out at "
        f"{a_a_text(result.a_a)}."
    )


def stopped_text(stopped: Stopped, seconds: float) -> str:
    """Why nothing more was timed: "every question was answered after 61 s"."""
    return f"{ENDED[stopped]} after {decimal(seconds, 0)} s"


def a_a_text(a_a: Estimate[float]) -> str:
    """How equal the plain decoder came out to itself."""
    limits = limits_of(a_a, thousandths)
    return f"{decimal(a_a.value, 3)}{f' ({limits} at 99 %)' if limits else ''}"


def counted_text(contender: Contender, plain: Contender) -> str | None:
    """What a token runs beside what a plain one does, counted; None where nobody counted."""
    own, full = contender.counted, plain.counted
    if own is None or full is None:
        return None
    probes = f" and {decimal(own.probes, 1)} probes" if own.probes else ""
    return (
        f"{decimal(own.layers, 1)} of {decimal(full.layers, 0)} layers, {decimal(own.heads, 1)} heads"
        f"{probes}; {percent(own.flops / full.flops, 0)} of the FLOPs and "
        f"{percent(own.bytes / full.bytes, 0)} of the bytes of plain decoding"
    )


def floor_text(floor: FloorCheck, prompts: int) -> str:
    """What a policy kept of the floor that it was tuned for; a floor that is missed is named first."""
    promise = f"{'certified' if floor.certified else 'not certified'} floor {floor.floor}"
    if floor.kept is None:
        return f"the policy's {promise} was not judged here"
    share = estimate_text(floor.kept, percent)
    of = f"of the generated tokens of {counted(prompts, 'prompt')}"
    kept = f"{share} {of} are the full model's choice"
    if floor.missed:
        return f"BELOW ITS FLOOR: {kept}, under the policy's {promise}"
    return f"{kept}: the policy's {promise} is kept"


def defect_lines(result_defects: tuple[str, ...]) -> list[str]:
    """Every defect as a line of its own."""
    return [f"DEFECT: {sentence}" for sentence in result_defects]


def answer_sentence(contender: Contender, plain: str, worth: float) -> str:
    """The answer with its ratio: "X is faster: 1.120 × (1.090 to 1.150 ×) the speed of generate()"."""
    name, answer = contender.name, contender_answer(contender, worth)
    if contender.ratio is None:
        return f"{name} was {answer}"
    return f"{name} is {answer}: {timed_text(contender.ratio, times)} the speed of {plain}"


RIGHT = 0.02
"""A prediction of seconds per token within this share of the measured ones is called right."""

PART_NAMES = {
    "layers": "the layers",
    "probes": "the probes",
    "K,V repair": "the repair of keys and values",
    "heads": "the output head",
    "overhead": "the program around (overhead per token)",
}


def part_name(part: str) -> str:
    """A part of time in a sentence."""
    return PART_NAMES.get(part, part)


def error_sentence(forecast: Forecast) -> str:
    """How far the prediction was off, and because of what."""
    if forecast.predicted is None:
        return f"There was no prediction to hold against {duration(forecast.measured.value)} per token."
    error = forecast.predicted - forecast.measured.value
    share = abs(error) / forecast.measured.value
    measured = duration(forecast.measured.value)
    beside = f"{duration(forecast.predicted)} predicted, {measured} measured per token"
    if share <= RIGHT:
        return f"{beside}: right within {percent(share)}."
    way = "too high" if error > 0 else "too low"
    return f"{beside}: {percent(share)} {way}. {blame(forecast)}"


def blame(forecast: Forecast) -> str:
    """Which part of the prediction was wrong."""
    trace, worst = forecast.trace_error, forecast.worst_part
    cost = forecast.priced - forecast.measured.value
    if trace is not None and abs(trace) > abs(cost):
        predicted = "" if forecast.predicted_skip is None else percent(forecast.predicted_skip)
        skipped = percent(forecast.measured_skip)
        beside = f": {predicted} of the layers skipped on the trace, {skipped} in decoding"
        return (
            "Most of it comes from exits that were taken elsewhere than on the trace"
            f"{beside if predicted not in ('', skipped) else ''}."
        )
    if worst is None:
        return "It comes from the prices, given the exits that were taken; the parts were not timed apart."
    return f"Most of it comes from the prices: {part_sentence(worst)}."


def part_sentence(part: PartError) -> str:
    """One part priced and timed."""
    verb = "were" if part.part in ("layers", "probes") else "was"
    return (
        f"{part_name(part.part)} {verb} priced at {duration(part.priced)} per token and took "
        f"{duration(part.measured)}"
    )


def counts_sentence(verdict: PredictionVerdict) -> str:
    """By the rule that was set down before the timing."""
    beside = (
        f"over {counted(verdict.policies, 'prediction')} the change against plain decoding was off by "
        f"{duration(verdict.median_error)} per token where it was {duration(verdict.median_change)} (medians)"
    )
    if verdict.counts:
        return f"These predictions count: {beside}."
    broken = listed([check.rule for check in verdict.rule if not check.holds])
    return f"These predictions do not count: {beside}. Out of bounds: {broken}."


PLAIN, PEER = "plain", "peer"


@dataclass(frozen=True)
class KeptOfDocuments:
    """What a policy kept of texts that it generated for a certificate."""

    kept: Estimate[float]
    documents: int
    """How many texts these are."""
    certified: float | None


@dataclass(frozen=True)
class Way:
    """One way to decode a text."""

    timed: Contender | None
    """None of a policy that was decoded, and not timed."""
    decoded: DecodedChoice | Candidate | None = None
    """The policy, None of a way without one."""
    floor: float | None = None
    """That it was chosen for."""
    judged: KeptOfDocuments | None = None
    """On documents decoded for a certificate, None if on none."""

    @property
    def name(self) -> str:
        """Its short name."""
        if self.decoded is not None:
            return short_name(self.decoded.policy)
        assert self.timed is not None, "what has no policy was timed"
        return short_name(self.timed.name)

    @property
    def policy(self) -> ExitPolicy | None:
        """None of one without a policy."""
        if self.decoded is not None:
            return self.decoded.policy
        return parse_policy(self.timed.name) if self.timed is not None and self.name == SHORT_HEAD else None

    @property
    def kv(self) -> str | None:
        """Its strategy for keys and values, None of one without a policy."""
        return None if self.decoded is None else self.decoded.kv

    @property
    def on_prompts(self) -> Estimate[float] | None:
        """Share kept of its answers to the timed prompts, None if these were not judged."""
        if isinstance(self.decoded, DecodedChoice) and self.decoded.free_running is not None:
            return self.decoded.free_running.agreement
        if self.timed is None:
            return None
        return self.timed.executed_agreement or (Estimate(1.0) if self.timed.role == PLAIN else None)

    @property
    def exits(self) -> bool:
        """Whether tokens may leave early."""
        return self.policy is not None and self.name not in (SHORT_HEAD, short_name(NEVER))

    @property
    def kept(self) -> Estimate[float] | None:
        """What it keeps: of documents that were decoded for a certificate, else of the timed prompts."""
        return self.on_prompts if self.judged is None else self.judged.kept

    @property
    def speed(self) -> Estimate[float] | None:
        """Over plain decoding: measured, else predicted and without an interval."""
        if self.timed is not None:
            return self.timed.ratio
        return Estimate(self.decoded.predicted_speed) if isinstance(self.decoded, Candidate) else None

    @property
    def unsure(self) -> bool:
        """Whether its speed is a prediction, or of so few prompts that its interval says nothing."""
        speed = self.speed
        return self.timed is None or speed is None or too_wide(speed)

    @property
    def misses(self) -> bool:
        """Whether it is surely below the floor that it was chosen for, or not shown to reach it.

        The burden of proof: what is not certified must reach it with the lower end of its interval.
        """
        if self.floor is None:
            return False
        if self.judged is not None and self.judged.certified is not None:
            return self.judged.certified < self.floor
        kept = self.kept
        return kept is None or (kept.value if kept.low is None else kept.low) < self.floor


def ways_of(decoded: Decoded | None, workload: WorkloadResult | None) -> list[Way]:
    """Every way to decode that was timed or decoded, the fastest first; what misses its floor last."""
    ways = [] if decoded is None else _timed(decoded, workload)
    known = {(way.policy, way.kv) for way in ways}
    for tuned in () if workload is None else workload.tuned:
        for candidate in tuned.candidates:
            if candidate.executed is not None and (candidate.policy, candidate.kv) not in known:
                known.add((candidate.policy, candidate.kv))
                ways.append(Way(None, candidate, tuned.floor.value, judged_of(workload, candidate)))
    return sorted(ways, key=lambda way: (way.misses, -_value(way)))


def _value(way: Way) -> float:
    return 0.0 if way.speed is None else way.speed.value


def _timed(decoded: Decoded, workload: WorkloadResult | None) -> list[Way]:
    found, choices = [], {choice.contender: choice for choice in decoded.policies}
    for contender in decoded.bench.contenders:
        choice = choices.get(contender.name)
        if contender.ratio is None:
            continue
        if choice is not None:
            found.append(Way(contender, choice, choice.floor, judged_of(workload, choice)))
        elif contender.role == PEER or contender.without_exits:
            found.append(Way(contender))
    return found


def judged_of(workload: WorkloadResult | None, policy: DecodedChoice | Candidate) -> KeptOfDocuments | None:
    """What a policy kept of the documents that it decoded for a certificate, None if it decoded none."""
    if workload is None:
        return None
    same = (policy.policy, policy.kv)
    certified = [one for one in workload.verdicts if (one.policy, one.kv) == same and one.certified]
    for verdict in sorted(certified, key=lambda one: -one.floor):
        certificate, kept = verdict.certificate, verdict.kept
        if certificate is not None and kept is not None and kept.value is not None:
            documents = certificate.stopped_after or certificate.documents
            return KeptOfDocuments(Estimate(kept.value, kept.low, kept.high), documents, verdict.floor)
    candidates = [candidate for tuned in workload.tuned for candidate in tuned.candidates]
    tried = [
        KeptOfDocuments(Estimate(candidate.executed), candidate.documents, None)
        for candidate in candidates
        if (candidate.policy, candidate.kv) == same and candidate.executed is not None
    ]
    return max(tried, key=lambda judged: judged.documents, default=None)


def best_without_exits(ways: Sequence[Way], floor: float, named: str = "") -> Way | None:
    """The fastest way that was timed, runs every layer and keeps a floor, None where none was timed.

    named: the one that a verdict is decided over, where it says which.
    """
    timed = [way for way in ways if way.timed is not None and not way.exits]
    decisive = [way for way in timed if way.timed is not None and way.timed.name == named]
    keeping = [way for way in timed if not way.unsure and (way.kept is None or way.kept.value >= floor)]
    return max(decisive or keeping, key=_value, default=None)


def kept_text(way: Way) -> str:
    """What it keeps, and on what that rests: documents of a certificate and prompts of a timing are two."""
    if way.judged is not None:
        judged = way.judged
        held = "" if judged.certified is None else f", certified ≥ {whole_percent(judged.certified)}"
        return f"{estimate_text(judged.kept, percent)} of {counted(judged.documents, 'document')}{held}"
    if way.policy is None and way.kept is not None and way.kept.value == 1.0:
        return "100 %, lossless"
    return "not judged" if way.kept is None else f"{estimate_text(way.kept, percent)} of the timed prompts"


def ways_by_text(run: RunResult) -> dict[str, list[Way]]:
    """`ways_of` every text of a run that has any."""
    by_text = {workload.name: ways_of(run.decoded(workload.name), workload) for workload in run.workloads}
    by_text |= {
        decoded.workload: ways_of(decoded, None)
        for decoded in run.decoding
        if decoded.workload not in by_text
    }
    return {name: ways for name, ways in by_text.items() if ways}
