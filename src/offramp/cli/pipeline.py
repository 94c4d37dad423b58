"""The stages of `offramp run`: trace, score, judge, decode; a page after each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from offramp.cli.answers import answers_of
from offramp.cli.certificates import Certifying, certify, settled
from offramp.cli.console import stage
from offramp.cli.decoding_stage import DecodingResult, decode_workloads
from offramp.cli.preparation import RUN_SIGNALS, Prepared, prepare
from offramp.cli.run_folder import (
    HEADS_FILE,
    POLICIES,
    TRACES,
    claim,
    default_folder,
    require_own,
    safe_name,
)
from offramp.cli.run_writer import FinishedRun, Writer
from offramp.costs.hardware import LOCAL, find_machine
from offramp.decoding.measurement.plain_timing import time_plain_decoding
from offramp.errors import ModelError
from offramp.files import locked_folder, sweep_temporary_files
from offramp.models.model import Model
from offramp.policies.frontier import Frontier, frontier
from offramp.policies.grammar import parse_policy, write_policy
from offramp.report.passage import grid_from_trace, passage_from_trace, typical_document
from offramp.report.run_result import RunResult, Timing, WorkloadResult
from offramp.scoring.scoring import score
from offramp.tracing.exit_heads import ExitHeads
from offramp.tracing.fitted_heads import FittedHeads
from offramp.tracing.heads_file import read_heads
from offramp.tracing.loading import find_model, load_for_tracing, read_transforms
from offramp.tracing.plan import plan_trace, usable_context
from offramp.tracing.request import code_fingerprint, library_versions, parse_exits
from offramp.tracing.trace import Trace
from offramp.tracing.tracer import trace as trace_model
from offramp.tuning.tuned import Tuned, write_tuned
from offramp.tuning.verdict import Verdict
from offramp.workloads.answers import PlannedAnswer
from offramp.workloads.workload import Workload

NOT_ASKED = ("overwrite", "repair", "decode", "decode_budget", "stream", "memory", "workloads_given")
"""Options that change how a run gets its results, not which: a folder is the same run's with any of them."""


@dataclass(frozen=True)
class RunOptions:
    """What was asked for on the command line, workloads and folder apart.

    transforms: texts of their grammar. decode_budget: seconds of the decoding, None for those of any run.
    stream, memory: as `load_for_tracing` takes them. workloads_given:
    whether the workloads were named, or are those of any run.
    """

    model: str
    tokens: int
    exits: str
    context: int | None
    document_tokens: int | None
    dtype: str
    transforms: tuple[str, ...]
    trust_remote_code: bool
    heads: Path | None
    hardware: str
    worth: float
    overwrite: bool
    repair: bool
    decode: bool
    decode_budget: float | None
    stream: bool | None
    memory: int | None
    workloads_given: bool


def run_pipeline(
    options: RunOptions,
    workloads: Sequence[Workload],
    output: Path | None,
    before_decoding: Callable[[RunResult], None] = lambda result: None,
) -> FinishedRun:
    """Run every stage into one folder; a second run of the same request goes on where the first stopped.

    before_decoding: told what is known before policies are decoded and timed, unless nothing is to be.

    Raises InputError if the folder holds another run, and whatever the stages raise. No folder is made for
    input that is refused.
    """
    given = None if options.heads is None else read_heads(options.heads)
    with stage("looking at the model's files"):
        asked = find_model(
            options.model,
            read_transforms(options.transforms, options.dtype),
            dtype=options.dtype,
            trust_remote_code=options.trust_remote_code,
        )
    if given is not None:
        asked.require_heads(given, str(options.heads))
    if options.hardware != LOCAL:
        find_machine(options.hardware)  # an unknown one is refused before the model is loaded
    request = {
        **{key: value for key, value in asdict(options).items() if key not in NOT_ASKED},
        "model": asked.source.identity.source,
        "model_fingerprint": asked.source.identity.fingerprint,
        "heads": None if given is None else given.fingerprint,
        "workloads": {workload.name: workload.fingerprint for workload in workloads},
        "code": code_fingerprint(),
        "versions": library_versions(asked.texts),
        "threads": torch.get_num_threads(),
    }
    folder = output or default_folder(asked.name, request)
    require_own(folder, request, overwrite=options.overwrite)
    with stage(f"loading {asked.name} and checking its exits"):
        required = workloads if options.workloads_given else ()
        model = load_for_tracing(asked, required, stream=options.stream, memory=options.memory)
        traceable = _traceable(model, workloads)
        _require_fitting(model, traceable, given, options)
    with locked_folder(folder):
        sweep_temporary_files(folder)
        claim(folder, request, overwrite=options.overwrite)
        return _run_stages(model, workloads, traceable, given, options, folder, before_decoding)


def _traceable(model: Model, workloads: Sequence[Workload]) -> list[Workload]:
    """The workloads that the model can be traced on: of prompts only if it is in memory to answer them."""
    return [one for one in workloads if model.streamed is None or one.mode == "text"]


def _require_fitting(
    model: Model, workloads: Sequence[Workload], given: ExitHeads | None, options: RunOptions
) -> None:
    """Refuse exits, heads, a context and texts that do not fit the model, all before the first is traced."""
    exits = parse_exits(options.exits, model.layers)
    if given is not None:
        FittedHeads.of(given, exits)
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


def _one_workload(
    model: Model, workload: Workload, options: RunOptions, prepared: Prepared, folder: Path, texts: int
) -> WorkloadResult:
    """One text traced, scored, searched, and what the search proposes certified by decoding."""
    started = time.monotonic()
    trace_folder = folder / TRACES / safe_name(model.shown_name) / safe_name(workload.name)
    trace = trace_model(
        model,
        workload,
        tokens=options.tokens,
        exits=options.exits,
        signals=RUN_SIGNALS,
        heads=prepared.heads,
        context=options.context,
        document_tokens=options.document_tokens,
        output=trace_folder,
        overwrite=options.overwrite,
        repair=options.repair,
        memory=options.memory,
        progress=True,
    )
    document = typical_document(trace)

    def decode(token: int) -> str:
        return model.decode([token])

    with stage(f"{workload.name}: scoring, and searching policies"):
        answers = answers_of(trace, prepared.machine, options.worth)
        card, frontiers = score(trace), _frontiers(trace)
    certifying = Certifying(
        model if options.decode else None, prepared.machine, prepared.heads, folder, texts
    )
    tuned = certify(certifying, workload, trace)
    verdicts = settled(answers.verdicts, tuned)
    heads_file = None if prepared.heads is None else options.heads or folder / HEADS_FILE
    _write_policies(verdicts, tuned, folder / POLICIES, safe_name(workload.name), heads_file)
    return WorkloadResult(
        name=workload.name,
        mode=workload.mode,
        trace=trace,
        card=card,
        frontiers=frontiers,
        verdicts=verdicts,
        passage=passage_from_trace(trace, decode, document),
        grid=grid_from_trace(trace, decode, document),
        notes=tuple(trace.provenance["notes"]),
        trace_folder=str(trace_folder.relative_to(folder)),
        seconds=time.monotonic() - started,
        league=answers.league,
        tuned=tuned,
        machines=answers.machines,
        break_even=answers.break_even,
        replayed=answers.verdicts,
    )


def _write_policies(
    verdicts: Sequence[Verdict], tuned: Sequence[Tuned], folder: Path, workload: str, heads_file: Path | None
) -> None:
    """The policy of every verdict, and the tuner's answer with its certificate, one file each."""
    folder.mkdir(exist_ok=True)
    for verdict in verdicts:
        write_policy(parse_policy(verdict.policy), folder / f"{workload}-agreement-{verdict.floor:g}.json")
    for one in tuned:
        write_tuned(folder / f"{workload}-tuned-{one.floor.value:g}.json", one, heads_file)


def _frontiers(trace: Trace) -> tuple[Frontier, ...]:
    """The rules the page draws: max_prob on every exit, a few exits and one, and all signals on a few."""
    below = [int(exit) for exit in trace.exits[:-1]]
    if not below:
        return ()
    few = tuple(sorted({below[len(below) // 2], below[len(below) * 3 // 4], below[-1]}))
    rules = [("max_prob", tuple(below)), ("max_prob", few), ("margin", few), ("entropy", few)]
    rules.append(("max_prob", (below[-1],)))
    return tuple(frontier(trace, signal, exits) for signal, exits in dict.fromkeys(rules))


def _run_stages(
    model: Model,
    asked: Sequence[Workload],
    workloads: Sequence[Workload],
    given: ExitHeads | None,
    options: RunOptions,
    folder: Path,
    before_decoding: Callable[[RunResult], None],
) -> FinishedRun:
    """Every stage in turn, with a page after each. workloads: those of the asked ones that can be traced."""
    writer = Writer(model, folder)
    decoding = "decoding for real"
    tracing = [f"tracing {workload.name}" for workload in workloads]
    writer.so_far("timing this machine and fitting exit heads", [*tracing, decoding])
    writer.prepared = prepared = prepare(
        model, workloads, given, options.hardware, folder, exits=options.exits
    )
    for place, workload in enumerate(workloads):
        writer.so_far(tracing[place], [*tracing[place + 1 :], decoding])
        result = _one_workload(model, workload, options, prepared, folder, len(workloads))
        writer.results.append(result)
    writer.so_far(decoding, [])
    if options.decode:
        before_decoding(writer.result(None))
        writer.decoding = decode_workloads(
            model,
            workloads,
            writer.results,
            prepared,
            folder,
            again=options.overwrite,
            budget=options.decode_budget,
        )
    else:
        writer.decoding = DecodingResult(
            (), {workload.name: "--no-decode was given" for workload in workloads}
        )
    writer.decoding = _with_left_out(writer.decoding, [one for one in asked if one not in workloads])
    writer.settle()
    _time_plain(model, writer)
    return writer.finished()


def _with_left_out(decoding: DecodingResult, left_out: Sequence[Workload]) -> DecodingResult:
    """What was decoded, and why workloads that could not be traced were not."""
    why = (
        "it was not traced either: its prompts need answers, and a model whose layers stay on disk would "
        "read all of them for every new token"
    )
    return replace(decoding, missing={**decoding.missing, **{workload.name: why for workload in left_out}})


def _time_plain(model: Model, writer: Writer) -> None:
    """Seconds per token of plain decoding, of the decoding's own measurement if there is one."""
    name = "plain_seconds_per_token"
    for decoded in writer.decoding.decoded:
        timed = decoded.bench.contender(decoded.bench.plain).seconds_per_token
        around = decoded.bench.circumstances
        if timed is not None:
            load = float(around["load_average"][0])
            writer.measured[name] = Timing(timed.value, timed.low, timed.high, int(around["threads"]), load)
            return
    try:
        with stage("timing plain decoding"):
            plain = time_plain_decoding(model, writer.results[0].trace.token[:32].tolist())
        writer.measured[name] = Timing(plain.value, plain.low, plain.high, plain.threads, plain.load)
    except ModelError as error:  # what was traced still has its answer
        writer.missing["plain_decoding_not_timed"] = error.what
