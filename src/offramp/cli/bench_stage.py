"""What `offramp bench` does with the loaded model: times, judges the answers, and prices what ran."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from offramp.cli.bench_request import Bench
from offramp.cli.bench_table import show
from offramp.cli.console import Output
from offramp.cli.local_profile import kept_profile, profile_now
from offramp.commands import words_of
from offramp.costs.machine import Machine, machine_prices
from offramp.decoding.openings import prompts_of
from offramp.decoding.rerun.sequences import require_model
from offramp.errors import InputError, OfframpError, WorkloadError
from offramp.kit.typed import to_json
from offramp.models.model import Model
from offramp.policies.replay import ReplayResult
from offramp.timing.bench import run, settle
from offramp.timing.contenders import Extent
from offramp.timing.decoder import Setting
from offramp.timing.forecast import expected_position
from offramp.timing.judged import judge_measurement, predict_cells
from offramp.timing.local_profile import LocalProfile
from offramp.timing.processes import merged
from offramp.timing.results import (
    BenchResult,
    contenders_json,
    read_results,
    write_results,
)
from offramp.tracing.progress import progress_bar, stage
from offramp.workloads.shared_text import read_sketch

PARTS_OF = 2
"""Batches of prompts on which the parts of a policy's tokens are timed."""

SEARCHED = "prompts are of documents that the policy was searched on, too: there are not so many others"


def time_and_show(asked: Bench, out: Output) -> None:
    """Time what was asked for, show it, and keep it where that was asked for."""
    if asked.processes > 1:
        results = measured_in_processes(asked, out)
    else:
        results = measured_results(asked.load(), asked, out)
    if asked.output is not None:
        write_results(asked.output, results)
        out.say(f"written: {asked.output}")
    out.finish(
        {
            "answer": results[0].answer,
            "contenders": contenders_json(results[0]),
            "results": [to_json(result) for result in results],
            "file": None if asked.output is None else str(asked.output),
        }
    )


def measured_results(model: Model, asked: Bench, out: Output) -> list[BenchResult]:
    """One result per batch size, each shown as soon as it is there."""
    prompts, seen = prompts_for(model, asked)
    settings = [setting_of(model, asked, prompts, batch) for batch in asked.batches]
    machines = machines_for(asked, settings)
    predictions = [
        predictions_of(asked, setting, machine)
        for setting, (machine, _) in zip(settings, machines, strict=True)
    ]
    results: list[BenchResult] = []
    for setting, (machine, notes), predicted in zip(settings, machines, predictions, strict=True):
        result = _measured(asked, setting, machine, predicted)
        result = replace(result, notes=(*result.notes, *seen, *notes))
        show(out.console, result)
        results.append(result)
    return results


def prompts_for(model: Model, asked: Bench) -> tuple[list[list[int]], tuple[str, ...]]:
    """Prompts of documents that the policy was not searched on; with a note of any, if there are too few."""
    tuned = asked.options.tuned
    searched = () if tuned is None else tuned.document_texts.get("search", ())

    def found(apart: Sequence[str]) -> list[list[int]]:
        return prompts_of(
            model,
            asked.text,
            asked.fewest_prompts,
            most=asked.most_prompts * max(asked.batches),
            new_tokens=asked.options.new_tokens,
            prompt_tokens=asked.prompt_tokens,
            heads=() if asked.options.heads is None else (asked.options.heads,),
            apart=tuple(map(read_sketch, apart)),
        )

    try:
        return found(searched), ()
    except WorkloadError:
        if not searched:
            raise
    return found(()), (SEARCHED,)


def setting_of(model: Model, asked: Bench, prompts: list[list[int]], batch: int) -> Setting:
    """What is timed at one batch size: so many batches of prompts as were asked for, if there are enough.

    Raises InputError for what does not fit the model.
    """
    own = prompts[: asked.most_prompts * batch]
    return settle(model, [asked.options], prompts=own, batch=batch, task=asked.text.name)


def machines_for(asked: Bench, settings: Sequence[Setting]) -> list[tuple[Machine | None, tuple[str, ...]]]:
    """The profile that each setting's time is predicted with, or None; and what must be said of it.

    settings: of one model. Kept timings are held against a few plain tokens first, once for all.

    Raises InputError if there is none though it, or a prediction from a trace, was asked for.
    """
    model = settings[0].model
    notes: tuple[str, ...] = ()
    if asked.timing_only:
        return [(None, ())] * len(settings)
    try:
        machine = asked.machine
        if machine is None:
            timed = _timed(model, asked)
            machine, notes = timed.profile, (f"the machine: {timed.note}",)
    except InputError as error:
        return [(None, _nothing_predicted(asked, error))] * len(settings)
    found: list[tuple[Machine | None, tuple[str, ...]]] = []
    for setting in settings:
        try:
            batch = len(setting.prompts[0].ids)
            machine_prices(machine, model.shape, expected_position(setting), batch=batch)
            found.append((machine, notes))
        except InputError as error:
            found.append((None, _nothing_predicted(asked, error)))
    return found


def _timed(model: Model, asked: Bench) -> LocalProfile:
    """This machine's timings of the model: its run's own, or the kept ones. Raises InputError."""
    own = asked.timings
    made = None if own is None else (own.details["model"]["fingerprint"], own.dtype)
    if made == (model.identity.fingerprint, model.dtype):
        return profile_now(model, own)
    return kept_profile(model)


def _nothing_predicted(asked: Bench, error: InputError) -> tuple[str, ...]:
    """Why, as a note; raises the error if a prediction was asked for."""
    if asked.hardware is not None or asked.trace is not None:
        raise error
    return (f"nothing is predicted: {error.what} ({error.fix})",)


def predictions_of(asked: Bench, setting: Setting, machine: Machine | None) -> Mapping[str, ReplayResult]:
    """What the trace predicts, by the cell's name; nothing without a trace.

    Raises InputError for a trace of another model, or one that the policy cannot be replayed on.
    """
    if asked.traced is None or machine is None:
        return {}
    require_model(setting.model, asked.traced)
    return predict_cells(setting, asked.traced, machine)


def _measured(
    asked: Bench, setting: Setting, machine: Machine | None, predicted: Mapping[str, ReplayResult]
) -> BenchResult:
    """The timing at one batch size, then the answers judged and the time predicted."""
    with progress_bar(f"timing, batch {len(setting.prompts[0].ids)}") as progress:
        measured = run(
            setting,
            limits=asked.limits,
            extent=Extent(peers=not asked.no_peers, plain=asked.plain),
            seed=asked.seed,
            progress=progress,
        )
    with stage("judging the answers, and timing the parts of a token"):
        judged = judge_measurement(
            measured,
            machine,
            predicted=predicted,
            parts_of=PARTS_OF,
            quality=asked.quality and not asked.timing_only,
            seed=asked.seed,
        )
    return replace(judged.result, free_running=judged.free_running.get(setting.main.name))


def measured_in_processes(asked: Bench, out: Output) -> list[BenchResult]:
    """One result per batch size, each shown; the first process judges answers and predicts.

    Every process is asked for the same, with a share of the seconds. What the first one holds all others
    against, every other one does.

    Raises OfframpError if a process fails, with what it said.
    """
    measured: list[tuple[BenchResult, ...]] = []
    with tempfile.TemporaryDirectory(prefix="offramp-bench-") as folder:
        for place in range(asked.processes):
            path = Path(folder) / f"{place}.json"
            own = {
                **asked.given(),
                "processes": 1,
                "seconds": asked.seconds / asked.processes,
                "to_the_end": True,
                "seed": asked.seed + place,
                "output": path,
            }
            if measured:
                own |= {"plain": measured[0][0].plain, "timing_only": True}
            # Every digit of a number.
            own = {name: repr(value) if isinstance(value, float) else value for name, value in own.items()}
            with stage(f"timing in process {place + 1} of {asked.processes}"):
                _run(["bench", *words_of(asked.model, **own)])
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
