"""Measured policies judged: what a profile predicts, and what the full model says of their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from offramp.costs.machine import Machine
from offramp.decoding.free_running import FreeRunning
from offramp.decoding.generation.result import BatchGeneration
from offramp.decoding.judging import Judgements, free_running
from offramp.decoding.openings import Prompts
from offramp.decoding.options import DecodingOptions
from offramp.errors import InputError, OfframpError
from offramp.heads.exit_heads import ExitHeads
from offramp.kit.defaults import SEED
from offramp.models.model import Model
from offramp.policies.replay import ReplayResult
from offramp.scoring.estimate import Estimate
from offramp.timing.answers import Limits
from offramp.timing.bench import settle
from offramp.timing.contenders import NEVER, SHORT, Setting, decode_timed
from offramp.timing.decoder import Decoded
from offramp.timing.forecast import Decoding, forecast, predict, records_of
from offramp.timing.measurement import Measurement, run_together
from offramp.timing.results import A_A, PLAIN, BenchResult, Contender, FloorCheck, Forecast
from offramp.tracing.heads_of_trace import with_maps
from offramp.tracing.trace import Trace
from offramp.tuning.splits import split_documents

DRAFTING = "speculate"


def predict_cells(
    setting: Setting, trace: Trace, machine: Machine, workload: str = ""
) -> Mapping[str, ReplayResult]:
    """Every policy of a setting replayed on a trace, by the cell's name; to be asked before the timing.

    Drafts whose length adapts itself are not replayed: what they would be is known only when they are made.

    Raises PolicyError and InputError as `offramp.timing.forecast.predict` does.
    """
    position = expected_position(setting)
    found = {}
    for cell in setting.cells:
        if isinstance(cell.draft_length, int) or cell.kv != DRAFTING:
            described = _described(setting, cell, workload)
            # The decoder's maps, which the trace need not have been made with: its facts are the same.
            seen = trace if not described.fitted.maps or cell.heads is None else with_maps(trace, cell.heads)
            found[cell.name] = predict(seen, described, machine, position)
    return found


def expected_position(setting: Setting) -> float:
    """Mean position (0 = first) of the tokens that will be decoded: the first new token is the prompt's."""
    prompts = [batch.ids.shape[1] for batch in setting.prompts]
    return sum(prompts) / len(prompts) + (setting.new_tokens - 2) / 2


def forecasts_of(
    measurement: Measurement,
    machine: Machine,
    *,
    predicted: Mapping[str, ReplayResult] | None = None,
    workload: str = "",
    agreement: Mapping[str, float] | None = None,
    parts_of: int | None = None,
) -> dict[str, Forecast]:
    """The forecast of every policy that was timed, by the cell's name.

    Its parts are timed now, in one decoding of each batch.

    predicted: what `predict_cells` said before, None to price only what ran. agreement: of generated tokens
    with the full model, by the cell's name, where it is known. parts_of: of how many batches of prompts parts
    are timed, None for all.

    Raises InputError if the machine cannot price what ran.
    """
    result, setting = measurement.result, measurement.setting
    plain = _records(measurement, NEVER)
    timed_cells = [cell for cell in setting.cells if cell.name in measurement.decoded]
    return {
        cell.name: forecast(
            _records(measurement, cell.name),
            plain,
            machine,
            setting.model.shape,
            _described(setting, cell, workload),
            predicted=(predicted or {}).get(cell.name),
            timed=[decode_timed(setting, cell, batch) for batch in setting.prompts[:parts_of]],
            measured=result.contender(cell.name).seconds_per_token,
            plain_measured=_seconds(measurement, NEVER),
            fastest_plain=_seconds(measurement, result.plain),
            measured_agreement=(agreement or {}).get(cell.name),
        )
        for cell in timed_cells
    }


def prompts_and_answers(
    setting: Setting, decoded: Mapping[int, Decoded]
) -> tuple[list[list[int]], list[tuple[int, ...]]]:
    """Every prompt that was decoded, and its answer; those that filled up the last batch are left out."""
    places = sorted(decoded)
    prompts = [
        ids[kept.bool()].tolist()
        for place in places
        for ids, kept in zip(setting.prompts[place].ids, setting.prompts[place].mask, strict=True)
    ]
    filled = len(setting.prompts) * len(setting.prompts[0].ids) - setting.distinct
    count = len(prompts) - (filled if places[-1] == len(setting.prompts) - 1 else 0)
    return prompts[:count], [tokens for place in places for tokens in decoded[place].tokens][:count]


def free_running_of(
    setting: Setting,
    own: Mapping[int, Decoded],
    plain: Mapping[int, Decoded],
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


def with_forecasts(result: BenchResult, forecasts: Mapping[str, Forecast]) -> BenchResult:
    """The result with the forecasts of `forecasts_of`, and with where each policy's gain comes from."""
    contenders = tuple(
        replace(one, gain=forecasts[one.name].gain) if one.name in forecasts else one
        for one in result.contenders
    )
    return replace(result, contenders=contenders, forecasts=tuple(forecasts.values()))


def _described(setting: Setting, cell: DecodingOptions, workload: str) -> Decoding:
    return Decoding(cell, setting.model.dtype, workload, batch=len(setting.prompts[0].ids))


def _records(measurement: Measurement, name: str) -> list[BatchGeneration]:
    return records_of(list(measurement.decoded[name].values()))


def _seconds(measurement: Measurement, name: str) -> float:
    found = measurement.result.contender(name).seconds_per_token
    assert found is not None  # it was timed
    return found.value


@dataclass(frozen=True)
class Judged:
    """What was measured, with forecasts and answers judged, both by the contender's name."""

    measurement: Measurement
    bench: BenchResult
    forecasts: Mapping[str, Forecast]
    free_running: Mapping[str, FreeRunning]


def judge_measurement(
    measured: Measurement,
    machine: Machine | None,
    *,
    predicted: Mapping[str, ReplayResult],
    workload: str,
    parts_of: int | None = None,
    notes: tuple[str, ...] = (),
    quality: bool = True,
    seed: int = SEED,
) -> Judged:
    """Answers judged by the full model, then times foretold and their parts timed (see `forecasts_of`).

    machine: None for no forecasts. notes: further ones for the result. quality: whether answers are judged.
    seed: of their intervals.

    Raises InputError if the machine cannot price what ran.
    """
    judged = judged_answers(measured, seed=seed) if quality else {}
    agreement = {name: one.agreement.value for name, one in judged.items()}
    forecasts = {} if machine is None else forecasts_of(
        measured, machine, predicted=predicted, workload=workload, agreement=agreement, parts_of=parts_of
    )  # fmt: skip
    bench = replace(measured.result, notes=(*measured.result.notes, *notes))
    if quality:
        bench = with_agreement(bench, measured.setting, judged)
    return Judged(measured, with_forecasts(bench, forecasts), forecasts, judged)


DRAFT_LENGTH = 1
"""Drafts before a verification: ordinary models reject most drafts, so that longer ones cost time."""
PARTS_OF = 1
"""Prompts of each text on which the parts of a policy's tokens are timed."""
NO_STATIC_CACHE = (
    "plain decoding is the fastest of never exit and generate(); a static cache was not tried here"
)


@dataclass(frozen=True)
class Chosen:
    """Policies chosen on the trace of one workload.

    policies: each with its strategy for K and V, the main one first. wanted: how many prompts were. notes:
    what else must be said of the measurement.
    """

    workload: str
    trace: Trace
    policies: tuple[tuple[str, str], ...]
    prompts: Prompts
    wanted: int
    notes: tuple[str, ...] = ()

    @property
    def options(self) -> list[DecodingOptions]:
        """How each policy decodes; its name is that of its contender."""
        read = [DecodingOptions.read(policy, kv=kv) for policy, kv in self.policies]
        return [replace(one, draft_length=DRAFT_LENGTH).for_task(self.workload) for one in read]


def decode_chosen(
    model: Model,
    chosen: Sequence[Chosen],
    machine: Machine | None,
    *,
    heads: ExitHeads | None,
    new_tokens: int,
    limits: Limits,
    seed: int = SEED,
) -> list[Judged | OfframpError]:
    """Every workload's measurement, or what made it fail; all contenders of all of them take turns.

    machine: None for no forecasts. new_tokens: after each prompt, as far as the context has room. seed: that
    the policies were chosen with, and of the order of turns.

    Raises InputError or PolicyError for a policy that does not fit the model.
    """
    settings = [_setting(model, one, heads, new_tokens) for one in chosen]
    predicted = [
        {} if machine is None else _predict_unseen(setting, one, machine, seed)
        for one, setting in zip(chosen, settings, strict=True)
    ]
    measured = run_together(settings, extent=SHORT, limits=limits, seed=seed)
    found: list[Judged | OfframpError] = []
    for one, measurement, predictions in zip(chosen, measured, predicted, strict=True):
        try:
            if isinstance(measurement, OfframpError):
                raise measurement
            judged = judge_measurement(
                measurement,
                machine,
                predicted=predictions,
                workload=one.workload,
                parts_of=PARTS_OF,
                notes=(NO_STATIC_CACHE, *one.notes, *_prompt_notes(one)),
                seed=seed,
            )
            found.append(judged)
        except OfframpError as error:  # the other texts still count
            found.append(error)
    return found


def _setting(model: Model, chosen: Chosen, heads: ExitHeads | None, new_tokens: int) -> Setting:
    if model.context_length is not None:
        new_tokens = min(new_tokens, model.context_length - max(map(len, chosen.prompts.ids)))
    cells = [replace(one, heads=heads, new_tokens=new_tokens) for one in chosen.options]
    return settle(model, cells, prompts=chosen.prompts.ids, task=chosen.workload)


def _predict_unseen(
    setting: Setting, chosen: Chosen, machine: Machine, seed: int
) -> Mapping[str, ReplayResult]:
    """Every policy replayed on documents that none was chosen on, by the cell's name; before any timing.

    A policy that cannot be replayed (an exit that was not traced, a probe without a price) is left out.
    """
    trace = chosen.trace
    judging = split_documents(trace, seed)[1]
    unseen = trace.subset(judging) if len(judging) else trace
    found: dict[str, ReplayResult] = {}
    for cell in setting.cells:
        try:
            found |= predict_cells(replace(setting, cells=(cell,)), unseen, machine, chosen.workload)
        except InputError:
            continue
    return found


def _prompt_notes(chosen: Chosen) -> list[str]:
    """What to bear in mind of the prompts."""
    count = len(chosen.prompts.ids)
    notes = [] if count >= chosen.wanted else [f"{count} of {chosen.wanted} prompts were at hand"]
    if not chosen.prompts.unseen:
        notes.append("the prompts are of documents that policies were chosen on: there are no others")
    return notes
