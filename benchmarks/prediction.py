"""Predicted beside measured seconds per token, for a fixed set of policies.

    python benchmarks/prediction.py                          smollm2, float32 and bfloat16
    python benchmarks/prediction.py --heads heads.safetensors --signals correctness,max_prob

Static exits at 1/4, 1/2, 3/4 of the layers with every strategy for K and V, and two thresholds on each of two
signals. First the machine is profiled (no policy runs), then all policies are replayed on a trace and their
predictions written to a file with the time, then they are timed in turns, and judged: see
`offramp.timing.prediction.when_it_counts`, once on the predictions, once on the cost model
alone given what really ran. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np

import offramp
from offramp.costs.timings import TimingsProfile
from offramp.decoding.openings import prompts_of
from offramp.decoding.options import DecodingOptions
from offramp.files import write_json_atomically
from offramp.models.model import Model
from offramp.policies.kv import MAPPED, STRATEGIES
from offramp.policies.replay import ReplayResult
from offramp.policies.signals import SIGNALS
from offramp.timing.bench import forecasts_of, predict_cells, run, settle
from offramp.timing.contenders import WITHOUT_PEERS
from offramp.timing.local_profile import measure_hardware
from offramp.timing.prediction import PredictionVerdict, when_it_counts
from offramp.timing.results import BenchResult, Forecast
from offramp.timing.stopping import TimeLimits
from offramp.tracing.trace import Trace
from offramp.workloads.registry import load_workload

QUARTERS = (0.25, 0.5, 0.75)
# Shares of the tokens that would pass a threshold at the first exit that it checks.
PASSING = (0.3, 0.7)


def exits_of(model: Model) -> list[int]:
    """A quarter, a half and three quarters of the layers."""
    return sorted({min(max(round(model.layers * share), 1), model.layers - 1) for share in QUARTERS})


def fixed_set(model: Model, trace: Trace, signals: Sequence[str]) -> list[tuple[str, str]]:
    """Policies with their strategies."""
    cells = [
        (f"static:exit={exit}", kv) for exit in exits_of(model) for kv in STRATEGIES if kv != MAPPED.name
    ]
    checked = exits_of(model)[-2:]
    for name in signals:
        signal = SIGNALS[name]
        values = trace.fact(signal.fact)[:, list(trace.exits).index(checked[0])]
        for share in PASSING:
            rank = 1.0 - share if signal.exit_when == "at least" else share
            value = round(float(np.quantile(values, rank)), 4)
            exits = "+".join(map(str, checked))
            cells.append((f"threshold:signal={name},value={value},exits={exits}", "propagate"))
    return cells


def written_down(
    model: Model, profile: TimingsProfile, predicted: Mapping[str, ReplayResult], folder: Path
) -> Path:
    """The predictions in a file of their own, before anything is timed."""
    path = folder / f"predictions-{model.dtype}.json"
    content = {
        "written_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "profile_measured_at": profile.details["measured_at"],
        "predicted_seconds_per_token": {name: one.seconds_per_token for name, one in predicted.items()},
        "plain_seconds_per_token": next(iter(predicted.values())).plain_seconds_per_token,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomically(path, content)
    return path


def one_dtype(dtype: str, options: argparse.Namespace) -> tuple[BenchResult, tuple[Forecast, ...]]:
    """Profile, predict, time."""
    model = offramp.load_model(options.model, dtype=dtype)
    profile = measure_hardware(model, budget_seconds=options.profile_seconds)
    trace = offramp.trace(
        model, options.workload, tokens=options.trace_tokens,
        exits=[*exits_of(model), model.layers], heads=options.heads,
    )  # fmt: skip
    prompts = prompts_of(
        model, load_workload(options.workload), options.prompts, new_tokens=options.new_tokens
    )
    asked = [
        DecodingOptions.read(
            policy,
            kv=kv,
            heads=options.heads,
            draft_length=options.draft_length,
            new_tokens=options.new_tokens,
        )
        for policy, kv in fixed_set(model, trace, options.signals.split(","))
    ]
    setting = settle(model, asked, prompts=prompts, task=options.workload)
    predicted = predict_cells(setting, trace, profile)
    print(f"predictions: {written_down(model, profile, predicted, Path(options.output))}")
    limits = TimeLimits(options.seconds, options.rounds)
    measurement = run(setting, limits=limits, extent=WITHOUT_PEERS)
    found = forecasts_of(measurement, profile, predicted=predicted, parts_of=2)
    forecasts = tuple(found.values())
    for one in forecasts:
        _print(one)
    return measurement.result, forecasts


def _print(one: Forecast) -> None:
    parts = ", ".join(f"{part.part} {1e3 * part.priced:.2f}/{1e3 * part.measured:.2f}" for part in one.parts)
    predicted = float("nan") if one.predicted is None else 1e3 * one.predicted
    print(
        f"{one.dtype} {one.policy} {one.kv}: predicted {predicted:.2f} priced {1e3 * one.priced:.2f} "
        f"measured {1e3 * one.measured.value:.2f} ms (plain {1e3 * one.plain_predicted:.2f} and "
        f"{1e3 * one.plain_measured:.2f}); priced/timed: {parts}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Predict, time and judge in every dtype, then all together."""
    options = _options(arguments)
    found = {dtype: one_dtype(dtype, options) for dtype in options.dtypes.split(",")}
    together = [one for _, forecasts in found.values() for one in forecasts]
    defect = any(result.defects for result, _ in found.values())
    verdicts: dict[str, PredictionVerdict] = {
        "predictions": when_it_counts(together, defect=defect),
        "cost_model": when_it_counts(together, defect=defect, given_exits=True),
    }
    for name, verdict in verdicts.items():
        print(f"{name}: {'count' if verdict.counts else 'do not count'}; {verdict.worst_part}")
        for check in (*verdict.rule, *verdict.figures):
            value = "-" if check.value is None else f"{check.value:.3f}"
            print(f"  {'holds' if check.holds else 'FAILS'}: {check.rule}: {value}, limit {check.limit}")
    summary: dict[str, Any] = {
        "settings": vars(options),
        **{name: asdict(verdict) for name, verdict in verdicts.items()},
        "forecasts": [asdict(one) for one in together],
        "benches": {
            dtype: {
                "defects": list(result.defects),
                "stopped": result.stopped,
                "seconds_spent": result.seconds_spent,
                "a_a": asdict(result.a_a),
                "circumstances": dict(result.circumstances),
            }
            for dtype, (result, _) in found.items()
        },
    }
    print(json.dumps(summary))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--workload", default="chat")
    parser.add_argument("--signals", default="hidden_cosine,max_prob")
    parser.add_argument("--heads", default=None, help="fitted exit heads, for signals that need them")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=None, help="at most; by default as the seconds allow")
    parser.add_argument("--seconds", type=float, default=300.0, help="of the measurement in each dtype")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--draft-length", type=int, default=4)
    parser.add_argument("--trace-tokens", type=int, default=1024)
    parser.add_argument("--profile-seconds", type=float, default=45.0)
    parser.add_argument("--output", default="build/prediction", help="folder of the predictions")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
