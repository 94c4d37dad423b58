"""`summary.json`: the whole run as numbers, against a published schema."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib import resources
from typing import Any

import numpy as np

from offramp.policies.results import Frontier, Verdict
from offramp.policies.verdict import WORTH
from offramp.report.headline import NOT_DECODED, caveats, headline, overall_decision
from offramp.report.run_result import RunResult, WorkloadResult
from offramp.scoring.estimate import Estimate

SCHEMA_VERSION = 1
BATCH_SIZE = 1
FRONTIER_POINTS = 200
SPEED_BASIS = "predicted from the bytes moved per token at batch size 1; not timed"


def summary_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) that every `summary.json` of this version satisfies."""
    schema: dict[str, Any] = json.loads(
        resources.files("offramp.report").joinpath("summary.schema.json").read_text(encoding="utf-8")
    )
    return schema


def summarise(run: RunResult) -> dict[str, Any]:
    """A JSON object with every figure of the run; what is not a finite number is null."""
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": {
            "headline": headline(run),
            "decision": overall_decision(run),
            "batch_size": BATCH_SIZE,
            "worth": WORTH,
            "by_workload": [verdict_json(w.name, v) for w in run.workloads for v in w.verdicts],
            "caveats": caveats(run),
        },
        "scores": [scores_json(workload) for workload in run.workloads],
        "frontier": [frontier_json(w.name, frontier) for w in run.workloads for frontier in w.frontiers],
        "predicted": [predicted_json(run, w.name, v) for w in run.workloads for v in w.verdicts],
        "measured": measured_json(run),
        "provenance": {
            **finite_json(run.provenance),
            "model": run.model_name,
            "layers": run.layers,
            "command": run.command,
            "workloads": [workload_json(workload) for workload in run.workloads],
        },
    }


def number(value: float | None) -> float | None:
    """A finite number, null for anything else."""
    return None if value is None or not math.isfinite(value) else float(value)


def numbers(values: Iterable[float]) -> list[float | None]:
    """An array as JSON, NaN as null."""
    return [number(float(value)) for value in values]


def estimate_json(estimate: Estimate) -> dict[str, Any]:
    """An estimate with its interval, or with the reason why it has none."""
    value = estimate.to_json()
    return {**value, **{name: number(value[name]) for name in ("value", "low", "high")}}


def verdict_json(workload: str, verdict: Verdict) -> dict[str, Any]:
    """One verdict at one floor."""
    estimates = ("agreement", "skip_ratio", "net_speedup", "net_speedup_flops")
    return {
        "workload": workload,
        "floor": verdict.floor,
        "decision": verdict.decision,
        "reason": verdict.reason,
        "policy": verdict.policy,
        **{name: estimate_json(getattr(verdict, name)) for name in estimates},
        "fit_agreement": number(verdict.fit_agreement),
        "fit_documents": verdict.fit_documents,
        "report_documents": verdict.report_documents,
        "documents_needed": verdict.documents_needed,
        "floor_held": verdict.floor_held,
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


def predicted_json(run: RunResult, workload: str, verdict: Verdict) -> dict[str, Any]:
    """What one verdict predicts, in seconds if plain decoding was timed."""
    plain = run.plain_seconds_per_token
    return {
        "workload": workload,
        "floor": verdict.floor,
        "policy": verdict.policy,
        "basis": SPEED_BASIS,
        "predicted_speedup": estimate_json(verdict.net_speedup),
        "plain_seconds_per_token": None if plain is None else number(plain.value),
        "predicted_seconds_per_token": predicted_seconds(run, verdict),
        "measured_seconds_per_token": None,
    }


def predicted_seconds(run: RunResult, verdict: Verdict) -> float | None:
    """Measured plain seconds per token over the predicted net speedup; None if either is missing."""
    plain, speedup = run.plain_seconds_per_token, number(verdict.net_speedup.value)
    return None if plain is None or not speedup else number(plain.value / speedup)


def measured_json(run: RunResult) -> dict[str, Any]:
    """What the stopwatch said."""
    timings = {name: asdict(timing) for name, timing in (run.measured or {}).items()}
    return {
        "plain_seconds_per_token": None,
        **finite_json(timings),
        "measured_seconds_per_token": None,
        "note": NOT_DECODED,
    }


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


def finite_json(value: Any) -> Any:
    """Any JSON-like value with tuples as lists, numpy scalars as numbers and non-finite numbers as null."""
    if isinstance(value, Mapping):
        return {str(key): finite_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return number(value)
    return value
