"""`summary.json`: the whole run as numbers, by records that its schema is made of, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar

import numpy as np

from offramp.decoding.measurement.results import (
    Answer,
    Contender,
    Counted,
    FreeRunning,
    PartError,
    Stopped,
)
from offramp.kit.defaults import WORTH
from offramp.kit.typed import finite_json
from offramp.policies.cost_breakdown import Gain
from offramp.policies.frontier import Frontier
from offramp.report.caveats import caveats, how_obtained
from offramp.report.combined import advice
from offramp.report.findings import OverallDecision, run_decision
from offramp.report.headline import headline
from offramp.report.run_result import Decoded, DecodedPolicy, RunResult, Timing, WorkloadResult
from offramp.report.timing import error_sentence, prediction_verdict
from offramp.report.training import bought
from offramp.report.verdict_rows import policy_of
from offramp.report.verdict_words import basis_words, credits_of, plain_seconds
from offramp.scoring.estimate import Estimate
from offramp.scoring.readings import Readings
from offramp.tuning.break_even import BreakEven
from offramp.tuning.certificate import Candidate, Certificate
from offramp.tuning.floor import FloorKind
from offramp.tuning.ranking import MachineAnswer, RankedPolicy, ReplayedCredit
from offramp.tuning.tuned import FrontPoint, Tuned
from offramp.tuning.verdict import NEVER, Decision, Speed, Verdict
from offramp.workloads.workload import Mode

SCHEMA_VERSION = 9
BATCH_SIZE = 1
FRONTIER_POINTS = 200
FRONT_POINTS = 100
T = TypeVar("T")
Numbers = tuple[float, ...]


@dataclass(frozen=True)
class VerdictRecord:
    """One verdict at one floor: what was executed and timed, and what was replayed beside it."""

    workload: str
    floor: float
    decision: Decision
    reason: str
    missing: tuple[str, ...]
    policy: str
    kv: str | None
    certified: bool
    certificate: Certificate | None
    executed_agreement: Estimate | None
    speed: Speed | None
    replayed_policy: str
    basis: str
    agreement: Estimate
    skip_ratio: Estimate
    net_speedup: Estimate
    net_speedup_flops: Estimate
    reference_agreement: Estimate | None
    fit_agreement: float
    fit_documents: int
    report_documents: int
    documents_needed: int
    gain: Gain | None
    without: str
    credit: Estimate | None
    tried: Candidate | None


@dataclass(frozen=True)
class AnswerRecord:
    """The answer of the run. worth: the gain in speed below which early exit is not worth the trouble."""

    headline: str
    decision: OverallDecision
    batch_size: int
    worth: float
    by_workload: tuple[VerdictRecord, ...]
    caveats: tuple[str, ...]


@dataclass(frozen=True)
class LimitsRecord:
    """The interval of a curve."""

    low: Numbers
    high: Numbers


@dataclass(frozen=True)
class CurvesRecord:
    """Curves over the exits."""

    exits: tuple[int, ...]
    depth_fraction: Numbers
    values: Mapping[str, Numbers]
    intervals: Mapping[str, LimitsRecord]


@dataclass(frozen=True)
class ReliabilityRecord:
    """Confidence against agreement in bins."""

    exit: int
    edges: Numbers
    count: tuple[int, ...]
    confidence: Numbers
    agreement: Numbers


@dataclass(frozen=True)
class EasRecord:
    """A variant of the Early-exit Adaptability Score."""

    similarity: str
    alpha: float
    score: Estimate
    ceiling: float | None
    floor: float | None


@dataclass(frozen=True)
class ScoresRecord:
    """The score card of one workload, as `ScoreCard.to_json` gives it."""

    workload: str
    representation: Estimate
    increment: Estimate
    calibration: Estimate
    literal_calibration: Estimate
    composite: Estimate
    initial_information: Estimate
    first_match_skip: Estimate
    saturation_skip: Estimate
    time_ceiling_first_match: Estimate
    time_ceiling_saturation: Estimate
    ceiling: float
    head_share: float | None
    mean_position: float
    documents: int
    tokens: int
    reference_agreement: Estimate | None
    candidates: Mapping[str, float | None]
    curves: CurvesRecord
    reliability: tuple[ReliabilityRecord, ...]
    eas: tuple[EasRecord, ...]
    notes: tuple[str, ...]
    read_through: str
    readings: Readings | None


@dataclass(frozen=True)
class FrontierRecord:
    """One frontier; at most 200 points, evenly spaced in the order of the thresholds, both ends kept."""

    workload: str
    signal: str
    exits: tuple[int, ...]
    all_points: int
    threshold: Numbers
    agreement: Numbers
    skip_ratio: Numbers
    speedup: Numbers
    speedup_without_probes: Numbers


@dataclass(frozen=True)
class PredictedRecord:
    """What is predicted and measured of the policy of one verdict, the tried one included; "never" exits not.

    In seconds where plain decoding's are known. Where the policy was timed, plain is that measurement's.
    """

    workload: str
    floor: float
    policy: str
    basis: str
    predicted_speedup: Estimate
    plain_seconds_per_token: float | None
    predicted_seconds_per_token: float | None
    measured_seconds_per_token: float | None


@dataclass(frozen=True)
class FloorRecord:
    """A floor of the tuner."""

    kind: FloorKind
    value: float
    clip: float | None
    risk: float


@dataclass(frozen=True)
class TunedRecord:
    """The tuner's answer at one floor; its check documents and shift data stay in the policy's own file."""

    workload: str
    floor: FloorRecord
    policy: str
    answer: str
    machine: str
    batch: int
    kv: str
    plain_seconds_per_token: float
    probe_share: float | None
    quality: Estimate
    skip_ratio: Estimate
    net_speedup: Estimate
    seconds_per_token: Estimate
    reference_agreement: Estimate | None
    executed_agreement: Estimate | None
    candidates: tuple[Candidate, ...]
    gain: Gain | None
    certificate: Certificate
    documents: Mapping[str, int]
    front: tuple[FrontPoint, ...]


@dataclass(frozen=True)
class HardwareRecord:
    """The machine that speed is predicted for, as `offramp.report.run_result.price_list` makes it."""

    name: str
    source: str
    layer_seconds: float
    head_seconds: float
    probe_seconds: Mapping[str, float]
    overhead_seconds: float
    plain_seconds_per_token: float


@dataclass(frozen=True)
class ClassifierRecord:
    """How well a classifier does on documents that fitting did not see."""

    exits: int
    better_than_chance: int
    auroc: float | None


@dataclass(frozen=True)
class HeadsRecord:
    """What was fitted on documents of its own, or imported."""

    documents: int
    exits: int
    lens: bool
    lens_explained: float | None
    classifiers: Mapping[str, ClassifierRecord]


@dataclass(frozen=True)
class MeasuredRecord:
    """What the stopwatch said; further timings by name."""

    plain_seconds_per_token: Timing | None
    measured_seconds_per_token: Timing | None
    note: str


@dataclass(frozen=True)
class ErrorRecord:
    """Where a prediction was wrong, in seconds per token."""

    priced_seconds_per_token: float
    predicted_seconds_by_profile: float | None
    priced_seconds_by_profile: float | None
    predicted_plain_seconds_per_token: float
    never_exit_seconds_per_token: float
    predicted_change: float | None
    measured_change: float
    cost_model_error: float
    trace_error: float | None
    parts: tuple[PartError, ...]
    worst_part: str | None
    sentence: str
    predicted_skip: float | None
    measured_skip: float
    predicted_agreement: float | None
    measured_agreement: float | None


@dataclass(frozen=True)
class DecodedPolicyRecord:
    """One policy: predicted beside measured, where the error comes from, and the quality of its own text."""

    policy: str
    kv: str
    why: str
    floor: float | None
    contender: str
    answer: Answer
    resolution: float | None
    executed_agreement: Estimate[float] | None
    gain: Mapping[str, float] | None
    counted: Counted | None
    left_out: str | None
    predicted_seconds_per_token: float | None
    measured_seconds_per_token: float | None
    plain_seconds_per_token: float | None
    measured_interval: Estimate[float] | None
    net_speedup: Estimate[float] | None
    free_running: FreeRunning | None
    error: ErrorRecord | None


@dataclass(frozen=True)
class MeasurementRecord:
    """One workload: what it answers, every contender with its raw samples, every policy's forecast."""

    workload: str
    measured_on: str
    answer: Answer
    resolution: float | None
    worth: float
    defects: tuple[str, ...]
    stopped: Stopped
    seconds_spent: float
    plain: str
    a_a: Estimate[float]
    prompts: int
    rounds: int
    new_tokens: int
    batch: int
    batching: str
    policies: tuple[DecodedPolicyRecord, ...]
    contenders: tuple[Contender, ...]
    prediction_counts: Mapping[str, Any] | None
    circumstances: Mapping[str, Any]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class DecodingRecord:
    """What was decoded for real, and by workload why it was not."""

    workloads: tuple[MeasurementRecord, ...]
    not_decoded: Mapping[str, str]


@dataclass(frozen=True)
class CombinationRecord:
    """A combination of accelerations, as far as every reader may count on it."""

    name: str
    parts: tuple[str, ...]
    contender: Contender
    product: Estimate[float] | None
    interaction: Estimate[float] | None
    quality: Mapping[str, Any] | None


@dataclass(frozen=True)
class CombinedRecord:
    """Accelerations alone and together, where `offramp bench --combine` wrote into the run's folder."""

    advice: str
    defects: tuple[str, ...]
    stopped: Stopped
    plain: str
    a_a: Estimate[float]
    combinations: tuple[CombinationRecord, ...]
    circumstances: Mapping[str, Any]


@dataclass(frozen=True)
class InvalidDocumentRecord:
    """A document that was left out."""

    id: str
    reason: str | None


@dataclass(frozen=True)
class WorkloadRecord:
    """Where one workload's numbers lie and what they cost."""

    name: str
    mode: Mode
    documents: int
    tokens: int
    trace_folder: str
    seconds: float
    invalid_documents: tuple[InvalidDocumentRecord, ...]


@dataclass(frozen=True)
class ProvenanceRecord:
    """Where the numbers come from; further entries by name."""

    model: str
    layers: int
    command: str
    workloads: tuple[WorkloadRecord, ...]


@dataclass(frozen=True)
class Summary:
    """One run of `offramp run`: whether early exit would pay, and every figure behind the answer.

    Figures that are not finite are null. sha256: of everything else in the file, as canonical JSON.
    """

    schema_version: Literal[9]
    verdict: AnswerRecord
    scores: tuple[ScoresRecord, ...]
    frontier: tuple[FrontierRecord, ...]
    predicted: tuple[PredictedRecord, ...]
    league: tuple[RankedPolicy, ...]
    credit: tuple[ReplayedCredit, ...]
    tuned: tuple[TunedRecord, ...]
    machines: tuple[MachineAnswer, ...]
    break_even: tuple[BreakEven, ...]
    hardware: HardwareRecord | None
    heads: HeadsRecord | None
    measured: MeasuredRecord
    decoding: DecodingRecord
    provenance: ProvenanceRecord
    combined: CombinedRecord
    sha256: str


OF_A_WORKLOAD = ("RankedPolicy", "ReplayedCredit", "MachineAnswer", "BreakEven")
"""Records of other packages, before each of which a workload's name stands here."""

OPEN = (
    "HardwareRecord",
    "HeadsRecord",
    "MeasuredRecord",
    "CombinedRecord",
    "CombinationRecord",
    "ProvenanceRecord",
)
"""Records that may hold more than their fields."""

LEFT_OUT = {"Summary": ("combined", "sha256")}
"""Fields that need not be there."""

BOUNDS: Mapping[str, Mapping[str, Any]] = {
    name: bounds
    for names, bounds in (
        ("floor head_share probe_share auroc same_output delta", {"minimum": 0, "maximum": 1}),
        ("threads batch prompts rounds new_tokens exit rank", {"minimum": 1}),
        ("target worth", {"exclusiveMinimum": 0}),
        ("seconds_per_token plain_seconds_per_token probe_seconds layer_seconds", {"minimum": 0}),
        ("head_seconds overhead_seconds now seconds_spent without_speedup", {"minimum": 0}),
        ("headline policy workload command advice name", {"minLength": 1}),
        ("contenders", {"minItems": 1}),
        ("sha256", {"pattern": "^[0-9a-f]{64}$"}),
    )
    for name in names.split()
}
"""What a value of a name may be, wherever it stands; a number that is named here is never null by itself."""


def summary_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of `summary.json`, made of the records."""
    from pydantic import TypeAdapter

    made = TypeAdapter(Summary).json_schema()
    definitions: dict[str, Any] = made.pop("$defs")
    for name, record in {**definitions, "Summary": made}.items():
        if "properties" not in record:
            continue
        if name in OF_A_WORKLOAD:
            record["properties"] = {"workload": {"type": "string"}, **record["properties"]}
        if name == "ReplayedCredit":
            record["properties"]["ratio"] = {"anyOf": [{"type": "number"}, {"type": "null"}]}
        record["required"] = [key for key in record["properties"] if key not in LEFT_OUT.get(name, ())]
        record["additionalProperties"] = name in OPEN
        record["properties"] = {key: _bounded(key, value) for key, value in record["properties"].items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:offramp:summary:{SCHEMA_VERSION}",
        **made,
        "title": "offramp summary.json",
        "$defs": definitions,
    }


def _bounded(key: str, value: Any) -> Any:
    """What a field may hold: counts from 0, figures that may not be finite, and the bounds of its name."""
    value = {name: part for name, part in value.items() if name not in ("default", "title")}
    for name in ("items", "additionalProperties"):
        if isinstance(value.get(name), dict):
            value[name] = _bounded(key if name == "additionalProperties" else "", value[name])
    if "anyOf" in value:
        return {**value, "anyOf": [_bounded(key, one) for one in value["anyOf"]]}
    bounds = BOUNDS.get(key, {})
    match value.get("type"):
        case "integer":
            return {**value, "minimum": 0, **bounds}
        case "number":
            return {**value, **bounds} if bounds else {**value, "type": ["number", "null"]}
        case "string" | "array":
            return {**value, **bounds}
    return value


def summarise(run: RunResult) -> dict[str, Any]:
    """A JSON object with every figure of the run, its seal left out; what is not a finite number is null."""
    value = {
        "schema_version": SCHEMA_VERSION,
        "verdict": AnswerRecord(
            headline=headline(run),
            decision=run_decision(run),
            batch_size=BATCH_SIZE,
            worth=next((verdict.worth for w in run.workloads for verdict in w.verdicts), WORTH),
            by_workload=tuple(record(VerdictRecord, v, workload=w.name) for w, v in _verdicts(run)),
            caveats=tuple(caveats(run)),
        ),
        "scores": [{"workload": w.name, **w.card.to_json()} for w in run.workloads],
        "frontier": [frontier_record(w.name, frontier) for w in run.workloads for frontier in w.frontiers],
        "predicted": [predicted_record(run, w, v) for w, v in _verdicts(run)],
        "league": [_named(w, entry) for w in run.workloads for entry in w.league],
        "credit": [
            _named(w, one) | {"ratio": one.ratio} for w in run.workloads for one in credits_of(w.league)
        ],
        "tuned": [tuned_record(w.name, tuned) for w in run.workloads for tuned in w.tuned],
        "machines": [_named(w, answer) for w in run.workloads for answer in w.machines],
        "break_even": [_named(w, lever) for w in run.workloads for lever in w.break_even],
        "hardware": run.hardware,
        "heads": heads_json(run),
        "measured": {
            "plain_seconds_per_token": None,
            **(run.measured or {}),
            "measured_seconds_per_token": main_timing(run),
            "note": how_obtained(run)[0],
        },
        "decoding": DecodingRecord(tuple(map(measurement_record, run.decoding)), run.not_decoded),
        **combined_json(run),
        "provenance": {
            **run.provenance,
            "model": run.model_name,
            "layers": run.layers,
            "command": run.command,
            "workloads": [workload_record(workload) for workload in run.workloads],
        },
    }
    found: dict[str, Any] = finite_json(value)
    return found


def heads_json(run: RunResult) -> dict[str, Any] | None:
    """What was fitted; where exits were trained also what that took, and what it bought."""
    if run.heads is None or run.training is None:
        return None if run.heads is None else dict(run.heads)
    paid = [asdict(one) for one in bought(run, run.training)]
    return {**run.heads, "training": {**asdict(run.training), "bought": paid}}


def combined_json(run: RunResult) -> dict[str, Any]:
    """What combined accelerations came to, under "combined"; nothing where none were timed."""
    if run.combined is None:
        return {}
    return {"combined": {"advice": advice(run.combined), **asdict(run.combined)}}


def record(kind: type[T], source: object, **given: Any) -> T:
    """A record whose fields are those given, and all others read off a source that has them."""
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: given[name] if name in given else getattr(source, name) for name in names})


def _verdicts(run: RunResult) -> list[tuple[WorkloadResult, Verdict]]:
    return [(workload, verdict) for workload in run.workloads for verdict in workload.verdicts]


def _named(
    workload: WorkloadResult, value: RankedPolicy | ReplayedCredit | MachineAnswer | BreakEven
) -> dict[str, Any]:
    """A result as it is, with its workload's name."""
    return {"workload": workload.name, **asdict(value)}


def frontier_record(workload: str, frontier: Frontier) -> FrontierRecord:
    """One frontier."""
    count = len(frontier.agreement)
    kept = np.unique(np.linspace(0, count - 1, min(count, FRONTIER_POINTS)).round().astype(np.int64))
    names = ("threshold", "agreement", "skip_ratio", "speedup", "speedup_without_probes")
    points = {name: tuple(getattr(frontier, name)[kept].tolist()) for name in names}
    return record(FrontierRecord, frontier, workload=workload, all_points=count, **points)


def predicted_record(run: RunResult, workload: WorkloadResult, verdict: Verdict) -> PredictedRecord:
    """What is predicted of the policy that a verdict's figures are of, and what the stopwatch said of it."""
    policy, kv = policy_of(verdict)
    speedup = predicted_speedup(workload, verdict)
    plain = plain_seconds(run, workload, verdict.basis)
    predicted = plain / speedup.value if plain is not None and speedup.value else None
    decoded, measured, timed = run.decoded(workload.name), None, "not timed"
    for one in () if decoded is None else decoded.policies:
        seconds = decoded.timed(one).seconds_per_token if decoded is not None else None
        if (one.policy, one.kv) == (policy, kv) and decoded is not None and seconds is not None:
            timed = "timed" if decoded.sound else "timed with a defect"
            if decoded.sound:  # all of one moment: the machine may have been faster when it was profiled
                plain, measured = decoded.plain_seconds, seconds.value
                predicted = None if one.forecast is None else one.forecast.predicted
            break
    return PredictedRecord(
        workload=workload.name,
        floor=verdict.floor,
        policy=policy,
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
    if policy == NEVER:
        return Estimate(1.0)
    if verdict.tried is not None and verdict.policy == NEVER:
        return Estimate(verdict.tried.predicted_speed)
    tuned = [one for one in workload.tuned if one.policy_text == policy and one.net_speedup.value is not None]
    return tuned[0].net_speedup if tuned else verdict.net_speedup


def tuned_record(workload: str, tuned: Tuned) -> TunedRecord:
    """The tuner's answer at one floor."""
    front = tuple(spread(tuned.front, FRONT_POINTS))
    floor = record(FloorRecord, tuned.floor)
    return record(TunedRecord, tuned, workload=workload, floor=floor, policy=tuned.policy_text, front=front)


def spread(points: Sequence[T], count: int) -> list[T]:
    """At most `count` of the points, evenly spaced in their order, both ends kept."""
    if len(points) <= count:
        return list(points)
    return [points[round(place)] for place in np.linspace(0, len(points) - 1, count)]


def main_timing(run: RunResult) -> Timing | None:
    """Time per token of the first policy that was chosen and decoded; the others stand in `decoding`."""
    for decoded in run.decoding:
        seconds = None if decoded.chosen is None else decoded.timed(decoded.chosen).seconds_per_token
        if seconds is not None:
            around = decoded.bench.circumstances
            load = around["load_average"][0]
            return Timing(seconds.value, seconds.low, seconds.high, around["threads"], load)
    return None


def measurement_record(decoded: Decoded) -> MeasurementRecord:
    """One workload's measurement."""
    verdict = prediction_verdict(decoded)
    return record(
        MeasurementRecord,
        decoded.bench,
        workload=decoded.workload,
        measured_on=decoded.measured_on,
        policies=tuple(decoded_policy_record(decoded, policy) for policy in decoded.policies),
        prediction_counts=None if verdict is None else verdict.to_json(),
    )


def decoded_policy_record(decoded: Decoded, policy: DecodedPolicy) -> DecodedPolicyRecord:
    """One decoded policy."""
    timed, forecast = decoded.timed(policy), policy.forecast
    seconds, error = timed.seconds_per_token, None
    if forecast is not None:
        worst = forecast.worst_part
        error = record(
            ErrorRecord,
            forecast,
            priced_seconds_per_token=forecast.priced,
            predicted_seconds_by_profile=forecast.predicted_by_profile,
            priced_seconds_by_profile=forecast.priced_by_profile,
            predicted_plain_seconds_per_token=forecast.plain_predicted,
            never_exit_seconds_per_token=forecast.plain_measured,
            worst_part=None if worst is None else worst.part,
            sentence=error_sentence(forecast),
        )
    names = ("policy", "kv", "why", "floor", "contender", "free_running")
    return record(
        DecodedPolicyRecord,
        timed,
        **{name: getattr(policy, name) for name in names},
        predicted_seconds_per_token=None if forecast is None else forecast.predicted,
        measured_seconds_per_token=None if seconds is None else seconds.value,
        plain_seconds_per_token=decoded.plain_seconds,
        measured_interval=seconds,
        net_speedup=timed.ratio,
        error=error,
    )


def workload_record(workload: WorkloadResult) -> WorkloadRecord:
    """Where one workload's numbers lie."""
    left_out = [one for one in workload.trace.documents if not one.valid]
    return record(
        WorkloadRecord,
        workload,
        documents=workload.card.documents,
        tokens=workload.card.tokens,
        invalid_documents=tuple(InvalidDocumentRecord(one.id, one.reason) for one in left_out),
    )
