"""From what contenders decoded in turns to their figures and answers, and what they ran, counted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import median

from offramp.costs.probes import PROBES, MapRanks, ProbeSizes
from offramp.costs.token import token_costs
from offramp.decoding.generation.result import BatchGeneration
from offramp.decoding.measurement.answers import answer_of, resolution_of
from offramp.decoding.measurement.contenders import Setting
from offramp.decoding.measurement.decoder import Decoded, Decoder, PromptBatch
from offramp.decoding.measurement.defects import A_A_LEVEL, Difference, Evidence, a_a_defect, defects_of
from offramp.decoding.measurement.forecast import decoded_tokens, mean_position
from offramp.decoding.measurement.intervals import cluster_of, freedom_of, ratio_of
from offramp.decoding.measurement.results import Cluster, Contender, Counted, Interval
from offramp.decoding.measurement.trial import Pilot, Trial
from offramp.decoding.measurement.turns import Group, Timed
from offramp.models.shape import ModelShape
from offramp.policies.cost_breakdown import PriceAt, lines_of

HEADS = ("exit head", "short head", "final head")
UNITS = ("flops", "bytes")


def counted_policy(
    runs: Sequence[BatchGeneration], shape: ModelShape, *, lens: bool, maps: MapRanks = ()
) -> Counted:
    """Of what a policy's decodings ran, priced in FLOPs and bytes at the mean position of each.

    A probe that reads the whole head makes the output too: it counts as a head and as a probe. lens: whether
    exits below L are read through a linear lens. maps: K,V maps, where K and V are mapped.

    Raises InputError if no token was decoded after the first one.
    """
    tokens = sum(map(decoded_tokens, runs))
    heads = probes = layers = 0.0
    totals = dict.fromkeys(UNITS, 0.0)
    for run in runs:
        layers += sum(row.layers_executed - row.prompt_layers for row in run.rows)
        heads += sum(
            item.rows * count for item, count in run.usage.items() if _is_head(item.part, item.probe)
        )
        probes += sum(item.rows * count for item, count in run.usage.items() if item.part == "probe")
        for unit in UNITS:
            at = _prices(shape, mean_position([run]), unit, lens, maps)
            totals[unit] += sum(line.total for line in lines_of(run.usage, at))
    return Counted(
        layers / tokens, heads / tokens, probes / tokens, totals["flops"] / tokens, totals["bytes"] / tokens
    )


def counted_plain(prompts: Sequence[PromptBatch], new_tokens: int, shape: ModelShape) -> Counted:
    """Of the full model: every layer and one head a token, at the mean position."""
    positions = [batch.ids.shape[1] for batch in prompts]
    position = sum(positions) / len(positions) + (new_tokens - 2) / 2
    rows = len(prompts[0].ids)
    totals = {unit: token_costs(shape, position, unit, batch=rows).plain / rows for unit in UNITS}
    return Counted(float(len(shape.layers)), 1.0, 0.0, totals["flops"], totals["bytes"])


def records_of(decoded: Sequence[Decoded]) -> list[BatchGeneration]:
    """The records of our loop among what was decoded."""
    return [one.record for one in decoded if isinstance(one.record, BatchGeneration)]


def _is_head(part: str, probe: str) -> bool:
    return part in HEADS or (part == "probe" and PROBES[probe].gives_output)


def _prices(shape: ModelShape, position: float, unit: str, lens: bool, maps: MapRanks) -> PriceAt:
    sizes = ProbeSizes(kv_maps=maps)
    return cache(lambda rows: token_costs(shape, position, unit, batch=rows, lens=lens, sizes=sizes))


Answers = Mapping[int, tuple[tuple[int, ...], ...]]
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
    reference: Answers
    trial_reference: Decoded


@dataclass(frozen=True)
class Figures:
    """A contender with what is wrong with it, in sentences."""

    contender: Contender
    defects: tuple[str, ...]


def figures_of(part: Part, group: Group) -> Figures:
    """One contender of a group that was timed."""
    decoder, trial = part.decoder, part.trial
    timed = [(place, found[decoder.name]) for place, found in group.visits if decoder.name in found]
    same, difference = _compared(part, timed)
    defects = defects_of(
        Evidence(
            decoder.name,
            decoder.output_must_match,
            difference,
            trial.decoded.claimed_layers,
            trial.counted,
        )
    )
    series = group.series.get(decoder.name)
    ratio = Interval(1.0, 1.0, 1.0) if series is None else series.ratio
    assert ratio is not None  # it was visited
    plain = plain_seconds(group)
    seconds = plain if series is None else seconds_over(plain, ratio)
    contender = Contender(
        name=decoder.name,
        role=decoder.role,
        answer="defect" if defects else answer_of(ratio, group.worth),
        ratio=ratio,
        resolution=resolution_of(ratio),
        clusters=() if series is None else series.clusters,
        samples=tuple(one.decoded.seconds_per_token for _, one in timed),
        seconds_per_token=seconds,
        first_token_seconds=median(one.decoded.first_seconds for _, one in timed),
        tokens_per_second=1.0 / seconds.value,
        peak_memory_bytes=trial.peak_memory_bytes,
        counted=_counted(part, group, [one.decoded for _, one in timed]),
        layers_per_token=layers_per_token(part.setting, trial.decoded, trial.counted),
        claimed_layers_per_token=layers_per_token(part.setting, trial.decoded, trial.decoded.claimed_layers),
        same_output=same,
        output_must_match=decoder.output_must_match,
    )
    return Figures(contender, tuple(defects))


def only_piloted(part: Part, pilot: Pilot, group: Group) -> Figures:
    """A plain decoder that was not the fastest of the pilot, and was timed no further."""
    name, trial = part.decoder.name, part.trial
    _, difference = _compared(part, [])
    defects = defects_of(
        Evidence(
            name, part.decoder.output_must_match, difference, trial.decoded.claimed_layers, trial.counted
        )
    )
    ratio = Interval(pilot.seconds[pilot.plain] / pilot.seconds[name])
    seconds = seconds_over(plain_seconds(group), ratio)
    contender = Contender(
        name=name,
        role=part.decoder.role,
        answer="defect" if defects else "unresolved",
        ratio=ratio,
        seconds_per_token=seconds,
        tokens_per_second=1.0 / seconds.value,
        peak_memory_bytes=trial.peak_memory_bytes,
        layers_per_token=layers_per_token(part.setting, trial.decoded, trial.counted),
        claimed_layers_per_token=layers_per_token(part.setting, trial.decoded, trial.decoded.claimed_layers),
        same_output=float(difference is None),
        output_must_match=part.decoder.output_must_match,
    )
    return Figures(contender, tuple(defects))


def a_a_clusters_of(contenders: Sequence[Contender]) -> tuple[Cluster, ...]:
    """The clusters of the plain decoder against itself; none if it was not timed twice."""
    return next((one.clusters for one in contenders if one.role == "a/a"), ())


def judge_a_a(
    figures: Sequence[Figures], a_a_clusters: Sequence[Cluster]
) -> tuple[list[Contender], list[str], Interval]:
    """Contenders, all defects, and the ratio of the plain decoder to itself, at `A_A_LEVEL`.

    Where that is no 1, nothing is answered.
    """
    a_a = ratio_of(a_a_clusters, A_A_LEVEL) if a_a_clusters else Interval(1.0)
    defects = [sentence for one in figures for sentence in one.defects]
    contenders = [one.contender for one in figures]
    unequal = a_a_defect(a_a, freedom_of(a_a_clusters))
    if unequal is not None:
        defects.append(unequal)
        contenders = [replace(one, answer="defect") for one in contenders]
    return contenders, defects, a_a


def plain_seconds(group: Group) -> Interval:
    """Of the plain decoder, per token: geometric mean over prompts of trimmed means of blocks."""
    seconds: dict[int, list[float]] = {}
    for place, found in group.visits:
        one = found[group.plain]
        seconds.setdefault(place, []).extend(one.blocks or (one.decoded.seconds_per_token,))
    return ratio_of(
        [cluster_of(0, place, [math.log(value) for value in values]) for place, values in seconds.items()]
    )


def seconds_over(plain: Interval, ratio: Interval) -> Interval:
    """What takes so many times less than the plain decoder, which took that on average.

    So contenders that were timed at different times are on one scale: the load of the machine cancels.
    """
    low = None if ratio.high is None else plain.value / ratio.high
    high = None if ratio.low is None else plain.value / ratio.low
    return Interval(plain.value / ratio.value, low, high)


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
    heads = setting.main.heads
    maps = None if heads is None else heads.kv_maps
    return counted_policy(
        records,
        setting.model.shape,
        lens=heads is not None and heads.lens is not None,
        maps=() if maps is None else tuple(maps.ranks.items()),
    )


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
