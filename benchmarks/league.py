"""The league of policies, decoded: predicted against measured rank, and the best speed at each floor.

    offramp heads fit smollm2 -w chat --tokens 4096 -o chat.safetensors
    offramp trace smollm2 -w chat --signals restricted --heads chat.safetensors -o chat-trace
    python benchmarks/league.py chat-trace --heads chat.safetensors

The fastest member of every family at each floor on agreement, chosen on half of the trace's documents, is
predicted for this machine by replay on the other half, and then decoded on prompts that neither half nor
the heads have seen. All take turns (see `offramp.decoding.bench.bench.measure`). Agreement is free-running:
the share of generated tokens that are the full model's choice on the same prefix. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
from scipy.stats import kendalltau

import offramp
from offramp.costs.timings import TimingsProfile
from offramp.decoding.bench.bench import measure
from offramp.decoding.bench.beside import forecasts_of, free_running_of, predict_cells
from offramp.decoding.bench.contenders import Cell
from offramp.decoding.bench.prompts import prompts_of
from offramp.decoding.hardware import measure_hardware
from offramp.policies.grammar import parse_policy
from offramp.tracing.heads_file import read_heads
from offramp.tracing.trace import Trace
from offramp.tuning.results import LeagueEntry
from offramp.workloads.registry import load_workload


def chosen(trace: Trace, profile: TimingsProfile, floors: Sequence[float], count: int) -> list[LeagueEntry]:
    """The fastest families at each floor, every policy once."""
    entries = offramp.league(trace, profile, tuple(floors))
    kept: dict[str, LeagueEntry] = {}
    for floor in floors:
        able = [
            entry
            for entry in entries
            if entry.floor == floor and entry.reachable and parse_policy(entry.policy).needs(trace.layers)
        ]
        for entry in able[:count]:
            kept.setdefault(entry.policy, entry)
    return list(kept.values())


def decoded(options: argparse.Namespace) -> dict[str, Any]:
    """Choose, predict, time."""
    model = offramp.load_model(options.model, dtype=options.dtype)
    profile = measure_hardware(model, budget_seconds=options.profile_seconds)
    trace = Trace.load(options.trace)
    workload = load_workload(str(trace.request["workload"]["name"]))
    heads = None if options.heads is None else read_heads(options.heads)
    floors = [float(floor) for floor in options.floors.split(",")]
    entries = chosen(trace, profile, floors, options.families)
    if not entries:
        raise SystemExit(f"no family that exits reaches a floor of {options.floors}: lower --floors")
    prompts = prompts_of(
        model, workload, options.prompts, new_tokens=options.new_tokens,
        heads=() if heads is None else (heads,),
        prompt_tokens=options.prompt_tokens,
    )  # fmt: skip
    measurement_of = {"prompts": prompts, "heads": heads, "new_tokens": options.new_tokens}
    (first, *others) = [(entry.policy, options.kv) for entry in entries]
    measurement = measure(
        model, first[0], kv=first[1], cells=others, rounds=options.rounds, budget_seconds=options.seconds,
        peers=False, never=True, **measurement_of,
    )  # fmt: skip
    predicted = predict_cells(measurement.setting, trace, profile, workload.name)
    forecasts = {
        one.policy: one
        for one in forecasts_of(measurement, profile, predicted=predicted, parts_of=1).values()
    }
    rows = [_row(entry, measurement, forecasts[entry.policy], options.kv) for entry in entries]
    result = measurement.result
    ranks = [[row["predicted_seconds_per_token"], row["measured_seconds_per_token"]] for row in rows]
    tau = float(kendalltau(*np.array(ranks).T).statistic) if len(rows) > 1 else float("nan")
    return {
        "defects": list(result.defects),
        "stopped": result.stopped,
        "seconds_spent": result.seconds_spent,
        "a_a": asdict(result.a_a),
        "plain": result.plain,
        "plain_contenders": [asdict(one) for one in result.contenders if one.role in ("plain", "a/a")],
        "kendall_tau_b": tau,
        "policies": rows,
        "circumstances": dict(result.circumstances),
    }


def _row(entry: LeagueEntry, measurement: Any, forecast: Any, kv: str) -> dict[str, Any]:
    cell = Cell(parse_policy(entry.policy), kv)
    contender = measurement.result.contender(cell.name)
    quality = free_running_of(measurement, cell)
    row = {
        "family": entry.family,
        "policy": entry.policy,
        "floor": entry.floor,
        "predicted_agreement": entry.agreement.value,
        "measured_agreement": asdict(quality.agreement),
        "tokens_before_divergence": asdict(quality.tokens_before_divergence),
        "predicted_seconds_per_token": forecast.predicted,
        "measured_seconds_per_token": forecast.measured.value,
        "priced_seconds_per_token": forecast.priced,
        "plain_seconds_per_token": forecast.fastest_plain,
        "predicted_net_speedup": entry.net_speedup.value,
        "answer": contender.answer,
        "measured_net_speedup": asdict(contender.ratio),
        "predicted_skip": forecast.predicted_skip,
        "measured_skip": forecast.measured_skip,
    }
    print(
        f"{entry.floor:g} {entry.family}: predicted {entry.net_speedup.value:.3f} measured "
        f"{contender.ratio.value:.3f} [{contender.ratio.low}, {contender.ratio.high}], agreement "
        f"{entry.agreement.value:.3f} and {quality.agreement.value:.3f}: {entry.policy}"
    )
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    """Decode the league of one trace."""
    options = _options(arguments)
    print(json.dumps({"settings": vars(options), **decoded(options)}))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("trace", help="folder of a trace")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--heads", default=None, help="the exit heads that the trace was made with")
    parser.add_argument("--kv", default="propagate")
    parser.add_argument("--floors", default="0.99,0.95,0.9")
    parser.add_argument("--families", type=int, default=4, help="the fastest families at each floor")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=16, help="of a text's start")
    parser.add_argument("--rounds", type=int, default=3, help="at most")
    parser.add_argument("--seconds", type=float, default=600.0, help="of the measurement")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--profile-seconds", type=float, default=45.0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
