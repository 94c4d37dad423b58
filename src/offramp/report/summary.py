"""`summary.json`: the whole run as numbers, against a published schema."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib import resources
from typing import Any, TypeVar

import numpy as np

from offramp.policies.replay import Frontier
from offramp.report.caveats import caveats, how_obtained
from offramp.report.combined import advice
from offramp.report.findings import run_decision
from offramp.report.headline import headline
from offramp.report.run_result import Decoded, DecodedPolicy, RunResult, WorkloadResult
from offramp.report.timing import error_sentence, prediction_verdict
from offramp.report.verdict_words import (
    basis_words,
    credit_json,
    credits_of,
    plain_seconds,
    predicted_seconds,
)
from offramp.scoring.estimate import Estimate, finite_json, number
from offramp.tuning.break_even import BreakEven
from offramp.tuning.ranking import MachineAnswer, RankedPolicy
from offramp.tuning.tuned import Tuned
from offramp.tuning.verdict import WORTH, Verdict


def decoding_json(run: RunResult) -> dict[str, Any]:
    """Every measurement, and by workload why there is none."""
    return {
        "workloads": [measurement_json(decoded) for decoded in run.decoding],
        "not_decoded": dict(run.not_decoded),
    }


def measurement_json(decoded: Decoded) -> dict[str, Any]:
    """One workload: what it answers, every contender with its raw samples, every policy's forecast."""
    bench = decoded.bench
    verdict = prediction_verdict(decoded)
    value = {
        "workload": decoded.workload,
        "measured_on": decoded.measured_on,
        "answer": bench.answer,
        "resolution": bench.resolution,
        "worth": bench.worth,
        "defects": bench.defects,
        "stopped": bench.stopped,
        "seconds_spent": bench.seconds_spent,
        "plain": bench.plain,
        "a_a": asdict(bench.a_a),
        **{name: getattr(bench, name) for name in ("prompts", "rounds", "new_tokens", "batch", "batching")},
        "policies": [policy_json(decoded, policy) for policy in decoded.policies],
        "contenders": [asdict(contender) for contender in bench.contenders],
        "prediction_counts": None if verdict is None else verdict.to_json(),
        "circumstances": bench.circumstances,
        "notes": bench.notes,
    }
    found: dict[str, Any] = finite_json(value)
    return found


def policy_json(decoded: Decoded, policy: DecodedPolicy) -> dict[str, Any]:
    """One policy: predicted beside measured, where the error comes from, and the quality of its own text."""
    timed, forecast = decoded.timed(policy), policy.forecast
    seconds = timed.seconds_per_token
    value = {name: getattr(policy, name) for name in ("policy", "kv", "why", "floor", "contender")}
    value |= {
        "answer": timed.answer,
        "resolution": timed.resolution,
        "executed_agreement": None if timed.executed_agreement is None else asdict(timed.executed_agreement),
        "gain": None if timed.gain is None else dict(timed.gain),
        "counted": None if timed.counted is None else asdict(timed.counted),
        "left_out": timed.left_out,
        "predicted_seconds_per_token": None if forecast is None else forecast.predicted,
        "measured_seconds_per_token": None if seconds is None else seconds.value,
        "plain_seconds_per_token": decoded.plain_seconds,
        "measured_interval": None if seconds is None else asdict(seconds),
        "net_speedup": None if timed.ratio is None else asdict(timed.ratio),
        "free_running": None if policy.free_running is None else asdict(policy.free_running),
        "error": None,
    }
    if forecast is not None:
        worst = forecast.worst_part
        value["error"] = {
            "priced_seconds_per_token": forecast.priced,
            "predicted_seconds_by_profile": forecast.predicted_by_profile,
            "priced_seconds_by_profile": forecast.priced_by_profile,
            "predicted_plain_seconds_per_token": forecast.plain_predicted,
            "never_exit_seconds_per_token": forecast.plain_measured,
            "predicted_change": forecast.predicted_change,
            "measured_change": forecast.measured_change,
            "cost_model_error": forecast.cost_model_error,
            "trace_error": forecast.trace_error,
            "parts": [asdict(part) for part in forecast.parts],
            "worst_part": None if worst is None else worst.part,
            "sentence": error_sentence(forecast),
            **{
                name: getattr(forecast, name)
                for name in ("predicted_skip", "measured_skip", "predicted_agreement", "measured_agreement")
            },
        }
    return value


SCHEMA_VERSION = 8
BATCH_SIZE = 1
FRONTIER_POINTS = 200
FRONT_POINTS = 100
T = TypeVar("T")


def summary_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) that every `summary.json` of this version satisfies."""
    schema: dict[str, Any] = json.loads(
        resources.files("offramp.report").joinpath("summary.schema.json").read_text(encoding="utf-8")
    )
    return schema


def summarise(run: RunResult) -> dict[str, Any]:
    """A JSON object with every figure of the run, its seal left out; what is not a finite number is null."""
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": {
            "headline": headline(run),
            "decision": run_decision(run),
            "batch_size": BATCH_SIZE,
            "worth": worth_of(run),
            "by_workload": [verdict_json(w, v) for w in run.workloads for v in w.verdicts],
            "caveats": caveats(run),
        },
        "scores": [scores_json(workload) for workload in run.workloads],
        "frontier": [frontier_json(w.name, frontier) for w in run.workloads for frontier in w.frontiers],
        "predicted": [predicted_json(run, w, v) for w in run.workloads for v in w.verdicts],
        "league": [result_json(w.name, entry) for w in run.workloads for entry in w.league],
        "credit": [credit_json(w.name, one) for w in run.workloads for one in credits_of(w.league)],
        "tuned": [tuned_json(w.name, tuned) for w in run.workloads for tuned in w.tuned],
        "machines": [result_json(w.name, answer) for w in run.workloads for answer in w.machines],
        "break_even": [result_json(w.name, lever) for w in run.workloads for lever in w.break_even],
        "hardware": finite_json(run.hardware),
        "heads": finite_json(run.heads),
        "measured": measured_json(run),
        "decoding": decoding_json(run),
        **combined_json(run),
        "provenance": {
            **finite_json(run.provenance),
            "model": run.model_name,
            "layers": run.layers,
            "command": run.command,
            "workloads": [workload_json(workload) for workload in run.workloads],
        },
    }


def combined_json(run: RunResult) -> dict[str, Any]:
    """What combined accelerations came to, under "combined"; nothing where none were timed."""
    if run.combined is None:
        return {}
    return {"combined": {"advice": advice(run.combined), **finite_json(asdict(run.combined))}}


def numbers(values: Iterable[float]) -> list[float | None]:
    """An array as JSON, NaN as null."""
    return [number(float(value)) for value in values]


def estimate_json(estimate: Estimate) -> dict[str, Any]:
    """An estimate with its interval, or with the reason why it has none."""
    value = estimate.to_json()
    return {**value, **{name: number(value[name]) for name in ("value", "low", "high")}}


def optional_json(estimate: Estimate | None) -> dict[str, Any] | None:
    """An estimate that there may not be: null then."""
    return None if estimate is None else estimate_json(estimate)


def worth_of(run: RunResult) -> float:
    """The gain in speed from which on the run counts early exit as paying."""
    return next((verdict.worth for w in run.workloads for verdict in w.verdicts), WORTH)


def verdict_json(workload: WorkloadResult, verdict: Verdict) -> dict[str, Any]:
    """One verdict at one floor: what was executed and timed, and what was replayed beside it."""
    executed = verdict.executed_agreement
    estimates = ("agreement", "skip_ratio", "net_speedup", "net_speedup_flops")
    return {
        "workload": workload.name,
        "floor": verdict.floor,
        "decision": verdict.decision,
        "reason": verdict.reason,
        "missing": list(verdict.missing),
        "policy": verdict.policy,
        "kv": verdict.kv,
        "certified": verdict.certified,
        "certificate": None if verdict.certificate is None else finite_json(asdict(verdict.certificate)),
        "executed_agreement": None if executed is None else estimate_json(executed),
        "speed": None if verdict.speed is None else finite_json(asdict(verdict.speed)),
        "replayed_policy": verdict.replayed_policy,
        "basis": verdict.basis,
        **{name: estimate_json(getattr(verdict, name)) for name in estimates},
        "reference_agreement": optional_json(verdict.reference_agreement),
        "fit_agreement": number(verdict.fit_agreement),
        "fit_documents": verdict.fit_documents,
        "report_documents": verdict.report_documents,
        "documents_needed": verdict.documents_needed,
        "gain": None if verdict.gain is None else finite_json(verdict.gain.to_json()),
        "without": verdict.without,
        "credit": optional_json(verdict.credit),
        "tried": None if verdict.tried is None else finite_json(asdict(verdict.tried)),
    }


def scores_json(workload: WorkloadResult) -> dict[str, Any]:
    """The score card of one workload."""
    scores: dict[str, Any] = finite_json({"workload": workload.name, **workload.card.to_json()})
    return scores


def frontier_json(workload: str, frontier: Frontier) -> dict[str, Any]:
    """One frontier; at most 200 points, evenly spaced in the order of the thresholds, both ends kept."""
    count = len(frontier.agreement)
    kept = np.unique(np.linspace(0, count - 1, min(count, FRONTIER_POINTS)).round().astype(np.int64))
    names = ("threshold", "agreement", "skip_ratio", "speedup", "speedup_without_probes")
    return {
        "workload": workload,
        "signal": frontier.signal,
        "exits": list(frontier.exits),
        "all_points": count,
        **{name: numbers(getattr(frontier, name)[kept]) for name in names},
    }


def predicted_json(run: RunResult, workload: WorkloadResult, verdict: Verdict) -> dict[str, Any]:
    """What one verdict predicts, in seconds where plain decoding's are known, and what was measured."""
    plain, speed = plain_seconds(run, workload, verdict.basis), verdict.speed
    decoded = run.decoded(workload.name)
    timed = "timed" if speed is not None and speed.how == "measured" else "not timed"
    if decoded is not None and not decoded.sound:
        timed = "timed with a defect"
    return {
        "workload": workload.name,
        "floor": verdict.floor,
        "policy": verdict.policy,
        "basis": f"predicted from {basis_words(verdict.basis)}, batch size 1; " + timed,
        "predicted_speedup": estimate_json(verdict.net_speedup),
        "plain_seconds_per_token": number(plain),
        "predicted_seconds_per_token": number(predicted_seconds(run, workload, verdict)),
        "measured_seconds_per_token": number(plain / speed.value)
        if timed == "timed" and plain and speed
        else None,
    }


def result_json(workload: str, value: MachineAnswer | BreakEven | RankedPolicy) -> dict[str, Any]:
    """A result whose fields are numbers, texts and estimates, as it is."""
    return {"workload": workload, **finite_json(asdict(value))}


def tuned_json(workload: str, tuned: Tuned) -> dict[str, Any]:
    """The tuner's answer at one floor; its check documents and shift data stay in the policy's own file."""
    names = ("answer", "machine", "batch", "kv", "plain_seconds_per_token", "probe_share")
    estimates = ("quality", "skip_ratio", "net_speedup", "seconds_per_token")
    return {
        "workload": workload,
        "floor": {**asdict(tuned.floor), "risk": number(tuned.floor.risk)},
        "policy": tuned.policy_text,
        **{name: finite_json(getattr(tuned, name)) for name in names},
        **{name: estimate_json(getattr(tuned, name)) for name in estimates},
        "reference_agreement": optional_json(tuned.reference_agreement),
        "executed_agreement": optional_json(tuned.executed_agreement),
        "candidates": [finite_json(asdict(one)) for one in tuned.candidates],
        "gain": None if tuned.gain is None else finite_json(tuned.gain.to_json()),
        "certificate": finite_json(asdict(tuned.certificate)),
        "documents": finite_json(tuned.documents),
        "front": [finite_json(asdict(point)) for point in spread(tuned.front, FRONT_POINTS)],
    }


def spread(points: Sequence[T], count: int) -> list[T]:
    """At most `count` of the points, evenly spaced in their order, both ends kept."""
    if len(points) <= count:
        return list(points)
    return [points[round(place)] for place in np.linspace(0, len(points) - 1, count)]


def measured_json(run: RunResult) -> dict[str, Any]:
    """What the stopwatch said."""
    timings = {name: asdict(timing) for name, timing in (run.measured or {}).items()}
    return {
        "plain_seconds_per_token": None,
        **finite_json(timings),
        "measured_seconds_per_token": main_measured_json(run),
        "note": how_obtained(run)[0],
    }


def main_measured_json(run: RunResult) -> dict[str, Any] | None:
    """Time per token of the first policy that was chosen and decoded; the others stand in `decoding`."""
    for decoded in run.decoding:
        seconds = None if decoded.chosen is None else decoded.timed(decoded.chosen).seconds_per_token
        if seconds is not None:
            around = decoded.bench.circumstances
            load = around["load_average"][0]
            return {**finite_json(asdict(seconds)), "threads": around["threads"], "load": load}
    return None


def workload_json(workload: WorkloadResult) -> dict[str, Any]:
    """Where one workload's numbers lie and what they cost."""
    return {
        "name": workload.name,
        "mode": workload.mode,
        "documents": workload.card.documents,
        "tokens": workload.card.tokens,
        "trace_folder": workload.trace_folder,
        "seconds": number(workload.seconds),
        "invalid_documents": [
            {"id": document.id, "reason": document.reason}
            for document in workload.trace.documents
            if not document.valid
        ],
    }
