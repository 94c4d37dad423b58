"""What `offramp bench` does with the loaded model: times, judges the answers, and prices what ran."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from offramp.cli.bench_request import BenchRequest
from offramp.cli.bench_table import show
from offramp.cli.console import Output
from offramp.costs.machine import Machine
from offramp.decoding.measurement.bench import run
from offramp.decoding.measurement.contenders import Setting
from offramp.decoding.measurement.judged import judge_measurement
from offramp.decoding.measurement.processes import merged
from offramp.decoding.measurement.results import BenchResult, read_results
from offramp.decoding.openings import prompts_of
from offramp.errors import OfframpError, WorkloadError
from offramp.models.model import Model
from offramp.policies.replay import ReplayResult
from offramp.tracing.progress import progress_bar, stage
from offramp.workloads.shared_text import read_sketch

PARTS_OF = 2
"""Batches of prompts on which the parts of a policy's tokens are timed."""

SEARCHED = "prompts are of documents that the policy was searched on, too: there are not so many others"


def measured_results(model: Model, request: BenchRequest, out: Output) -> list[BenchResult]:
    """One result per batch size, each shown as soon as it is there."""
    prompts, seen = prompts_for(model, request)
    settings = [request.setting(model, prompts, batch) for batch in request.batches]
    machines = request.machines_for(settings)
    predictions = [
        request.predictions(setting, machine)
        for setting, (machine, _) in zip(settings, machines, strict=True)
    ]
    results: list[BenchResult] = []
    for setting, (machine, notes), predicted in zip(settings, machines, predictions, strict=True):
        result = _measured(request, setting, machine, predicted)
        result = replace(result, notes=(*result.notes, *seen, *notes))
        show(out.console, result)
        results.append(result)
    return results


def prompts_for(model: Model, request: BenchRequest) -> tuple[list[list[int]], tuple[str, ...]]:
    """Prompts of documents that the policy was not searched on; with a note of any, if there are too few."""
    tuned = request.options.tuned
    searched = () if tuned is None else tuned.document_texts.get("search", ())

    def found(apart: Sequence[str]) -> list[list[int]]:
        return prompts_of(
            model,
            request.workload,
            request.fewest_prompts,
            most=request.prompts * max(request.batches),
            new_tokens=request.options.new_tokens,
            prompt_tokens=request.prompt_tokens,
            heads=() if request.options.heads is None else (request.options.heads,),
            apart=tuple(map(read_sketch, apart)),
        )

    try:
        return found(searched), ()
    except WorkloadError:
        if not searched:
            raise
    return found(()), (SEARCHED,)


def _measured(
    request: BenchRequest, setting: Setting, machine: Machine | None, predicted: Mapping[str, ReplayResult]
) -> BenchResult:
    """The timing at one batch size, then the answers judged and the time predicted."""
    with progress_bar(f"timing, batch {len(setting.prompts[0].ids)}") as progress:
        measured = run(
            setting,
            limits=request.limits,
            extent=request.extent,
            seed=request.seed,
            progress=progress,
        )
    with stage("judging the answers, and timing the parts of a token"):
        judged = judge_measurement(
            measured,
            machine,
            predicted=predicted,
            workload=request.workload.name,
            parts_of=PARTS_OF,
            quality=request.quality,
            seed=request.seed,
        )
    return replace(judged.bench, free_running=judged.free_running.get(setting.main.name))


def measured_in_processes(request: BenchRequest, out: Output) -> list[BenchResult]:
    """One result per batch size, each shown; the first process judges answers and predicts.

    Every process is given this one's own arguments, with a share of the seconds; the last of an option that
    is given twice counts. What the first one holds all others against, every other one does.

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
    program = [sys.executable, "-m", "offramp"]
    done = subprocess.run([*program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        what = next((line.removeprefix("offramp: ") for line in said if line.startswith("offramp: ")), "")
        raise OfframpError(
            f"a fresh process failed: {what or f'it ended with code {done.returncode}'}",
            where="offramp bench --processes",
            fix="run the same without --processes to see all that it says",
        )
