"""`offramp bench`: a policy timed beside plain decoding, with the prediction beside what was measured."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offramp.cli.console import Output, stage
from offramp.cli.options import AsJson, HeadsFile, ModelName, Precision, RemoteCode

if TYPE_CHECKING:
    from offramp.cli.bench_request import BenchRequest
    from offramp.costs.machine import Machine
    from offramp.decoding.bench.contenders import Setting
    from offramp.decoding.bench.results import BenchResult, TaskScore
    from offramp.models.model import Model
    from offramp.policies.results import ReplayResult

Progress = Callable[[int, int], None]


def bench(
    policy: Annotated[
        str, typer.Option("--policy", "-p", help="static:exit=20, threshold:signal=... or a policy.json.")
    ],
    model: ModelName = "smollm2",
    kv: Annotated[
        str | None,
        typer.Option(
            "--kv",
            help="Skipped layers' K and V: propagate (default unless tuned), recompute, speculate, monotone.",
            show_default=False,
        ),
    ] = None,
    heads: HeadsFile = None,
    workload: Annotated[
        str, typer.Option("--workload", "-w", help="Where prompts come from: the starts of its documents.")
    ] = "prose",
    prompts: Annotated[int, typer.Option("--prompts", help="How many prompts.")] = 2,
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", help="Tokens of each document's start that make a prompt.")
    ] = 64,
    new_tokens: Annotated[int, typer.Option("--new-tokens", help="New tokens after each prompt.")] = 128,
    rounds: Annotated[int, typer.Option("--rounds", help="How often each contender decodes a prompt.")] = 6,
    seconds: Annotated[
        float | None,
        typer.Option("--seconds", help="Stop the rounds about then.", min=0.0, show_default=False),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option("--batch", help="Prompts decoded side by side; may be given again. [default: 1]"),
    ] = None,
    batching: Annotated[
        str | None,
        typer.Option(
            "--batching",
            help="How rows of a batch leave: lockstep (the default) or rebatch.",
            show_default=False,
        ),
    ] = None,
    draft_length: Annotated[
        str | None,
        typer.Option(
            "--draft-length",
            help="With --kv speculate: tokens drafted before a verification at most, or auto. 4 by default.",
            show_default=False,
        ),
    ] = None,
    no_peers: Annotated[
        bool, typer.Option("--no-peers", help="Leave out what users would pick instead.")
    ] = False,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help="Accuracy on a task: multiple-choice, reasoning-gym, human-eval."),
    ] = None,
    questions: Annotated[
        int | None,
        typer.Option("--questions", help="Questions of each task. By default 32.", show_default=False),
    ] = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Let human-eval run code that the model writes.")
    ] = False,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", help="Predict from this trace, before the timing.", show_default=False),
    ] = None,
    hardware: Annotated[
        str | None,
        typer.Option(
            "--hardware",
            help="Predict with this profile. By default local, if this model was measured here.",
            show_default=False,
        ),
    ] = None,
    quality: Annotated[
        bool, typer.Option("--quality/--no-quality", help="Judge the answers by the full model.")
    ] = True,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write everything to a .json file.", show_default=False),
    ] = None,
    seed: Annotated[
        int,
        typer.Option("--seed", help="Of the order of turns, of questions, and of the quality's intervals."),
    ] = 0,
    dtype: Precision = "float32",
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Time a policy's decoding beside plain generate() and others, and say whether the timing is valid."""
    from offramp.cli.bench_request import read_request

    out = Output(as_json)
    request = read_request(
        policy=policy,
        kv=kv,
        heads=heads,
        workload=workload,
        prompts=prompts,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        rounds=rounds,
        seconds=seconds,
        batches=tuple(batch or [1]),
        batching=batching,
        draft_length=draft_length,
        peers=not no_peers,
        tasks=tuple(task or ()),
        questions=questions,
        allow_code=allow_code,
        trace=trace,
        hardware=hardware,
        quality=quality,
        output=output,
        seed=seed,
        dtype=dtype,
    )
    from offramp.decoding.bench.result_file import to_json, write_results
    from offramp.models.loading import load_model

    with stage("loading the model and checking its exits"):
        loaded = load_model(model, dtype=dtype, trust_remote_code=trust_remote_code)
    results = _results(loaded, request, out)
    if output is not None:
        write_results(output, results)
        out.console.print(f"written: {output}", markup=False, soft_wrap=True)
    valid = all(result.validity == "VALID" for result in results)
    out.finish(
        {
            "validity": "VALID" if valid else "INVALID",
            "results": [to_json(result) for result in results],
            "file": None if output is None else str(output),
        }
    )


def _results(model: Model, request: BenchRequest, out: Output) -> list[BenchResult]:
    """One result per batch size, each shown as soon as it is there; tasks belong to the first."""
    from offramp.cli.bench_table import show
    from offramp.decoding.bench.prompts import prompts_of

    prompts = prompts_of(
        model,
        request.workload,
        max(request.prompts, *request.batches),
        new_tokens=request.new_tokens,
        prompt_tokens=request.prompt_tokens,
        heads=request.heads,
    )
    settings = [request.setting(model, prompts, batch) for batch in request.batches]
    machines = [request.machine_for(setting) for setting in settings]
    predictions = [
        request.predictions(setting, machine)
        for setting, (machine, _) in zip(settings, machines, strict=True)
    ]
    # First, since a task that does not fit the model fails: no timing is lost by that.
    tasks = _task_scores(model, request)
    results: list[BenchResult] = []
    for setting, (machine, notes), predicted in zip(settings, machines, predictions, strict=True):
        result = _measured(request, setting, machine, predicted)
        result = replace(result, notes=(*result.notes, *notes), tasks=() if results else tasks)
        show(out.console, result)
        results.append(result)
    return results


def _measured(
    request: BenchRequest, setting: Setting, machine: Machine | None, predicted: Mapping[str, ReplayResult]
) -> BenchResult:
    """The timing at one batch size, then the answers judged and the time predicted."""
    from offramp.decoding.bench.bench import run
    from offramp.decoding.bench.beside import forecasts_of, free_running_of

    with _bar(f"timing, batch {len(setting.prompts[0].ids)}") as progress:
        measured = run(
            setting,
            rounds=request.rounds,
            peers=request.peers,
            budget_seconds=request.seconds,
            seed=request.seed,
            progress=progress,
        )
    result, cell = measured.result, setting.cells[0]
    agreement = {}
    if request.quality:
        with stage("judging the answers by the full model"):
            quality = free_running_of(measured, cell, seed=request.seed)
        result = replace(result, free_running=quality)
        agreement[cell.name] = quality.agreement.value
    if machine is not None:
        with stage("timing the parts of a token"):
            forecasts = forecasts_of(
                measured, machine, predicted=predicted, workload=request.workload.name, agreement=agreement
            )
        result = replace(result, forecasts=forecasts)
    return result


def _task_scores(model: Model, request: BenchRequest) -> tuple[TaskScore, ...]:
    from offramp.decoding.quality.accuracy import task_score

    scores = []
    for task in request.tasks:
        with _bar(f"asking {task.name}") as progress:
            scores.append(
                task_score(
                    model,
                    request.policy,
                    task,
                    kv=request.kv,
                    heads=request.heads,
                    questions=request.questions,
                    seed=request.seed,
                    batching=request.batching,
                    draft_length=request.draft_length,
                    progress=progress,
                )
            )
    return tuple(scores)


@contextmanager
def _bar(description: str) -> Iterator[Progress]:
    """A progress bar on standard error, on a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(file=sys.stderr, emoji=False), transient=True) as bar:
        shown = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(shown, completed=done, total=total)
