"""What `offramp bench` does with the loaded model: times, judges, prices, and shows what came of it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from offramp.cli.bench import Bench
from offramp.cli.command import Output
from offramp.commands import words_of
from offramp.costs.machine import Machine, machine_prices
from offramp.decoding.openings import prompts_of
from offramp.decoding.options import check_exits
from offramp.decoding.rerun.trace_sequences import require_model
from offramp.errors import InputError, OfframpError, WorkloadError
from offramp.kit.output_file import clear_for
from offramp.kit.typed import to_json
from offramp.models.model import Model
from offramp.policies.replay import ReplayResult
from offramp.report import combined
from offramp.report.answer_words import quality_words
from offramp.report.combined import advice, combinations_table, credit_sentences, write_combined_page
from offramp.report.formats import (
    counted,
    decimal,
    duration,
    gain_text,
    percent,
    thousandths,
    timed_text,
)
from offramp.report.sections.decoded import COUNTS, RATES, SPEED, contenders_table
from offramp.report.timing import (
    a_a_text,
    answer_sentence,
    counted_text,
    defect_lines,
    floor_text,
    stopped_text,
)
from offramp.timing.accelerations import read_accelerations, read_beside
from offramp.timing.bench import judge_measurement, merged, predict_cells, run, settle, text_quality_of
from offramp.timing.combine import combine
from offramp.timing.contenders import WITHOUT_PEERS, Extent
from offramp.timing.decoder import Setting
from offramp.timing.forecast import expected_position
from offramp.timing.local_profile import LocalProfile, kept_profile, profile_now
from offramp.timing.results import (
    COMBINED,
    RESULTS,
    BenchResult,
    CombineResult,
    Forecast,
    contenders_json,
)
from offramp.timing.stopping import Budget
from offramp.tracing.progress import progress_bar, stage
from offramp.workloads.shared_text import read_sketch

if TYPE_CHECKING:
    from rich.console import Console


PARTS_OF = 2
"""Batches of prompts on which the parts of a policy's tokens are timed."""

SEARCHED = "prompts are of documents that the policy was searched on, too: there are not so many others"


def time_and_show(asked: Bench, out: Output) -> None:
    """Time what was asked for, show it, and keep it where that was asked for."""
    if asked.processes > 1:
        results = measured_in_processes(asked, out)
    else:
        results = measured_results(asked.load(asked.text), asked, out)
    if asked.output is not None:
        clear_for(asked.output, asked.require_own)
        RESULTS.write(asked.output, tuple(results))
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
    # All from the loaded model on is in the seconds, of which every batch size has its share.
    share = asked.seconds / len(asked.batches)
    budget = Budget(share)
    prompts, seen = prompts_for(model, asked)
    settings = [setting_of(model, asked, prompts, batch) for batch in asked.batches]
    machines = machines_for(asked, settings)
    predictions = [
        predictions_of(asked, setting, machine)
        for setting, (machine, _) in zip(settings, machines, strict=True)
    ]
    results: list[BenchResult] = []
    for setting, (machine, notes), predicted in zip(settings, machines, predictions, strict=True):
        result = _measured(asked, setting, machine, predicted, budget)
        budget = Budget(share)
        result = replace(result, notes=(*result.notes, *seen, *notes))
        show(out.console, result)
        results.append(result)
    return results


def prompts_for(model: Model, asked: Bench) -> tuple[list[Sequence[int]], tuple[str, ...]]:
    """Prompts of documents that the policy was not searched on; with a note of any, if there are too few."""
    tuned = asked.options.tuned
    searched = () if tuned is None else tuned.document_texts.get("search", ())

    def found(apart: Sequence[str]) -> list[Sequence[int]]:
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


def setting_of(model: Model, asked: Bench, prompts: list[Sequence[int]], batch: int) -> Setting:
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
    asked: Bench,
    setting: Setting,
    machine: Machine | None,
    predicted: Mapping[str, ReplayResult],
    budget: Budget,
) -> BenchResult:
    """The timing at one batch size, then the answers judged and the time predicted."""
    beside = read_beside(asked.beside, setting.model.dtype)
    extent = replace(WITHOUT_PEERS if asked.no_peers else Extent(), plain=asked.plain, beside=beside)
    judging = asked.quality and not asked.timing_only
    with progress_bar(f"timing, batch {len(setting.prompts[0].ids)}") as progress:
        measured = run(
            setting,
            limits=replace(asked.limits, seconds=budget.seconds),
            extent=extent,
            seed=asked.seed,
            progress=progress,
            budget=budget,
            judged=judging,
            parts_of=0 if machine is None else PARTS_OF,
            machine=machine,
        )
    with stage("judging the answers, and timing the parts of a token"):
        judged = judge_measurement(
            measured,
            machine,
            predicted=predicted,
            parts_of=PARTS_OF,
            quality=judging,
            seed=asked.seed,
        )
    return replace(
        judged.result,
        free_running=judged.free_running.get(setting.main.name),
        text_quality=text_quality_of(judged, asked.text, seed=asked.seed) if judging else None,
    )


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
            measured.append(RESULTS.read(path))
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


def show(console: Console, result: BenchResult) -> None:
    """The answer, the tables beside it, quality, forecasts and notes."""
    side_by_side = f", batch {result.batch} in {result.batching}" if result.batch > 1 else ""
    fresh = f" in {result.processes} processes" if result.processes > 1 else ""
    console.print(
        f"{result.policy} ({result.kv}) on {result.model}: {counted(result.prompts, 'prompt')}, "
        f"{result.new_tokens} new tokens, {counted(result.rounds, 'round')}{side_by_side}{fresh}",
        markup=False,
    )
    timed = [contender for contender in result.contenders if contender.left_out is None]
    table = contenders_table(result.worth, result.plain)
    for names in (SPEED, COUNTS, RATES):
        console.print(table.only(*names).rich(timed))
    judged = answer_lines(result)
    for line in (*judged, *_left_out(result), *_quality(result)):
        console.print(line, markup=False)
    for forecast in result.forecasts:
        for line in _forecast(forecast):
            console.print(line, markup=False)
    for note in result.notes:
        console.print(f"note: {note}", markup=False)


def answer_lines(result: BenchResult) -> list[str]:
    """The answer, what it stands on, and what is wrong with it."""
    main = result.main
    beside = counted_text(main, result.contender(result.plain))
    return [
        answer_sentence(main, result.plain, result.worth),
        *([] if beside is None else [f"counted, a token: {beside}"]),
        *([] if main.gain is None else [f"its gain by prices: {gain_text(main.gain)} of plain decoding"]),
        *_credit_line(result),
        *([] if result.floor is None else [floor_text(result.floor, result.prompts)]),
        f"{stopped_text(result.stopped, result.seconds_spent)}; the plain decoder against itself: "
        f"{a_a_text(result.a_a)}",
        *defect_lines(result.defects),
    ]


def _credit_line(result: BenchResult) -> list[str]:
    """What its exits add to the best decoder without them, and which of those took no turns."""
    credit = result.credit(result.main.name, None if result.floor is None else result.floor.value)
    if credit is None or result.main.full_depth:
        return []
    missing = result.untimed_rivals
    said = timed_text(credit, thousandths)
    rest = f"; not timed: {', '.join(missing)}" if missing else ""
    return [f"what its exits add: {said} of {credit.over}, the best without exits{rest}"]


def _left_out(result: BenchResult) -> list[str]:
    return [
        f"left out: {contender.name}: {contender.left_out}"
        for contender in result.contenders
        if contender.left_out is not None
    ]


def _quality(result: BenchResult) -> list[str]:
    found = result.free_running
    if found is None:
        return []

    def nats(value: float) -> str:
        return decimal(value, 3)

    diverged = timed_text(found.tokens_before_divergence, lambda value: decimal(value, 1))
    written = result.text_quality
    return [
        *([] if written is None else [quality_words(written)]),
        f"free running, {counted(found.prompts, 'answer')}: {diverged} tokens until an answer parts from the "
        f"full model's, {timed_text(found.sequence_match, percent)} of the answers equal, "
        f"{timed_text(found.agreement, percent)} of the tokens its choice; "
        f"NLL {timed_text(found.nll, nats)}, of its own answers {timed_text(found.plain_nll, nats)}",
    ]


def _forecast(found: Forecast) -> list[str]:
    predicted = (
        "not predicted (no --trace)" if found.predicted is None else f"predicted {duration(found.predicted)}"
    )
    lines = [
        f"a token of {found.policy} ({found.kv}): {predicted}, priced from what ran "
        f"{duration(found.priced)}, measured {timed_text(found.measured, duration)}; plain: "
        f"{duration(found.plain_predicted)} by the profile, measured {duration(found.plain_measured)}"
    ]
    if found.parts:
        parts = ", ".join(
            f"{part.part} {duration(part.priced)} priced and {duration(part.measured)} measured"
            for part in found.parts
        )
        lines.append(f"  its parts: {parts}")
    return lines


def show_combined(console: Console, result: CombineResult) -> None:
    """Speed and quality of every combination, defects and notes, and the advice last."""
    on = f" on {result.workload}" if result.workload else ""
    console.print(
        f"{', '.join(result.accelerations.values())} of {result.model}{on}: "
        f"{counted(result.prompts, 'prompt')}, {result.new_tokens} new tokens, "
        f"{counted(result.rounds, 'round')}",
        markup=False,
    )
    timed = [combination for combination in result.combinations if combination.speedup is not None]
    table = combinations_table(result)
    together = [combination for combination in timed if combination.product is not None]
    console.print(table.only(*combined.SPEED).rich(timed))
    console.print(combined.PRODUCTS.only(*combined.TOGETHER).rich(together))
    console.print(table.only(*combined.QUALITY).rich(timed))
    ended = (
        f"{stopped_text(result.stopped, result.seconds_spent)}; the plain decoder against itself: "
        f"{a_a_text(result.a_a)}"
    )
    lines = [ended, *defect_lines(result.defects), *_details(result)]
    for line in (*lines, *credit_sentences(result), advice(result)):
        console.print(line, markup=False)


def _details(result: CombineResult) -> list[str]:
    """What was left out or excluded, and notes."""
    missing = [
        f"left out: {combination.name}: {combination.contender.left_out}"
        for combination in result.combinations
        if combination.contender.left_out is not None
    ]
    excluded = [f"not combined: {sentence}" for sentence in result.excluded]
    return [*missing, *excluded, *(f"note: {note}" for note in result.notes)]


def combine_and_show(asked: Bench, out: Output) -> None:
    """Time what was asked for, show it, and keep it where that was asked for."""
    with stage("loading the model and checking its exits"):
        found = asked.find(asked.model)
        found.require_fitting([asked.text])
        read_accelerations(asked.combine, found.dtype)
        check_exits(asked.options.policy, found)
        model = found.load()
    result = _combined(model, asked)
    show_combined(out.console, result)
    file, page = asked.combined_file, None
    if file is not None:
        clear_for(file, asked.require_own)
        COMBINED.write(file, result)
        page = write_combined_page(result, file.with_suffix(".html"))
        out.say(f"written: {file}", f"written: {page}")
    out.finish(
        {
            "advice": advice(result),
            "defects": list(result.defects),
            "credits": {name: asdict(credit) for name, credit in result.credits.items()},
            "result": to_json(result),
            "file": None if file is None else str(file),
            "page": None if page is None else str(page),
        }
    )


def _combined(model: Model, asked: Bench) -> CombineResult:
    budget = Budget(asked.seconds)
    prompts = prompts_of(
        model,
        asked.text,
        asked.fewest_prompts,
        most=asked.most_prompts,
        new_tokens=asked.new_tokens,
        prompt_tokens=asked.prompt_tokens,
        heads=asked.fitted,
    )
    with progress_bar("timing combinations") as progress:
        return combine(
            model,
            asked.combine,
            asked.options,
            prompts=prompts,
            heads=asked.fitted,
            limits=asked.limits,
            plain=asked.plain,
            workload=asked.text.name,
            floor=asked.least_agreement,
            seed=asked.seed,
            progress=progress,
            budget=budget,
        )
