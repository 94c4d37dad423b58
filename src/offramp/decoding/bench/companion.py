"""What a decoded token runs, counted: the companion of every time, the same on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from offramp.costs.probes import PROBES, MapRanks, ProbeSizes
from offramp.costs.token import token_costs
from offramp.decoding.bench.entrant import Decoded, PromptBatch
from offramp.decoding.bench.forecast import decoded_tokens, mean_position
from offramp.decoding.bench.results import Counted
from offramp.decoding.generation.result import BatchGeneration
from offramp.models.shape import ModelShape
from offramp.policies.bill import PriceAt, lines_of

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
