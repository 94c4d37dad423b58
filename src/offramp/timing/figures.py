"""From what contenders decoded in turns to their figures and answers, and what they ran, counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from offramp.policies.policy_cost import sizes_of_heads
from offramp.scoring.estimate import Estimate
from offramp.timing.answers import (
    ONE,
    Pair,
    answer_of,
    cluster_of,
    ratio_of,
    resolution_of,
)
from offramp.timing.contenders import Setting
from offramp.timing.decoder import Decoded, Decoder
from offramp.timing.defects import Difference, Evidence, defects_of
from offramp.timing.forecast import (
    counted_plain,
    counted_policy,
    records_of,
)
from offramp.timing.results import Contender, Counted
from offramp.timing.trial import Pilot, Trial
from offramp.timing.turns import Group, Timed

AnswersByBatch = Mapping[int, tuple[tuple[int, ...], ...]]
"""The new tokens of every row, by batch of prompts."""


@dataclass(frozen=True)
class Part:
    """One contender's part in a measurement, with what it is held to.

    setting: of its own model. reference: what a lossless decoder must give; trial_reference: the same of the
    trial.
    """

    setting: Setting
    decoder: Decoder
    trial: Trial
    reference: AnswersByBatch
    trial_reference: Decoded


@dataclass(frozen=True)
class Figures:
    """A contender with what is wrong with it, in sentences."""

    contender: Contender
    defects: tuple[str, ...]


def figures_of(part: Part, group: Group) -> Figures:
    """One contender of a group that was timed."""
    name = part.decoder.name
    timed = [(place, found[name]) for place, found in group.visits if name in found]
    over, series = part.decoder.repeats or group.plain, group.series[name]
    seconds, ratio = seconds_of(over, group), ONE
    if name != over:
        found = series.over_plain(over) if part.decoder.repeats is None else series.ratio(over)
        assert found is not None  # both were visited
        ratio = found
    described = _described(part, timed, seconds if name == over else seconds_over(seconds, ratio))
    contender = replace(
        described.contender,
        answer="defect" if described.defects else answer_of(ratio, group.worth),
        ratio=ratio,
        resolution=resolution_of(ratio),
        level=series.level,
        clusters=series.clusters(over),
        samples=tuple(one.decoded.seconds_per_token for _, one in timed),
        first_token_seconds=median(one.decoded.first_seconds for _, one in timed),
        counted=_counted(part, group, [one.decoded for _, one in timed]),
    )
    return replace(described, contender=contender)


def only_piloted(part: Part, pilot: Pilot, group: Group) -> Figures:
    """A plain decoder that cannot take turns, and was not clearly the fastest of the pilot."""
    ratio = Estimate(pilot.seconds[group.plain] / pilot.seconds[part.decoder.name])
    described = _described(part, [], seconds_over(seconds_of(group.plain, group), ratio))
    return replace(described, contender=replace(described.contender, ratio=ratio))


def _described(part: Part, timed: Sequence[tuple[int, Timed]], seconds: Estimate[float]) -> Figures:
    """What is known of any contender: defects, and what its trial ran. seconds: per token."""
    decoder, trial = part.decoder, part.trial
    same, difference = _compared(part, timed)
    claimed = trial.decoded.claimed_layers
    defects = defects_of(
        Evidence(decoder.name, decoder.output_must_match, difference, claimed, trial.counted)
    )
    contender = Contender(
        name=decoder.name,
        role=decoder.role,
        answer="defect" if defects else "unresolved",
        seconds_per_token=seconds,
        tokens_per_second=1.0 / seconds.value,
        peak_memory_bytes=trial.peak_memory_bytes,
        layers_per_token=layers_per_token(part.setting, trial.decoded, trial.counted),
        claimed_layers_per_token=layers_per_token(part.setting, trial.decoded, claimed),
        same_output=same,
        output_must_match=decoder.output_must_match,
        full_depth=decoder.full_depth,
    )
    return Figures(contender, tuple(defects))


def seconds_of(name: str, group: Group) -> Estimate[float]:
    """Of a plain decoder, per token: mean over prompts of the mean of blocks."""
    pairs: dict[int, list[Pair]] = {}
    for place, found in group.visits:
        timed = found[name]
        blocks = timed.blocks or (timed.decoded.seconds_per_token,)
        pairs.setdefault(place, []).extend((1.0, seconds) for seconds in blocks)
    speed = ratio_of([cluster_of(0, place, blocks) for place, blocks in pairs.items()])
    return seconds_over(ONE, speed)


def seconds_over(plain: Estimate[float], ratio: Estimate[float]) -> Estimate[float]:
    """What takes so many times less than the plain decoder, which took that on average.

    So contenders that were timed at different times are on one scale: the load of the machine cancels.
    """
    low = None if ratio.high is None else plain.value / ratio.high
    high = None if ratio.low is None else plain.value / ratio.low
    return Estimate(plain.value / ratio.value, low, high)


def layers_per_token(setting: Setting, decoded: Decoded, layers: int | None) -> float | None:
    """Layers of a fed new token, from rows times layers of a trial, the prompt's run taken away.

    The last new token is never fed. An assistant's own run over the prompt counts as work on new tokens.
    """
    if layers is None:
        return None
    prompt = setting.prompts[0].ids
    fed = len(prompt) * (len(decoded.tokens[0]) - 1)
    return (layers - prompt.numel() * setting.model.layers) / fed


def _counted(part: Part, group: Group, decoded: Sequence[Decoded]) -> Counted | None:
    setting, records = part.setting, records_of(decoded)
    if not records:
        # Who claims anything without a record runs the whole model for every token.
        claims = part.trial.decoded.claimed_layers is not None
        return counted_plain(setting.prompts, group.new_tokens, setting.model.shape) if claims else None
    fitted = sizes_of_heads(setting.main.heads, mapped=True)
    return counted_policy(records, setting.model.shape, fitted, short_list=part.decoder.short_list)


def _compared(part: Part, timed: Sequence[tuple[int, Timed]]) -> tuple[float, Difference | None]:
    """Share of rows that always equal the full model's, and the first token of any that does not."""
    rows = [row for place in sorted(part.reference) for row in part.reference[place]]
    starts: dict[int, int] = {}
    for place in sorted(part.reference):
        starts[place] = sum(len(part.reference[before]) for before in starts)
    unequal: dict[int, Difference] = {}

    def hold(first: int, found: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]) -> None:
        for row, (tokens, right) in enumerate(zip(found, expected, strict=True), start=first):
            at = next(
                (at for at, pair in enumerate(zip(tokens, right, strict=True)) if pair[0] != pair[1]), None
            )
            if at is not None:
                unequal.setdefault(row, Difference(row, at, tokens[at], right[at]))

    hold(0, part.trial.decoded.tokens, part.trial_reference.tokens)
    for place, one in timed:
        hold(starts[place], one.decoded.tokens, part.reference[place])
    return 1.0 - len(unequal) / max(len(rows), 1), unequal[min(unequal)] if unequal else None
