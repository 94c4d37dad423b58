"""Scoring and replay of a trace on disk, without a model: seconds for the score card and for exact frontiers.

    python benchmarks/replay.py                                100,000 tokens x 30 exits
    python benchmarks/replay.py --tokens 1000000 --exits 32    a million tokens

The trace is made up (see synthetic_trace.py): its signals rise with depth, so that nearly every value is a
breakpoint of the frontier. Each measurement runs in a fresh process, imports left out, which also tells its
own peak memory. `frontier_seconds`: from the folder on disk to all operating points of one signal on all
exits below the last, every probe charged; it is then held against a replay at 1,000 thresholds. The last line
is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np

import offramp
from offramp.policies.frontier import Frontier, frontier
from offramp.policies.replay import replay
from offramp.policies.rules.threshold import Threshold
from synthetic_trace import write_synthetic_trace

SIGNAL = "max_prob"
SIGNALS = ("max_prob", "margin", "entropy")
THRESHOLDS = 1000
# Tokens on which the frontier is held against a replay at each of the thresholds.
COMPARED_TOKENS = 4_000


def frontier_from_disk(folder: Path) -> Frontier:
    """Read what one frontier needs, and compute it over all exits."""
    return frontier(offramp.Trace.load(folder), SIGNAL)


def score_from_disk(folder: Path) -> None:
    """Read and score."""
    offramp.score(offramp.Trace.load(folder))


def both_from_disk(folder: Path) -> None:
    """Score card and three frontiers of one loaded trace."""
    trace = offramp.Trace.load(folder)
    offramp.score(trace)
    for signal in SIGNALS:
        frontier(trace, signal)


TASKS: dict[str, Callable[[Path], object]] = {
    "frontier": frontier_from_disk,
    "score": score_from_disk,
    "score_and_frontiers": both_from_disk,
}


def run_task(name: str, folder: Path) -> dict[str, Any]:
    """One measurement in this process: seconds, and the peak memory of the whole process."""
    started = time.perf_counter()
    result = TASKS[name](folder)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "points": len(result.threshold) if isinstance(result, Frontier) else None,
    }


def measure(name: str, folder: Path, repeats: int) -> dict[str, Any]:
    """A measurement in fresh processes: median seconds, all samples, largest peak memory."""
    samples = []
    for _ in range(repeats):
        command = [sys.executable, __file__, "--task", name, "--folder", str(folder)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        samples.append(json.loads(done.stdout.splitlines()[-1]))
    return {
        "median": statistics.median(sample["seconds"] for sample in samples),
        "samples": [sample["seconds"] for sample in samples],
        "peak_memory_bytes": max(sample["peak_memory_bytes"] for sample in samples),
        "points": samples[0]["points"],
    }


def largest_difference(folder: Path) -> float:
    """The largest difference of the frontier from replays at many thresholds, on some of the documents."""
    trace = offramp.Trace.load(folder)
    some = trace.subset(np.unique(trace.document[:COMPARED_TOKENS]).astype(np.int64))
    points = frontier(some, SIGNAL)
    exits = points.exits
    worst = 0.0
    for place in np.linspace(1, len(points.threshold) - 1, THRESHOLDS).astype(np.int64):
        result = replay(some, Threshold(SIGNAL, float(points.threshold[place]), exits))
        worst = max(
            worst,
            abs(result.agreement - points.agreement[place]),
            abs(result.skip_ratio - points.skip_ratio[place]),
            abs(result.predicted_speedup - points.speedup[place]),
            abs(result.speedup_without_probes - points.speedup_without_probes[place]),
        )
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--exits", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="a folder for the trace, kept and used again")
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        print(json.dumps(run_task(options.task, options.folder)))
        return
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = options.keep or Path(name)
        if not (folder / "manifest.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_synthetic_trace(folder, options.tokens, options.exits)
        measured = {}
        for task in TASKS:
            measured[task] = measure(task, folder, options.repeats)
            print(f"{task}: {measured[task]['median']:.2f} s", flush=True)
        difference = largest_difference(folder)
        size = sum(path.stat().st_size for path in folder.iterdir())
    print(
        json.dumps(
            {
                "benchmark": "replay",
                "tokens": options.tokens,
                "exits": options.exits,
                "trace_bytes": size,
                "frontier_seconds": measured["frontier"]["median"],
                "frontier_points": measured["frontier"]["points"],
                "peak_memory_bytes": measured["frontier"]["peak_memory_bytes"],
                "largest_difference_from_replay": difference,
                "score_seconds": measured["score"]["median"],
                "score_and_frontiers_seconds": measured["score_and_frontiers"]["median"],
                "details": measured,
                "machine": {"cores": os.cpu_count(), "load_average_at_start": load},
            }
        )
    )


if __name__ == "__main__":
    main()
