"""What was decoded for real, as `summary.json` holds it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from offramp.report.forecasts import error_sentence, prediction_verdict
from offramp.report.run_result import Decoded, DecodedPolicy, RunResult
from offramp.scoring.estimate import finite_json


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
