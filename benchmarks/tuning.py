"""A full tune of a trace on disk: seconds and peak memory.

    python benchmarks/tuning.py                                100,000 tokens x 30 exits
    python benchmarks/tuning.py --tokens 1000000 --exits 32    a million tokens

From the folder to the certified policy: every family searched, the sequence tested, the result measured on
the report documents, seconds counted on a roofline machine. It runs in a fresh process, so that its peak
memory is its own. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import offramp
from offramp.tuning.tune import tune
from synthetic_trace import write_synthetic_trace

FLOOR = {"agreement": 0.95}
HARDWARE = "l4"


def run_task(folder: Path) -> dict[str, Any]:
    """One tune in this process."""
    started = time.perf_counter()
    tuned = tune(offramp.Trace.load(folder), FLOOR, HARDWARE)
    return {
        "tune_seconds": time.perf_counter() - started,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "answer": tuned.answer,
        "front": [point.policy for point in tuned.front],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--exits", type=int, default=30)
    parser.add_argument("--keep", type=Path, help="a folder for the trace, kept and used again")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        print(json.dumps(run_task(options.folder)))
        return
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = options.keep or Path(name)
        if not (folder / "manifest.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_synthetic_trace(folder, options.tokens, options.exits)
        command = [sys.executable, __file__, "--folder", str(folder)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    print(result["answer"])
    print(
        json.dumps(
            {
                "benchmark": "tuning",
                "tokens": options.tokens,
                "exits": options.exits,
                **result,
                "machine": {"cores": os.cpu_count(), "load_average_at_start": load},
            }
        )
    )


if __name__ == "__main__":
    main()
