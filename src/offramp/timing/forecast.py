"""What decodings ran, counted and priced: a policy's predicted seconds per token beside the measured ones."""

from __future__ import annotations

from collections.abc import Sequence

from offramp.costs.machine import Machine
from offramp.costs.probes import FULL_HEAD, NOTHING_FITTED, RESTRICTED_HEAD, FittedSizes
from offramp.costs.token import token_costs
from offramp.decoding.engine.engine import PART_OF_ITEM, PARTS_OF_TIME
from offramp.decoding.generation.result import BatchGeneration
from offramp.decoding.options import DecodingOptions
from offramp.errors import InputError
from offramp.heads.described import RAW, read_by, reading_parts
from offramp.models.shape import ModelShape
from offramp.policies.cost_breakdown import gain_of_parts, lines_of, totals_of
from offramp.policies.kv import STRATEGIES
from offramp.policies.prices import prices_by_rows, sizes_of_heads
from offramp.policies.replay import ReplayResult, replay
from offramp.scoring.estimate import Estimate
from offramp.timing.decoder import DecodedBatch, Decoder, Price, Setting
from offramp.timing.results import Counted, Forecast, PartError
from offramp.tracing.trace import Trace


def fitted_of(cell: DecodingOptions) -> FittedSizes:
    """What the heads that a policy decodes with add to a step: their K,V maps only where these are used."""
    return sizes_of_heads(cell.heads, mapped=STRATEGIES[cell.kv].mapped)


def expected_position(setting: Setting) -> float:
    """Mean position (0 = first) of the tokens that will be decoded: the first new token is the prompt's."""
    positions = [batch.ids.shape[1] for batch in setting.prompts]
    return sum(positions) / len(positions) + (setting.new_tokens - 2) / 2


def predict(trace: Trace, setting: Setting, cell: DecodingOptions, machine: Machine) -> ReplayResult:
    """The policy replayed on the trace and charged at the mean position of the tokens to be decoded.

    Raises PolicyError and InputError as `replay` does; InputError if the trace was read through other heads
    than the decoder will use, or for drafts whose number adapts while decoding: a trace does not say to what.
    """
    read = reading_parts(trace.request.get("heads") or {})
    own = reading_parts({} if cell.heads is None else read_by(cell.heads))
    if read != own:
        before, now = (" and ".join(parts) or RAW for parts in (read, own))
        raise InputError(
            f"the trace's exits were read through {before}, decoding reads them through {now}",
            where=str(trace.folder or "the trace"),
            fix="give decoding the heads of the trace, or trace again with heads= (--heads)",
        )
    if adapts(cell):
        raise InputError(
            "how many tokens are drafted is found out while decoding, and cannot be predicted",
            where="draft length",
            fix="leave the drafts from the text out" if cell.lookup else "give a number of drafts, 4 say",
        )
    return replay(
        trace,
        cell.policy,
        machine=machine,
        kv=cell.kv,
        batch=setting.batch,
        batching=cell.batching,
        draft_length=cell.draft_length if isinstance(cell.draft_length, int) else 1,  # nothing is drafted
        position=expected_position(setting),
    )


def adapts(cell: DecodingOptions) -> bool:
    """Whether drafts are made whose length is known only when they are."""
    return bool(cell.lookup) or (cell.kv == "speculate" and not isinstance(cell.draft_length, int))


def forecast(
    setting: Setting,
    cell: DecodingOptions,
    machine: Machine,
    ran: Sequence[BatchGeneration],
    plain: Sequence[BatchGeneration],
    *,
    measured: Estimate[float],
    plain_measured: float,
    fastest_plain: float,
    predicted: ReplayResult | None = None,
    timed: Sequence[BatchGeneration] = (),
    measured_agreement: float | None = None,
) -> Forecast:
    """What decoding with a policy took beside what it was predicted to take.

    ran, plain: generations with the policy, and with the full model by the same loop, on the same prompts.
    All prices are those of the machine at the mean position of each generation's decoded tokens, as ratios to
    its price of plain decoding there, times what plain decoding took.
    measured, plain_measured, fastest_plain: seconds per token by the stopwatch. predicted: by `predict`.
    timed: generations with the policy that timed their parts.

    Raises InputError if no token was decoded after the first one, or if the machine cannot price it.
    """
    shape, fitted = setting.model.shape, fitted_of(cell)
    parts, plain_parts = price_parts(ran, machine, shape, fitted), price_parts(plain, machine, shape)
    priced, plain_priced = sum(parts.values()), sum(plain_parts.values())
    pace = plain_measured / plain_priced
    return Forecast(
        policy=str(cell.policy),
        kv=cell.kv,
        dtype=setting.model.dtype,
        workload=setting.task or "",
        predicted=None if predicted is None else plain_measured * ratio_of(predicted),
        priced=priced * pace,
        measured=measured,
        plain_predicted=plain_priced,
        plain_measured=plain_measured,
        fastest_plain=fastest_plain,
        predicted_skip=None if predicted is None else predicted.skip_ratio,
        measured_skip=measured_skip(ran),
        parts=_parts(timed, machine, shape, fitted, pace),
        predicted_agreement=None if predicted is None else predicted.agreement,
        measured_agreement=measured_agreement,
        batch=setting.batch,
        gain=gain_of_parts(parts, plain_parts),
        predicted_by_profile=None if predicted is None else predicted.seconds_per_token,
        priced_by_profile=priced,
    )


def ratio_of(predicted: ReplayResult) -> float:
    """Predicted seconds per token over those of the full model, both by the profile at the same position.

    Raises InputError for a replay that was not priced in seconds.
    """
    if predicted.seconds_per_token is None or predicted.plain_seconds_per_token is None:
        raise InputError(
            "the replay was priced in bytes, not in seconds", where="predicted=", fix="replay with a machine="
        )
    return predicted.seconds_per_token / predicted.plain_seconds_per_token


def pricing(setting: Setting, by: Machine | str) -> Price:
    """The price of a token of what a decoding ran, by timings or in bytes.

    None of what says nothing of what it ran, runs another model, or has a part that cannot be priced.
    """
    shape, cells = setting.model.shape, {cell.name: cell for cell in setting.cells}

    def price(decoder: Decoder, decoded: DecodedBatch) -> float | None:
        if decoder.on is not None:
            return None
        try:
            if records := records_of([decoded]):
                fitted = fitted_of(cells.get(decoder.name, setting.main))
                return sum(price_parts(records, by, shape, fitted).values())
            if decoded.claimed_layers is None:
                return None
            # Who claims anything without a record runs the whole model for every token.
            rows, new = len(decoded.tokens), len(decoded.tokens[0])
            fed = decoded.claimed_layers // (rows * setting.model.layers)
            return prices_by_rows(by, shape, fed - new / 2)(rows).plain / rows
        except InputError:
            return None

    return price


def price_parts(
    runs: Sequence[BatchGeneration],
    machine: Machine | str,
    shape: ModelShape,
    fitted: FittedSizes = NOTHING_FITTED,
) -> dict[str, float]:
    """Price per token of what really ran, in seconds, by part of the cost (`policies.cost_breakdown.PARTS`).

    fitted: what the heads add.

    Raises InputError if no token was decoded after the first one, or if the machine cannot price it.
    """
    totals: dict[str, float] = {}
    for run in runs:
        at = prices_by_rows(machine, shape, mean_position([run]), fitted)
        for part, total in totals_of(lines_of(run.usage, at)).items():
            totals[part] = totals.get(part, 0.0) + total
    tokens = sum(decoded_tokens(run) for run in runs)
    return {part: total / tokens for part, total in totals.items()}


def _parts(
    timed: Sequence[BatchGeneration], machine: Machine, shape: ModelShape, fitted: FittedSizes, pace: float
) -> tuple[PartError, ...]:
    """Priced beside measured seconds of the parts of the same generations. pace: of now over the profile."""
    if not timed:
        return ()
    priced = dict.fromkeys(PARTS_OF_TIME, 0.0)
    for part, price in price_parts(timed, machine, shape, fitted).items():
        priced[PART_OF_ITEM[part]] += price
    tokens = sum(decoded_tokens(run) for run in timed)
    return tuple(
        PartError(
            part,
            seconds * pace,
            sum((run.part_seconds or {}).get(part, 0.0) for run in timed) / tokens,
        )
        for part, seconds in priced.items()
    )


def decoded_tokens(run: BatchGeneration) -> int:
    """New tokens of all rows after each row's first one.

    Raises InputError if there are none: the first comes from the prompt and says nothing of decoding.
    """
    tokens = sum(max(len(row.tokens) - 1, 0) for row in run.rows)
    if not tokens:
        raise InputError(
            "no token was decoded after the first one", fix="ask for 2 new tokens or more, or another prompt"
        )
    return tokens


def mean_position(runs: Sequence[BatchGeneration]) -> float:
    """Mean position (0 = first) of the decoded tokens, the prompt's padding included.

    Raises InputError if no token was decoded after the first one.
    """
    total = 0.0
    for run in runs:
        prompt = max(row.prompt_tokens for row in run.rows)
        fed = [max(len(row.tokens) - 1, 0) for row in run.rows]
        total += sum(count * (prompt + (count - 1) / 2) for count in fed)
    return total / sum(decoded_tokens(run) for run in runs)


def measured_skip(runs: Sequence[BatchGeneration]) -> float:
    """Share of the layers of the fed new tokens that were not executed."""
    rows = [row for run in runs for row in run.rows]
    executed = sum(row.layers_executed - row.prompt_layers for row in rows)
    return 1.0 - executed / (sum(decoded_tokens(run) for run in runs) * rows[0].layers)


HEADS = ("exit head", "short head", "final head")
UNITS = ("flops", "bytes")


def counted_policy(
    runs: Sequence[BatchGeneration],
    shape: ModelShape,
    fitted: FittedSizes = NOTHING_FITTED,
    *,
    short_list: bool = False,
) -> Counted:
    """Of what a policy's decodings ran, priced in FLOPs and bytes at the mean position of each.

    A probe that reads the whole head makes the output too, and so does one of the short list where early
    outputs are read off that (short_list): it counts as a head and as a probe. fitted: what the decoder's
    heads add.

    Raises InputError if no token was decoded after the first one.
    """
    tokens = sum(map(decoded_tokens, runs))
    heads = probes = layers = 0.0
    totals = dict.fromkeys(UNITS, 0.0)
    for run in runs:
        layers += sum(row.layers_executed - row.prompt_layers for row in run.rows)
        heads += sum(
            item.rows * count
            for item, count in run.usage.items()
            if item.part in HEADS or item.probe == FULL_HEAD or (short_list and item.probe == RESTRICTED_HEAD)
        )
        probes += sum(item.rows * count for item, count in run.usage.items() if item.part == "probe")
        for unit in UNITS:
            at = prices_by_rows(unit, shape, mean_position([run]), fitted)
            totals[unit] += sum(line.total for line in lines_of(run.usage, at))
    return Counted(
        layers / tokens, heads / tokens, probes / tokens, totals["flops"] / tokens, totals["bytes"] / tokens
    )


def counted_plain(setting: Setting) -> Counted:
    """Of the full model: every layer and one head a token, at the mean position."""
    shape, position, rows = setting.model.shape, expected_position(setting), setting.batch
    totals = {unit: token_costs(shape, position, unit, batch=rows).plain / rows for unit in UNITS}
    return Counted(float(len(shape.layers)), 1.0, 0.0, totals["flops"], totals["bytes"])


def records_of(decoded: Sequence[DecodedBatch]) -> list[BatchGeneration]:
    """The records of our loop among what was decoded."""
    return [batch.record for batch in decoded if isinstance(batch.record, BatchGeneration)]
