"""The stages of `offramp run`: trace, score, judge and time, then the report."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from offramp.cli.console import stage
from offramp.cli.provenance import describe_request, describe_run
from offramp.cli.run_folder import (
    POLICIES,
    SUMMARY_FILE,
    TRACES,
    claim,
    default_folder,
    require_own,
    safe_name,
)
from offramp.decoding.plain import time_plain_decoding
from offramp.errors import ModelError
from offramp.files import locked_folder, sweep_temporary_files, write_json_atomically
from offramp.models.loading import find_source, load_source
from offramp.models.model import Model
from offramp.policies.frontier import frontier
from offramp.policies.grammar import parse_policy, write_policy
from offramp.policies.results import Frontier
from offramp.policies.verdict import judge
from offramp.report.page import write_report
from offramp.report.passage import grid_from_trace, passage_from_trace, typical_document
from offramp.report.run_result import RunResult, Timing, WorkloadResult
from offramp.report.summary import summarise
from offramp.scoring.scoring import score
from offramp.tracing.plan import plan_trace, usable_context
from offramp.tracing.request import code_fingerprint, library_versions, parse_exits
from offramp.tracing.trace import Trace
from offramp.tracing.tracer import trace as trace_model
from offramp.workloads.answers import PlannedAnswer
from offramp.workloads.workload import Workload


@dataclass(frozen=True)
class RunOptions:
    """What was asked for on the command line, workloads and folder apart."""

    model: str
    tokens: int
    exits: str
    context: int | None
    document_tokens: int | None
    dtype: str
    trust_remote_code: bool
    overwrite: bool
    repair: bool


@dataclass(frozen=True)
class FinishedRun:
    """A run's result and where its page and summary lie."""

    result: RunResult
    report: Path
    summary: dict[str, Any]


def run_pipeline(options: RunOptions, workloads: Sequence[Workload], output: Path | None) -> FinishedRun:
    """Run every stage into one folder; a second run of the same request goes on where the first stopped.

    Raises InputError if the folder holds another run, and whatever the stages raise. No folder is made for
    input that is refused.
    """
    with stage("looking at the model's files"):
        source = find_source(options.model, trust_remote_code=options.trust_remote_code)
    request = {
        **{key: value for key, value in asdict(options).items() if key not in ("overwrite", "repair")},
        "model": source.identity.source,
        "model_fingerprint": source.identity.fingerprint,
        "workloads": {workload.name: workload.fingerprint for workload in workloads},
        "code": code_fingerprint(),
        "versions": library_versions(),
        "threads": torch.get_num_threads(),
    }
    folder = output or default_folder(source.name, request)
    require_own(folder, request, overwrite=options.overwrite)
    with stage(f"loading {source.name} and checking its exits"):
        model = load_source(source, dtype=options.dtype, trust_remote_code=options.trust_remote_code)
        _require_fitting(model, workloads, options)
    with locked_folder(folder):
        sweep_temporary_files(folder)
        claim(folder, request, overwrite=options.overwrite)
        results = [_one_workload(model, workload, options, folder) for workload in workloads]
        return _finish(model, results, folder)


def _require_fitting(model: Model, workloads: Sequence[Workload], options: RunOptions) -> None:
    """Refuse exits, a context and texts that do not fit the model, all before the first is traced."""
    parse_exits(options.exits, model.layers)
    context = usable_context(model, options.context)
    for workload in workloads:
        plan_trace(
            model,
            workload,
            lambda: _stand_in_answers,
            tokens=options.tokens,
            context=context,
            document_tokens=options.document_tokens,
        )


def _stand_in_answers(planned: Sequence[PlannedAnswer]) -> list[list[int]]:
    """Answers of full length, to see whether the prompts fit without asking the model."""
    return [[0] * prompt.max_new_tokens for prompt in planned]


def _one_workload(model: Model, workload: Workload, options: RunOptions, folder: Path) -> WorkloadResult:
    started = time.monotonic()
    trace_folder = folder / TRACES / safe_name(model.name) / safe_name(workload.name)
    trace = trace_model(
        model,
        workload,
        tokens=options.tokens,
        exits=options.exits,
        context=options.context,
        document_tokens=options.document_tokens,
        output=trace_folder,
        overwrite=options.overwrite,
        repair=options.repair,
    )
    verdicts = judge(trace)
    for verdict in verdicts:
        name = f"{safe_name(workload.name)}-agreement-{verdict.floor:g}.json"
        (folder / POLICIES).mkdir(exist_ok=True)
        write_policy(parse_policy(verdict.policy), folder / POLICIES / name)
    document = typical_document(trace)

    def decode(token: int) -> str:
        return model.decode([token])

    return WorkloadResult(
        name=workload.name,
        mode=workload.mode,
        trace=trace,
        card=score(trace),
        frontiers=_frontiers(trace),
        verdicts=verdicts,
        passage=passage_from_trace(trace, decode, document),
        grid=grid_from_trace(trace, decode, document),
        notes=tuple(trace.provenance["notes"]),
        trace_folder=str(trace_folder.relative_to(folder)),
        seconds=time.monotonic() - started,
    )


def _frontiers(trace: Trace) -> tuple[Frontier, ...]:
    """The rules the page draws: max_prob on every exit, a few exits and one, and all signals on a few."""
    below = [int(exit) for exit in trace.exits[:-1]]
    if not below:
        return ()
    few = tuple(sorted({below[len(below) // 2], below[len(below) * 3 // 4], below[-1]}))
    rules = [("max_prob", tuple(below)), ("max_prob", few), ("margin", few), ("entropy", few)]
    rules.append(("max_prob", (below[-1],)))
    return tuple(frontier(trace, signal, exits) for signal, exits in dict.fromkeys(rules))


def _finish(model: Model, results: Sequence[WorkloadResult], folder: Path) -> FinishedRun:
    first = results[0].trace
    measured: dict[str, Timing] = {}
    not_measured: dict[str, str] = {}
    try:
        with stage("timing plain decoding"):
            plain = time_plain_decoding(model, first.token[:32].tolist())
        timing = Timing(plain.value, plain.low, plain.high, plain.threads, plain.load)
        measured["plain_seconds_per_token"] = timing
    except ModelError as error:  # what was traced still has its answer
        not_measured["plain_decoding_not_timed"] = error.what
    result = RunResult(
        model_name=model.name,
        layers=model.layers,
        workloads=tuple(results),
        provenance={
            **describe_run(model),
            **describe_request({result.name: result.trace for result in results}),
            **not_measured,
        },
        measured=measured,
        command=shlex.join(["offramp", *sys.argv[1:]]),
    )
    report = write_report(result, folder)
    summary = summarise(result)
    write_json_atomically(folder / SUMMARY_FILE, summary)
    return FinishedRun(result, report, summary)
