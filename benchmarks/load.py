"""Under load: how long a prediction takes, its percentiles beside another generator's, `gain` as served.

    python benchmarks/load.py prediction           10 rates, 8 contenders, 400 requests, 3 seeds; no model
    python benchmarks/load.py percentiles          a server of constant service under mlcommons-loadgen
    python benchmarks/load.py gain TRACE --policy P --heads EXITS/exits.safetensors

`seconds`: of the whole prediction, imports left out (aim: 60). `percentiles`: loadgen issues queries at
random to one thread that takes the same time for each; the simulator serves the very arrivals that were seen,
and `ratio` is its percentile over loadgen's (aim: 0.97 to 1.03; `pip install mlcommons-loadgen`). `gain`: so
many requests at once, a policy's server and the full model's twice, in turns; `ratio` is seconds of decoding
of the full model over the policy's, geometric mean over seeds (aim: 0.98 or more), `a_a` the same of the full
model against itself. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np

import offramp
from offramp.scoring.estimate import Estimate
from offramp.serving.predict import ratio_over_seeds
from offramp.serving.simulator import Demand
from synthetic_trace import write_synthetic_trace

ROWS = (1, 2, 4, 8, 16, 32)


def prediction() -> dict[str, Any]:
    """Seconds that ten rates, eight contenders and 400 requests of three seeds take."""
    with tempfile.TemporaryDirectory() as folder:
        write_synthetic_trace(Path(folder), 20_000, 12)
        trace = offramp.Trace.load(folder)
        values = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8)
        policies = [f"threshold:signal=max_prob,value={value},exits=4+8" for value in values]
        began = time.perf_counter()
        found = offramp.load(trace, policy=policies, hardware="h100")
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "contenders": len(found.servers), "rates": len(found.rates)}


class ConstantService:
    """One thread that takes the same time for every query of loadgen, and remembers when each came."""

    def __init__(self, service: float) -> None:
        self.service = service
        self.arrivals: list[float] = []
        self.waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        threading.Thread(target=self._serve, daemon=True).start()

    def issue(self, queries: Any) -> None:
        """Queries came."""
        for query in queries:
            self.arrivals.append(time.perf_counter())
            self.waiting.put(query.id)

    def _serve(self) -> None:
        import mlperf_loadgen

        while True:
            name = self.waiting.get()
            began = time.perf_counter()
            time.sleep(max(0.0, self.service - 0.001))
            while time.perf_counter() - began < self.service:  # a sleep ends a little late
                pass
            mlperf_loadgen.QuerySamplesComplete([mlperf_loadgen.QuerySampleResponse(name, 0, 0)])


def percentiles(service: float = 0.02, busy: float = 0.7, seconds: float = 60.0) -> dict[str, Any]:
    """What loadgen and the simulator say of the same arrivals at one row of constant service."""
    import mlperf_loadgen as loadgen

    server = ConstantService(service)
    settings = loadgen.TestSettings()
    settings.scenario, settings.mode = loadgen.TestScenario.Server, loadgen.TestMode.PerformanceOnly
    settings.server_target_qps = busy / service
    settings.min_duration_ms, settings.min_query_count = int(1000 * seconds), 1
    with tempfile.TemporaryDirectory() as folder:
        output = loadgen.LogOutputSettings()
        output.outdir = folder
        log = loadgen.LogSettings()
        log.log_output = output
        own = loadgen.ConstructSUT(server.issue, lambda: None)
        samples = loadgen.ConstructQSL(64, 64, lambda _: None, lambda _: None)
        loadgen.StartTestWithLogSettings(own, samples, settings, log)
        summary = (Path(folder) / "mlperf_log_summary.txt").read_text(encoding="utf-8")
    said = re.findall(r"^(\d+)\.00 percentile latency \(ns\)\s*: (\d+)", summary, re.M)
    theirs = {int(percent): int(nanoseconds) / 1e9 for percent, nanoseconds in said}
    latency = _simulated(np.array(server.arrivals) - server.arrivals[0], service)
    found = {
        f"p{percent}": {"loadgen": value, "ratio": float(np.percentile(latency, percent)) / value}
        for percent, value in theirs.items()
    }
    return {"requests": len(latency), "busy": busy, "service_seconds": service, **found}


def _simulated(arrival: Any, service: float) -> Any:
    """Seconds of each request at one row, by offramp's simulator: float64 [requests]."""
    from offramp.policies.grammar import parse_policy
    from offramp.serving.contenders import PLAIN, LoadContender, Rung
    from offramp.serving.prices import StepPrices
    from offramp.serving.request import ServerLimits
    from offramp.serving.simulator import simulate

    ones, nothing = np.ones(len(arrival), dtype=np.int64), np.zeros((1, 2, 2))
    free, at = np.zeros(2), np.array([0.0, 1.0])
    none = np.zeros((0, 2))
    prices = StepPrices(
        *((), 1, at, nothing, nothing, none, none, np.zeros(0, dtype=np.bool_), free, free),
        *(lambda tokens, past: service, 0.0, ()),
    )
    rung = Rung(parse_policy("never"), np.ones(1, dtype=np.int64), {}, np.ones((1, 1), dtype=np.bool_), (), 1)
    demand = Demand(arrival, ones, ones, np.zeros((len(arrival), 2)))
    answers = [np.zeros(1, dtype=np.int64)] * len(arrival)
    plain = LoadContender("plain", PLAIN, (rung,))
    served = simulate(demand, answers, plain, prices, ServerLimits(rows=1, budget=1))
    return np.array([times[-1] for times in served.times]) - arrival


def gain(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the full model's decoding over a policy's, by requests at once."""
    from offramp.serving.request import Load
    from offramp.serving.served import AGAIN, opened_place, profiled

    asked = Load(options.trace, policy=options.policy, heads=options.heads, execute=True, rows=max(ROWS))
    place, contenders, _ = opened_place(asked)
    plain, *others = contenders
    steps = profiled(place, contenders)
    prices = {
        contender.name: steps[contender.name].step_prices(contender, asked.rows, place.setting.longest)
        for contender in contenders
    }
    found: dict[str, Any] = {}
    for rows in ROWS:
        seconds: dict[str, list[float]] = {}
        layers: dict[str, float] = {}
        for seed in range(options.seeds):
            demand = place.first(place.some_demand(1000 * rows + seed), rows)
            demand = replace(demand, output=np.full(rows, options.new_tokens))
            loops = {own.name: place.loop(own, prices[own.name]) for own in contenders}
            servers = place.serve(demand, {**loops, AGAIN: place.loop(plain)}, seed)
            for name, server in servers.items():
                seconds.setdefault(name, []).append(server.decoding)
                layers[name] = float(server.layers.sum()) / (rows * (options.new_tokens - 1))
        found[str(rows)] = {
            "a_a": _ends(ratio_over_seeds(seconds[plain.name], seconds[AGAIN])),
            **{
                other.name: {
                    "ratio": _ends(ratio_over_seeds(seconds[plain.name], seconds[other.name])),
                    "layers": layers[other.name],
                }
                for other in others
            },
        }
        print(rows, json.dumps(found[str(rows)]), flush=True)
    return {"policy": options.policy, "new_tokens": options.new_tokens, "seeds": options.seeds, "rows": found}


def _ends(ratio: Estimate[float]) -> list[float | None]:
    return [ratio.value, ratio.low, ratio.high]


def main(arguments: list[str] | None = None) -> None:
    """Measure one part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("prediction")
    parts.add_parser("percentiles")
    served = parts.add_parser("gain")
    served.add_argument("trace")
    served.add_argument("--policy", required=True)
    served.add_argument("--heads", type=Path)
    served.add_argument("--new-tokens", type=int, default=24)
    served.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args(arguments)
    if options.part == "gain":
        result = gain(options)
    else:
        result = prediction() if options.part == "prediction" else percentiles()
    print(json.dumps({"benchmark": "load", "part": options.part, **result}))


if __name__ == "__main__":
    main()
