"""A bench: policies timed beside plain decoding and peers, judged by the full model, their times foretold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from offramp.costs.machine import Machine
from offramp.costs.timings import TimingsProfile
from offramp.decoding.engine.build import engine_of
from offramp.decoding.generation.prompts import check_context, check_ids
from offramp.decoding.judging import Judgements, agreement_of, free_running
from offramp.decoding.options import (
    LOCKSTEP,
    Auto,
    DecodingOptions,
    HeadsSource,
    PolicySource,
    read_heads_source,
)
from offramp.decoding.written import quality_of
from offramp.defaults import DRAFT_LENGTH, SEED, TIMING_SECONDS, WORTH
from offramp.errors import InputError
from offramp.files import sha256_of_text
from offramp.kit.arguments import checked, settled
from offramp.kit.given import Given, GivenIds, given_of
from offramp.kit.numbers import Copied, Count, NotNegative, TimedTokens, Whole
from offramp.kit.rules import Margin
from offramp.models.model import Model, in_evaluation
from offramp.models.process import quiet_transformers, with_most_threads
from offramp.policies.figures import FreeRunning
from offramp.policies.names import BatchingName, DraftLength, StrategyName
from offramp.policies.policy import ExitPolicy
from offramp.policies.replay import ReplayResult
from offramp.scoring.estimate import Estimate
from offramp.scoring.text_quality import TextQuality, not_counted
from offramp.timing.accelerations import read_beside
from offramp.timing.combined_contenders import contenders_beside
from offramp.timing.contenders import NEVER, ONE_CALL, WITHOUT_PEERS, Extent, candidates_of, decode_timed
from offramp.timing.decoder import DecodedBatch, Decoder, Setting, batches_of
from offramp.timing.defects import a_a_defect, judge_a_a
from offramp.timing.forecast import adapts, fitted_of, forecast, predict, pricing, records_of
from offramp.timing.ratios import (
    ONE,
    cluster_of,
    less,
    over_fastest,
    ratio_of,
    ratios_of,
    seconds_over,
    swapped,
)
from offramp.timing.results import A_A, PLAIN, BenchResult, Cluster, Contender, FloorCheck, Forecast
from offramp.timing.session import Progress, Session
from offramp.timing.stopping import Budget, TimeLimits, answer_of, resolution_of
from offramp.tracing.trace import Trace, with_maps
from offramp.workloads.workload import Workload


@in_evaluation
@checked
def bench(
    model: Model,
    policy: PolicySource,
    *,
    prompts: Sequence[Sequence[int]],
    kv: StrategyName | None = None,
    heads: HeadsSource = None,
    cells: Sequence[tuple[ExitPolicy | str, str]] = (),
    new_tokens: TimedTokens = 128,
    batch: Count = 1,
    batching: BatchingName = LOCKSTEP,
    draft_length: DraftLength | Auto = DRAFT_LENGTH,
    lookup: Copied = 0,
    task: str | None = None,
    budget_seconds: NotNegative | None = TIMING_SECONDS,
    rounds: Count | None = None,
    worth: Margin = WORTH,
    peers: bool = True,
    beside: Sequence[str] = (),
    seed: Whole = SEED,
    progress: Progress | None = None,
) -> BenchResult:
    """Decode prompts greedily, `new_tokens` each whatever end tokens come, by contenders in turns.

    Contenders: the policy and further `cells`; several plain decoders, one of them twice: what differs is
    noise; where a policy reads a short list the full model with its output head cut to that; and with `peers`
    what users would pick instead (see `offramp.timing.contenders`); and those of `beside`.
    Each is first decoded once untimed, while hooks count layers and memory is watched. Then all take turns, a
    block of a few tokens each, prompt after prompt, until it is answered whether each policy is faster, or
    the seconds are spent. Ratios are of blocks side by side, over the plain decoder that comes out the
    fastest, their intervals over prompts.
    prompts: token ids; `batch` of them are decoded side by side, padded on the left. cells: further policies,
    each with its strategy for K and V, timed in the same turns. kv, heads, batching, draft_length, lookup,
    task: as `offramp.generate` takes them.
    budget_seconds: of all of this. Where they are few, contenders are left out and fewer tokens decoded, on
    no fewer prompts than an answer needs. More than a quarter beyond them is announced on standard error.
    rounds: how often each prompt is decoded, at most; None for as often as the seconds allow. worth: the gain
    that matters, as a share. beside: accelerations without exits, each as "int8" or "int8 + prompt_lookup".
    seed: of the order of turns.

    Raises InputError and PolicyError as `settle` does; InputError for what cannot stand beside; ModelError if
    the model cannot decode.
    """
    limits = TimeLimits(budget_seconds, rounds, worth)
    budget = Budget(limits.seconds)
    combinations = read_beside(beside, model.dtype)
    fitted = read_heads_source(heads)
    asked = [
        DecodingOptions.read(
            source,
            kv=strategy,
            heads=fitted,
            draft_length=draft_length,
            lookup=lookup,
            batching=batching,
            new_tokens=new_tokens,
        ).for_task(task)
        for source, strategy in ((policy, kv), *cells)
    ]
    setting = settle(model, asked, prompts=prompts, batch=batch, task=task)
    extent = replace(Extent() if peers else WITHOUT_PEERS, beside=combinations)
    return run(setting, limits=limits, extent=extent, seed=seed, progress=progress, budget=budget).result


@checked
def settle(
    model: Model,
    cells: Sequence[DecodingOptions],
    *,
    prompts: Sequence[Sequence[int]],
    batch: Count = 1,
    task: str | None = None,
) -> Setting:
    """What all contenders share, checked against the model.

    cells: how each policy decodes; they differ in policy and strategy alone. prompts, batch: as in `bench`.
    task: the prompts' workload.

    Raises InputError for sizes that do not fit, or prompts that with the new tokens exceed the context;
    PolicyError for a policy or strategy that does not fit; ModelError for a model whose layers stay on disk.
    """
    model.require_loaded("timing")
    new_tokens = settled("new_tokens", cells[0].new_tokens, TimedTokens, "int")
    for place, prompt in enumerate(prompts):
        check_ids(prompt, model.shape.vocabulary_size, f"prompts= [{place}]")
    check_context(model, max(map(len, prompts), default=0), new_tokens)
    distinct: dict[str, DecodingOptions] = {}
    for cell in cells:
        cell.check_model(model)
        distinct.setdefault(cell.name, cell)
    return Setting(
        model,
        batches_of(prompts, batch, model.hf.device),
        tuple(distinct.values()),
        task=task,
        distinct=len(prompts),
    )


@dataclass(frozen=True)
class Measurement:
    """A bench result, and what was decoded: by contender's name, then by batch of prompts, once each."""

    result: BenchResult
    setting: Setting
    decoded: Mapping[str, Mapping[int, DecodedBatch]]
    decoders: tuple[Decoder, ...] = ()
    """Those that were tried out."""
    forecasts: Mapping[str, Forecast] = field(default_factory=dict)
    free_running: Mapping[str, FreeRunning] = field(default_factory=dict)
    """By contender's name, as far as answers were judged and times foretold."""

    def seconds_of(self, name: str) -> Estimate[float]:
        """Per token, of a contender that was timed."""
        seconds = self.result.contender(name).seconds_per_token
        assert seconds is not None  # it was timed
        return seconds


def run(
    setting: Setting,
    *,
    limits: TimeLimits,
    extent: Extent,
    seed: Whole = SEED,
    progress: Progress | None = None,
    budget: Budget | None = None,
    judged: bool = False,
    parts_of: int = 0,
    machine: Machine | None = None,
    prices: Mapping[str, Sequence[float]] | None = None,
) -> Measurement:
    """`bench` for what `settle` gave.

    budget: that began when the model was loaded, None for one from now on. judged, parts_of: whether
    `judge_measurement` comes after it, which is in the budget too, and what it is given. machine: timings of
    this one, by which what ran is priced; None for its bytes. prices: as of `Session`.

    Raises InputError for a plain decoder that is not at hand.
    """
    budget = budget or Budget(limits.seconds)
    main = setting.main
    further = {
        "policy_fingerprints": {cell.name: sha256_of_text(str(cell.policy)) for cell in setting.cells},
        "heads_fingerprint": None if main.heads is None else main.heads.fingerprint,
    }
    with quiet_transformers():
        beside = tuple(contenders_beside(setting, extent.beside, budget))
        given = (setting, extent, limits)
        session = Session(
            *given,
            seed=seed,
            progress=progress,
            budget=budget,
            judged=judged,
            parts_of=parts_of,
            price=pricing(setting, machine if isinstance(machine, TimingsProfile) else "bytes"),
            prices=prices,
        )
        session.run((*beside, *candidates_of(setting, extent)))  # those asked for are left out last
        fields = session.fields(further)
    fields["contenders"] = (*fields["contenders"], *session.missing)
    result = BenchResult(
        model=setting.model.shown_name,
        policy=str(main.policy),
        kv=main.kv,
        batch=setting.batch,
        batching=main.batching,
        **fields,
    )
    return Measurement(result, session.setting, session.decoded, tuple(session.decoders))


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
) -> tuple[list[Sequence[int]], list[tuple[int, ...]]]:
    """Every prompt that was decoded, and its answer; those that filled up the last batch are left out."""
    places = sorted(decoded)
    prompts: list[Sequence[int]] = []
    for batch in map(setting.prompts.__getitem__, places):
        for ids, kept, given in zip(
            batch.ids, batch.mask, batch.given or [None] * len(batch.ids), strict=True
        ):
            own = ids[kept.bool()].tolist()
            prompts.append(own if given is None else GivenIds.of(own, given))
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
        contender.name
        for contender in result.contenders
        if contender.full_depth and contender.name not in cells and contender.same_output != 1.0
    ]
    return {
        name: free_running_of(
            measurement.setting, decoded[name], decoded[result.plain], seed=seed, known=known
        )
        for name in (*cells, *others)
        if name in decoded
    }


def kept_in_batch(
    setting: Setting,
    decoders: Iterable[Decoder],
    names: Sequence[str],
    prompts: Sequence[Sequence[int]],
    enough: float,
    *,
    seed: int = SEED,
) -> dict[str, Estimate[float]]:
    """The executed agreement of some contenders, all prompts decoded side by side, untimed.

    decoders: at hand, `generate()` in one call among them. names: the fastest first; who comes after one that
    keeps `enough` is not decoded, nor who writes what the full model writes, or whose model cannot decode
    side by side. seed: of the intervals.
    """

    def is_able(model: Model) -> bool:
        return engine_of(model).abilities.reason(LOCKSTEP) is None

    by_name = {decoder.name: decoder for decoder in decoders}
    able = [
        decoder
        for name in names
        if (decoder := by_name.get(name)) and not decoder.exact and is_able((decoder.on or setting).model)
    ]
    found: dict[str, Estimate[float]] = {}
    if not able or not is_able(setting.model):
        return found
    with with_most_threads():
        (together,) = batches_of(prompts, len(prompts), setting.prompts[0].ids.device)
        plain = by_name[ONE_CALL].decode(together, setting.new_tokens).tokens
        for decoder in able:
            answers = decoder.decode(together, setting.new_tokens).tokens
            kept = agreement_of(setting.model, prompts, answers, plain, seed=seed)
            found[decoder.name] = kept
            if kept.value is not None and kept.value >= enough:
                break
    return found


def text_quality_of(measurement: Measurement, workload: Workload, *, seed: int = SEED) -> TextQuality | None:
    """The main policy's answers, and the full model's, against what is to be written to the prompts.

    None where their documents say nothing of that, or the policy was not timed.
    """
    setting, decoded, reads = measurement.setting, measurement.decoded, workload.reads
    own = decoded.get(setting.main.name)
    if own is None or reads is None:
        return None
    if (unknown := not_counted(reads, setting.new_tokens)) is not None:
        return unknown
    plain = decoded[measurement.result.plain]
    prompts, answers = prompts_and_answers(setting, own)
    whole = prompts_and_answers(setting, {place: plain[place] for place in own})[1]
    texts: dict[Given | None, str | None] = {}
    for document in workload.documents:  # of one source with several texts none is held against
        known = texts.setdefault(document.given, document.text)
        texts[document.given] = document.text if known == document.text else None
    told = [place for place, prompt in enumerate(prompts) if texts[given_of(prompt)] is not None]
    if not told:
        return None
    return quality_of(
        setting.model,
        reads,
        [texts[given_of(prompts[place])] or "" for place in told],
        [whole[place] for place in told],
        [answers[place] for place in told],
        new_tokens=setting.new_tokens,
        seed=seed,
    )


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
        contender
        if contender.left_out is not None
        else replace(contender, executed_agreement=agreement(contender))
        for contender in result.contenders
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
        with with_most_threads():
            judged = judged_answers(measured, seed=seed)
        result = with_agreement(result, measured.setting, judged)
        measured = replace(measured, free_running=judged)
    forecasts = (
        {} if machine is None else forecasts_of(measured, machine, predicted=predicted, parts_of=parts_of)
    )
    contenders = tuple(
        replace(contender, gain=forecasts[contender.name].gain) if contender.name in forecasts else contender
        for contender in result.contenders
    )
    result = replace(result, contenders=contenders, forecasts=tuple(forecasts.values()))
    return replace(measured, result=result, forecasts=forecasts)


def merged(results: Sequence[BenchResult]) -> BenchResult:
    """One result of the same measurement in several processes; everything but times is the first one's.

    Clusters are of process and prompt, so that a ratio's interval allows for both. Each process must have
    made no looks of its own. Their fastest plain decoders may differ: that of all of them together counts.

    Raises ValueError without results.
    """
    if not results:
        raise ValueError("there is nothing to merge")
    first = results[0]
    # 1. Over the fastest plain decoder of the first process, which says which is the fastest of all.
    over_first = _over(results, first.plain)
    speeds = {name: _speed(over_first, name) for name in _plain_in_turns(over_first)}
    plain = max(speeds, key=lambda name: speeds[name])
    # 2. Over that one.
    together = _over(results, plain)
    contenders = [_answered(contender, together, speeds[plain]) for contender in together.contenders]
    # 3. Defects of any process; that of the A/A is judged over all of them.
    defects = [
        sentence for result in results for sentence in result.defects if sentence != a_a_defect(result.a_a)
    ]
    judged, defects_of_all, a_a = judge_a_a(contenders, list(dict.fromkeys(defects)))
    return replace(
        first,
        plain=plain,
        contenders=judged,
        defects=defects_of_all,
        a_a=a_a,
        prompts=max(result.prompts for result in results),
        seconds_spent=math.fsum(result.seconds_spent for result in results),
        processes=len(results),
        notes=tuple(dict.fromkeys(note for result in results for note in result.notes)),
    )


def _over(results: Sequence[BenchResult], plain: str) -> BenchResult:
    """The first result with what every process found of each contender, over one plain decoder."""
    contenders = tuple(_of_all(contender, results, plain) for contender in results[0].contenders)
    return replace(results[0], plain=plain, contenders=contenders)


def _of_all(first: Contender, results: Sequence[BenchResult], plain: str) -> Contender:
    """All that every process found of a contender. first: as the first one found it."""
    twice = first.role == A_A
    own = [
        (process, result, contender)
        for process, result in enumerate(results)
        for contender in result.contenders
        if (contender.role == A_A if twice else contender.name == first.name)
    ]
    clusters = tuple(
        replace(cluster, process=process)
        for process, result, contender in own
        if contender.left_out is None and contender.name != plain
        for cluster in (contender.clusters if twice else _clusters_over(result, contender.name, plain))
    )
    found = [contender for _, _, contender in own]
    wrong = any(
        (contender.output_must_match and contender.same_output != 1.0)
        or contender.claimed_layers_per_token not in (None, contender.layers_per_token)
        for contender in found
    )
    timed = [contender.seconds_per_token for contender in found]
    seconds = [estimate.value for estimate in timed if estimate is not None]
    by_process = [cluster_of(process, 0, [(1.0, value)]) for process, value in enumerate(seconds)]
    return replace(
        first,
        answer="defect" if wrong else first.answer,
        clusters=clusters,
        samples=tuple(sample for contender in found for sample in contender.samples),
        seconds_per_token=seconds_over(ONE, ratio_of(by_process)) if seconds else None,
    )


def _plain_in_turns(result: BenchResult) -> list[str]:
    return [
        contender.name
        for contender in result.contenders
        if contender.role == PLAIN and (contender.clusters or contender.name == result.plain)
    ]


def _speed(result: BenchResult, name: str) -> float:
    """Over the result's plain decoder."""
    return 1.0 if name == result.plain else ratio_of(result.contender(name).clusters).value


def _answered(contender: Contender, together: BenchResult, plain_speed: float) -> Contender:
    """The contender with its ratio over the fastest plain decoder of all processes.

    plain_speed: of that one, over the first process's.
    """
    plain = together.plain
    if contender.name == plain:
        return replace(contender, ratio=ONE, resolution=resolution_of(ONE))
    if not contender.clusters:  # left out, or of a pilot
        ratio = contender.ratio
        return replace(contender, ratio=None if ratio is None else Estimate(ratio.value / plain_speed))
    ratio = ratio_of(contender.clusters, contender.level, contender.prices)
    if contender.role != A_A:
        others = [name for name in _plain_in_turns(together) if name != contender.name]
        found = over_fastest(
            others, ratios_of(together.contenders, plain, contender), contender.level, fastest=plain
        )
        assert found is not None  # all of them took turns
        ratio = found[1]
    answer = contender.answer
    if answer != "defect":
        answer = answer_of(ratio, together.worth, contender.clusters)
    return replace(contender, answer=answer, ratio=ratio, resolution=resolution_of(ratio))


def _clusters_over(result: BenchResult, name: str, plain: str) -> tuple[Cluster, ...]:
    """Those of one contender over a plain decoder."""
    clusters, others = result.contender(name).clusters, result.contender(plain).clusters
    if plain == result.plain:
        return clusters
    return swapped(others) if name == result.plain else less(clusters, others)
