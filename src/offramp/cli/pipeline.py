"""The stages of `offramp run`: trace, score, judge and time, then the report."""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from offramp.cli.provenance import describe_run
from offramp.decoding.plain import time_plain_decoding
from offramp.errors import InputError
from offramp.files import (
    canonical_json,
    locked_folder,
    sha256_of_text,
    sweep_temporary_files,
    write_json_atomically,
)
from offramp.models.loading import find_source, load_model
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
from offramp.tracing.trace import Trace
from offramp.tracing.tracer import trace as trace_model
from offramp.workloads.workload import Workload

RUN_FILE = "run.json"
SUMMARY_FILE = "summary.json"


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

    Raises InputError if the folder holds another run, and whatever the stages raise.
    """
    source = find_source(options.model, trust_remote_code=options.trust_remote_code)
    request = {
        **{key: value for key, value in asdict(options).items() if key not in ("overwrite", "repair")},
        "model_fingerprint": source.identity.fingerprint,
        "workloads": {workload.name: workload.fingerprint for workload in workloads},
    }
    key = sha256_of_text(canonical_json(request))[:8]
    folder = output or Path("runs") / f"{safe_name(source.name)}-{key}"
    with locked_folder(folder):
        sweep_temporary_files(folder)
        _claim(folder, request, overwrite=options.overwrite)
        model = load_model(options.model, dtype=options.dtype, trust_remote_code=options.trust_remote_code)
        results = [_one_workload(model, workload, options, folder) for workload in workloads]
        return _finish(model, results, folder)


def safe_name(name: str) -> str:
    """A name that is good for a folder; a name that had to be changed keeps a key of the original."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[-60:] or "model"
    return safe if safe == name else f"{safe}-{sha256_of_text(name)[:6]}"


def _claim(folder: Path, request: dict[str, Any], *, overwrite: bool) -> None:
    """Make sure that the folder is new or belongs to this very request."""
    path = folder / RUN_FILE
    known = path.read_text(encoding="utf-8") if path.exists() else None
    occupied = any(entry.name != ".lock" for entry in folder.iterdir())
    same = known is not None and known == _run_text(request)
    if occupied and not same and not overwrite:
        what = "holds another run" if known is not None else "holds files that are not a run"
        raise InputError(
            f"the output folder {what}",
            where=str(folder),
            fix="choose another folder with -o" + (", or give --overwrite" if known is not None else ""),
        )
    if occupied and not same and known is None:
        raise InputError(
            "the output folder holds files that are not a run, and --overwrite replaces runs only",
            where=str(folder),
            fix="choose another folder with -o",
        )
    write_json_atomically(path, request)


def _run_text(request: dict[str, Any]) -> str:
    import json

    return json.dumps(request, indent=1, sort_keys=True, allow_nan=False) + "\n"


def _one_workload(model: Model, workload: Workload, options: RunOptions, folder: Path) -> WorkloadResult:
    started = time.monotonic()
    trace_folder = folder / "traces" / safe_name(model.name) / safe_name(workload.name)
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
        (folder / "policies").mkdir(exist_ok=True)
        write_policy(parse_policy(verdict.policy), folder / "policies" / name)
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
    plain = time_plain_decoding(model, first.token[:32].tolist())
    timing = Timing(plain.value, plain.low, plain.high, plain.threads, plain.load)
    result = RunResult(
        model_name=model.name,
        layers=model.layers,
        workloads=tuple(results),
        provenance=describe_run(model),
        measured={"plain_seconds_per_token": timing},
        command=shlex.join(["offramp", *sys.argv[1:]]),
    )
    report = write_report(result, folder)
    summary = summarise(result)
    write_json_atomically(folder / SUMMARY_FILE, summary)
    return FinishedRun(result, report, summary)
