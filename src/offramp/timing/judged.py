"""Measured policies judged: what a profile predicts, and what the full model says of their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from offramp.costs.machine import Machine
from offramp.decoding.free_running import FreeRunning
from offramp.decoding.judging import Judgements, free_running
from offramp.errors import InputError
from offramp.kit.defaults import SEED
from offramp.policies.replay import ReplayResult
from offramp.scoring.estimate import Estimate
from offramp.timing.bench import Measurement
from offramp.timing.contenders import NEVER, decode_timed
from offramp.timing.decoder import DecodedBatch, Setting
from offramp.timing.forecast import adapts, fitted_of, forecast, predict, records_of
from offramp.timing.results import A_A, PLAIN, BenchResult, Contender, FloorCheck, Forecast
from offramp.tracing.trace import Trace, with_maps


def predict_cells(
    setting: Setting, trace: Trace, machine: Machine, *, where_possible: bool = False
) -> Mapping[str, ReplayResult]:
    """Every policy of a setting replayed on a trace, by the cell's name; to be asked before the timing.

    Drafts whose length adapts itself are not replayed: what they would be is known only when they are made.
    where_possible: leave out a policy that cannot be replayed (an exit that was not traced, a probe without a
    price).

    Raises PolicyError and InputError as `predict` does.
    """
    found = {}
    for cell in setting.cells:
        if adapts(cell):
            continue
        # The decoder's maps, which the trace need not have been made with: its facts are the same.
        seen = trace if not fitted_of(cell).maps or cell.heads is None else with_maps(trace, cell.heads)
        try:
            found[cell.name] = predict(seen, setting, cell, machine)
        except InputError:
            if not where_possible:
                raise
    return found


def forecasts_of(
    measurement: Measurement,
    machine: Machine,
    *,
    predicted: Mapping[str, ReplayResult] | None = None,
    parts_of: int | None = None,
) -> dict[str, Forecast]:
    """The forecast of every policy that was timed, by the cell's name.

    Its parts are timed now, in one decoding of each batch.

    predicted: what `predict_cells` said before, None to price only what ran. parts_of: of how many batches of
    prompts parts are timed, None for all.

    Raises InputError if the machine cannot price what ran.
    """
    setting, judged = measurement.setting, measurement.free_running
    records = {name: records_of(list(batches.values())) for name, batches in measurement.decoded.items()}
    return {
        cell.name: forecast(
            setting,
            cell,
            machine,
            records[cell.name],
            records[NEVER],
            measured=measurement.seconds_of(cell.name),
            plain_measured=measurement.seconds_of(NEVER).value,
            fastest_plain=measurement.seconds_of(measurement.result.plain).value,
            predicted=(predicted or {}).get(cell.name),
            timed=[decode_timed(setting, cell, batch) for batch in setting.prompts[:parts_of]],
            measured_agreement=judged[cell.name].agreement.value if cell.name in judged else None,
        )
        for cell in setting.cells
        if cell.name in records
    }


def prompts_and_answers(
    setting: Setting, decoded: Mapping[int, DecodedBatch]
) -> tuple[list[list[int]], list[tuple[int, ...]]]:
    """Every prompt that was decoded, and its answer; those that filled up the last batch are left out."""
    places = sorted(decoded)
    prompts = [
        ids[kept.bool()].tolist()
        for place in places
        for ids, kept in zip(setting.prompts[place].ids, setting.prompts[place].mask, strict=True)
    ]
    filled = len(setting.prompts) * setting.batch - setting.distinct
    count = len(prompts) - (filled if places[-1] == len(setting.prompts) - 1 else 0)
    return prompts[:count], [tokens for place in places for tokens in decoded[place].tokens][:count]


def free_running_of(
    setting: Setting,
    own: Mapping[int, DecodedBatch],
    plain: Mapping[int, DecodedBatch],
    *,
    seed: int = SEED,
    known: Judgements | None = None,
) -> FreeRunning:
    """How good answers are, judged by the full model of a setting.

    own, plain: what a contender and the plain decoder decoded, by batch of prompts. known: as `free_running`
    takes it.
    """
    prompts, answers = prompts_and_answers(setting, own)
    whole = prompts_and_answers(setting, {place: plain[place] for place in own})[1]
    return free_running(setting.model, prompts, answers, whole, seed=seed, known=known)


def judged_answers(measurement: Measurement, *, seed: int = SEED) -> dict[str, FreeRunning]:
    """`free_running_of` whatever may have lost something, by name.

    Every policy that was timed, and what is without exits but not equal to the full model.
    """
    known: Judgements = {}
    result, decoded = measurement.result, measurement.decoded
    cells = [cell.name for cell in measurement.setting.cells]
    others = [
        one.name
        for one in result.contenders
        if one.full_depth and one.name not in cells and one.same_output != 1.0
    ]
    return {
        name: free_running_of(
            measurement.setting, decoded[name], decoded[result.plain], seed=seed, known=known
        )
        for name in (*cells, *others)
        if name in decoded
    }


def with_agreement(result: BenchResult, setting: Setting, quality: Mapping[str, FreeRunning]) -> BenchResult:
    """The result with the executed agreement of every contender where it is known, and of its floor.

    quality: of policies' answers, by name. It is 1 for plain decoders, and for peers that gave the full
    model's output.
    """

    def agreement(contender: Contender) -> Estimate[float] | None:
        if contender.name in quality:
            return quality[contender.name].agreement
        return Estimate(1.0) if contender.role in (PLAIN, A_A) or contender.same_output == 1.0 else None

    contenders = tuple(
        one if one.left_out is not None else replace(one, executed_agreement=agreement(one))
        for one in result.contenders
    )
    result = replace(result, contenders=contenders)
    tuned = setting.main.tuned
    if tuned is None:
        return result
    kept = result.main.executed_agreement if tuned.floor.kind == "agreement" else None
    floor = FloorCheck(str(tuned.floor), tuned.certificate.holds, tuned.floor.value, kept)
    return replace(result, floor=floor)


def judge_measurement(
    measured: Measurement,
    machine: Machine | None,
    *,
    predicted: Mapping[str, ReplayResult],
    parts_of: int | None = None,
    notes: Sequence[str] = (),
    quality: bool = True,
    seed: int = SEED,
) -> Measurement:
    """Answers judged by the full model, then times foretold and their parts timed (see `forecasts_of`).

    machine: None for no forecasts. notes: further ones for the result. quality: whether answers are judged.
    seed: of their intervals.

    Raises InputError if the machine cannot price what ran.
    """
    result = replace(measured.result, notes=(*measured.result.notes, *notes))
    if quality:
        judged = judged_answers(measured, seed=seed)
        result = with_agreement(result, measured.setting, judged)
        measured = replace(measured, free_running=judged)
    forecasts = (
        {} if machine is None else forecasts_of(measured, machine, predicted=predicted, parts_of=parts_of)
    )
    contenders = tuple(
        replace(one, gain=forecasts[one.name].gain) if one.name in forecasts else one
        for one in result.contenders
    )
    result = replace(result, contenders=contenders, forecasts=tuple(forecasts.values()))
    return replace(measured, result=result, forecasts=forecasts)
