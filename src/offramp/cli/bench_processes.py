"""`offramp bench --processes`: the same measurement in fresh processes, one after the other."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from offramp.cli.bench_request import BenchRequest
from offramp.cli.bench_table import show
from offramp.cli.console import Output, stage
from offramp.decoding.measurement.processes import merged
from offramp.decoding.measurement.results import BenchResult, read_results
from offramp.errors import OfframpError

PROGRAM = (sys.executable, "-c", "from offramp.cli.main import main; main()")


def measured_in_processes(request: BenchRequest, out: Output) -> list[BenchResult]:
    """One result per batch size, each shown; the first process judges answers, asks tasks and predicts.

    Every process is given this one's own arguments, with a share of the seconds; the last of an option that
    is given twice counts. The plain decoder that the first one's pilot chose is every other one's.

    Raises OfframpError if a process fails, with what it said.
    """
    measured: list[tuple[BenchResult, ...]] = []
    with tempfile.TemporaryDirectory(prefix="offramp-bench-") as folder:
        for place in range(request.processes):
            path = Path(folder) / f"{place}.json"
            seconds = (request.limits.seconds or 0.0) / request.processes
            own = ["--seconds", str(seconds), "--to-the-end"]
            own += ["--processes", "1", "--seed", str(request.seed + place), "-o", str(path)]
            if measured:
                own += ["--plain", measured[0][0].plain, "--timing-only"]
            with stage(f"timing in process {place + 1} of {request.processes}"):
                _run([*sys.argv[1:], *own])
            measured.append(read_results(path))
    results = [merged(same) for same in zip(*measured, strict=True)]
    for result in results:
        show(out.console, result)
    return results


def _run(arguments: Sequence[str]) -> None:
    done = subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        what = next((line.removeprefix("offramp: ") for line in said if line.startswith("offramp: ")), "")
        raise OfframpError(
            f"a fresh process failed: {what or f'it ended with code {done.returncode}'}",
            where="offramp bench --processes",
            fix="run the same without --processes to see all that it says",
        )
