"""`summary.json`: the whole run as numbers. It is what the run's results are, and so is its schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from annotated_types import MinLen

from offramp.defaults import WORTH
from offramp.kit.numbers import NotNegative, Whole
from offramp.kit.typed import finite_json
from offramp.policies.figures import PLAIN_DECODING
from offramp.policies.frontier import Frontier
from offramp.report.answer_words import (
    basis_words,
    caveats,
    credits_of,
    headline,
    how_obtained,
    plain_seconds,
)
from offramp.report.combined import advice
from offramp.report.curves import spread
from offramp.report.findings import OverallDecision, run_decision
from offramp.report.run_result import Decoded, HeadsSummary, PriceList, RunResult, WorkloadResult
from offramp.report.sections.first_screen import policy_of
from offramp.report.sections.training import bought
from offramp.scoring.card import ScoreCard
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import TrainedSaving
from offramp.studies.work.heads import Training
from offramp.timing.results import CombineResult, Timing
from offramp.tuning.break_even import BreakEven
from offramp.tuning.ranking import MachineAnswer, RankedPolicy, ReplayedCredit
from offramp.tuning.tuned import Tuned
from offramp.tuning.verdict import Verdict
from offramp.workloads.workload import Mode

SCHEMA_VERSION: Literal[10] = 10
BATCH_SIZE = 1
FRONTIER_POINTS = 200
FRONT_POINTS = 100
Result = TypeVar("Result")
Text = Annotated[str, MinLen(1)]


@dataclass(frozen=True)
class OfText(Generic[Result]):
    """A result, beside whose entries the name of its text stands."""

    INLINE: ClassVar[tuple[str, ...]] = ("result",)

    workload: Text
    result: Result


@dataclass(frozen=True)
class ShownFrontier:
    """A frontier of a text, of at most FRONTIER_POINTS of all its points."""

    INLINE: ClassVar[tuple[str, ...]] = ("frontier",)

    workload: Text
    all_points: Whole
    frontier: Frontier


@dataclass(frozen=True)
class Predicted:
    """What is predicted and measured of the policy of one verdict, the tried one included; "never" exits not.

    In seconds where plain decoding's are known. Where the policy was timed, plain is that measurement's.
    """

    workload: str
    floor: float
    policy: str
    basis: str
    predicted_speedup: Estimate
    plain_seconds_per_token: NotNegative | None
    predicted_seconds_per_token: float | None
    measured_seconds_per_token: float | None


@dataclass(frozen=True)
class Answer:
    """The answer of the run. worth: the gain in speed below which early exit is not worth the trouble."""

    headline: Text
    decision: OverallDecision
    batch_size: int
    worth: float
    by_workload: tuple[OfText[Verdict], ...]
    caveats: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """What the stopwatch said: of plain decoding, and of the first policy that was chosen and decoded."""

    plain_seconds_per_token: Timing | None
    measured_seconds_per_token: Timing | None
    note: str


@dataclass(frozen=True)
class PaidTraining:
    """What training the exits took, and what it gives on each text at each floor."""

    INLINE: ClassVar[tuple[str, ...]] = ("training",)

    training: Training
    bought: tuple[TrainedSaving, ...]


@dataclass(frozen=True)
class Decodings:
    """What was decoded for real, and by workload why it was not."""

    workloads: tuple[Decoded, ...]
    not_decoded: Mapping[str, str]


@dataclass(frozen=True)
class Combined:
    """Accelerations alone and together, where `offramp bench --combine` wrote into the run's folder."""

    INLINE: ClassVar[tuple[str, ...]] = ("result",)

    advice: Text
    result: CombineResult


@dataclass(frozen=True)
class InvalidDocument:
    """A document that was left out."""

    id: str
    reason: str | None


@dataclass(frozen=True)
class TracedText:
    """Where one workload's numbers lie and what they cost."""

    name: Text
    mode: Mode
    documents: Whole
    tokens: Whole
    trace_folder: str
    seconds: float
    invalid_documents: tuple[InvalidDocument, ...]


@dataclass(frozen=True)
class Provenance:
    """Where the numbers come from; further entries by name."""

    INLINE: ClassVar[tuple[str, ...]] = ("further",)

    model: str
    layers: Whole
    command: str
    workloads: tuple[TracedText, ...]
    further: Mapping[str, Any]


@dataclass(frozen=True)
class Summary:
    """One run of `offramp run`: whether early exit would pay, and every figure behind the answer.

    Figures that are not finite are null. tuned: what binds a policy to its model and texts stays in the
    policy's own file, and is empty here.
    """

    schema_version: Literal[10]
    verdict: Answer
    scores: tuple[OfText[ScoreCard], ...]
    frontier: tuple[ShownFrontier, ...]
    predicted: tuple[Predicted, ...]
    league: tuple[OfText[RankedPolicy], ...]
    credit: tuple[OfText[ReplayedCredit], ...]
    tuned: tuple[OfText[Tuned], ...]
    machines: tuple[OfText[MachineAnswer], ...]
    break_even: tuple[OfText[BreakEven], ...]
    hardware: PriceList | None
    heads: HeadsSummary | None
    training: PaidTraining | None
    measured: Measured
    decoding: Decodings
    provenance: Provenance
    combined: Combined | None


def summary_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of `summary.json`.

    sha256: of everything else in the file, as canonical JSON; a summary that lies in no file has none.
    """
    from offramp.kit.record_schema import schema_of

    schema = schema_of(Summary)
    schema["properties"]["sha256"] = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:offramp:summary:{SCHEMA_VERSION}",
        "title": "offramp summary.json",
        **schema,
    }


def summarise(run: RunResult) -> dict[str, Any]:
    """A JSON object with every figure of the run, its seal left out; what is not a finite number is null."""
    found: dict[str, Any] = finite_json(summary_of(run))
    return found


def summary_of(run: RunResult) -> Summary:
    """Every figure of a run."""
    texts, verdicts = run.workloads, [(text, verdict) for text in run.workloads for verdict in text.verdicts]
    return Summary(
        schema_version=SCHEMA_VERSION,
        verdict=Answer(
            headline=headline(run),
            decision=run_decision(run),
            batch_size=BATCH_SIZE,
            worth=next((verdict.worth for _, verdict in verdicts), WORTH),
            by_workload=tuple(OfText(text.name, verdict) for text, verdict in verdicts),
            caveats=tuple(caveats(run)),
        ),
        scores=tuple(OfText(text.name, text.card) for text in texts),
        frontier=tuple(shown_frontier(text.name, frontier) for text in texts for frontier in text.frontiers),
        predicted=tuple(predicted_of(run, text, verdict) for text, verdict in verdicts),
        league=tuple(OfText(text.name, policy) for text in texts for policy in text.league),
        credit=tuple(OfText(text.name, credit) for text in texts for credit in credits_of(text.league)),
        tuned=tuple(OfText(text.name, shown_tuned(tuned)) for text in texts for tuned in text.tuned),
        machines=tuple(OfText(text.name, answer) for text in texts for answer in text.machines),
        break_even=tuple(OfText(text.name, lever) for text in texts for lever in text.break_even),
        hardware=run.hardware,
        heads=run.heads,
        training=None
        if run.training is None
        else PaidTraining(run.training, tuple(bought(run, run.training))),
        measured=Measured(run.plain_seconds_per_token, main_timing(run), how_obtained(run)[0]),
        decoding=Decodings(run.decoding, run.not_decoded),
        provenance=Provenance(
            run.model_name, run.layers, run.command, tuple(map(traced_text, texts)), run.provenance
        ),
        combined=None if run.combined is None else Combined(advice(run.combined), run.combined),
    )


def shown_frontier(workload: str, frontier: Frontier) -> ShownFrontier:
    """One frontier, its points evenly spaced in the order of the thresholds, both ends kept."""
    count = len(frontier.agreement)
    kept = np.array(spread(range(count), FRONTIER_POINTS), dtype=np.int64)
    points: dict[str, Any] = {
        name: values[kept] for name, values in vars(frontier).items() if isinstance(values, np.ndarray)
    }
    return ShownFrontier(workload, count, replace(frontier, **points))


def shown_tuned(tuned: Tuned) -> Tuned:
    """The tuner's answer without what stays in the policy's own file."""
    return replace(
        tuned,
        front=tuple(spread(tuned.front, FRONT_POINTS)),
        shift=(),
        document_digests={},
        document_texts={},
        model={},
        workload={},
        provenance={},
    )


def predicted_of(run: RunResult, workload: WorkloadResult, verdict: Verdict) -> Predicted:
    """What is predicted of the policy that a verdict's figures are of, and what the stopwatch said of it."""
    policy, kv = policy_of(verdict)
    speedup = predicted_speedup(workload, verdict)
    plain = plain_seconds(run, workload, verdict.basis)
    predicted = plain / speedup.value if plain is not None and speedup.value else None
    decoded, measured, timed = run.decoded(workload.name), None, "not timed"
    for choice in () if decoded is None else decoded.policies:
        seconds = decoded.contender_of(choice).seconds_per_token if decoded is not None else None
        if (choice.policy, choice.kv) == (policy, kv) and decoded is not None and seconds is not None:
            timed = "timed" if decoded.sound else "timed with a defect"
            if decoded.sound:  # all of one moment: the machine may have been faster when it was profiled
                plain, measured = decoded.plain_seconds, seconds.value
                predicted = None if choice.forecast is None else choice.forecast.predicted
            break
    return Predicted(
        workload=workload.name,
        floor=verdict.floor,
        policy=str(policy),
        basis=f"predicted from {basis_words(verdict.basis)}, batch size 1; {timed}",
        predicted_speedup=speedup,
        plain_seconds_per_token=plain,
        predicted_seconds_per_token=predicted,
        measured_seconds_per_token=measured,
    )


def predicted_speedup(workload: WorkloadResult, verdict: Verdict) -> Estimate:
    """Of the verdict's own policy: 1 of the full model, the tuner's, the candidate's, or the replay's."""
    policy, _ = policy_of(verdict)
    if policy == verdict.replayed_policy and verdict.certificate is None:
        return verdict.net_speedup
    if policy == PLAIN_DECODING:
        return Estimate(1.0)
    if verdict.tried is not None and verdict.policy == PLAIN_DECODING:
        return Estimate(verdict.tried.predicted_speed)
    tuned = [
        answer
        for answer in workload.tuned
        if answer.policy == policy and answer.net_speedup.value is not None
    ]
    return tuned[0].net_speedup if tuned else verdict.net_speedup


def main_timing(run: RunResult) -> Timing | None:
    """Time per token of the first policy that was chosen and decoded; the others stand in `decoding`."""
    mains = ((decoded, decoded.main) for decoded in run.decoding)
    timings = (decoded.bench.timing(main.contender) for decoded, main in mains if main is not None)
    return next((timing for timing in timings if timing is not None), None)


def traced_text(workload: WorkloadResult) -> TracedText:
    """Where one workload's numbers lie."""
    left_out = [document for document in workload.trace.documents if not document.valid]
    return TracedText(
        name=workload.name,
        mode=workload.mode,
        documents=workload.card.documents,
        tokens=workload.card.tokens,
        trace_folder=workload.trace_folder,
        seconds=workload.seconds,
        invalid_documents=tuple(InvalidDocument(document.id, document.reason) for document in left_out),
    )
