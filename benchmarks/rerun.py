"""What a rerun costs: one policy beside a plain forward of the same tokens, and the policies of a front.

    python benchmarks/rerun.py [--documents 64] [--tokens 64] [--policies 24]

Prints one JSON object last: `over_forward` (seconds of one rerun, nothing shared, over those of a plain
forward that reads every token's head once, medians of turns in random order: by policy, since every check
with a full head is one more product), `front_seconds` (all policies, states and first checks shared), and
the drift of each policy (replayed and rerun agreement).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

import offramp
from offramp.decoding.judging import last_states
from offramp.decoding.rerun.rerunner import Rerunner
from offramp.models.model import Model
from offramp.tracing.trace import Trace

SIGNALS = ("margin", "max_prob", "restricted_margin")
SETS = ((8,), (15,), (20,), (25,), (15, 20, 25), (20, 25))
ALONE = {
    "one check off the short list": "threshold:signal=restricted_margin,value=0.9,exits=15",
    "one check with the full head": "threshold:signal=margin,value=0.9,exits=15",
    "three checks off the short list": "threshold:signal=restricted_margin,value=0.9,exits=15+20+25",
    "three checks with the full head": "threshold:signal=margin,value=0.9,exits=15+20+25",
}


def policies(count: int) -> list[str]:
    """A front: every signal on every set of exits, from bold to cautious."""
    values = (0.9, 0.7, 0.5, 0.3)
    return [
        f"threshold:signal={signal},value={value},exits={'+'.join(map(str, exits))}"
        for value in values
        for signal in SIGNALS
        for exits in SETS
    ][:count]


def timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


@torch.no_grad()
def forward(runs: Rerunner) -> None:
    """The full model on the same tokens, with one head product for each decided one, as a rerun has."""
    for batch in runs.batches:
        states = last_states(runs.model, batch.ids)
        rows = states.reshape(-1, states.shape[-1])[torch.from_numpy(batch.places)]
        for some in torch.split(rows.unsqueeze(1), 256):
            runs.engine.logits(some).argmax(-1)


def over_forward(model: Model, trace: Trace, rounds: int) -> dict[str, list[float]]:
    """Seconds of one rerun over those of a plain forward, round by round: by policy."""
    seconds: dict[str, list[float]] = {name: [] for name in (*ALONE, "forward")}
    order = random.Random(0)
    forward(Rerunner(model, trace))
    for _ in range(rounds):
        for name in order.sample(sorted(seconds), k=len(seconds)):
            runs = Rerunner(model, trace)
            work = partial(forward, runs) if name == "forward" else partial(runs.run, ALONE[name])
            seconds[name].append(timed(work))
    plain = seconds.pop("forward")
    return {
        name: [one / two for one, two in zip(values, plain, strict=True)] for name, values in seconds.items()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--policies", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workload", default="prose")
    options = parser.parse_args()
    model = offramp.load_model("smollm2", dtype="float32")
    trace = offramp.trace(
        model,
        options.workload,
        tokens=options.documents * options.tokens,
        document_tokens=options.tokens,
        signals=("restricted",),
        progress=False,
    )
    some = trace.subset(np.unique(trace.document)[:16].astype(np.int64))
    ratios = over_forward(model, some, options.rounds)
    for name, values in ratios.items():
        print(
            f"{name}: {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}) of a forward"
        )
    runs, found = Rerunner(model, trace), []
    began = time.perf_counter()
    for policy in policies(options.policies):
        result = runs.run(policy)
        assert result.drift is not None  # the trace holds what these policies read
        replayed = result.drift.agreement
        found.append((policy, replayed, result.agreement, result.skip_ratio))
        print(f"{policy}: replayed {replayed:.3f}, rerun {result.agreement:.3f}", flush=True)
    front = time.perf_counter() - began
    print(
        json.dumps(
            {
                "benchmark": "rerun",
                "threads": torch.get_num_threads(),
                "tokens": trace.token_count,
                "over_forward": {name: statistics.median(values) for name, values in ratios.items()},
                "over_forward_range": {name: [min(values), max(values)] for name, values in ratios.items()},
                "front_policies": len(found),
                "front_seconds": front,
                "policies": [
                    {"policy": p, "replayed": a, "rerun": b, "skip_ratio": s} for p, a, b, s in found
                ],
            }
        )
    )


if __name__ == "__main__":
    main()
