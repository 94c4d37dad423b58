"""The policy league: per family the fastest member at each floor, chosen on one half, judged on the other."""

from __future__ import annotations

from offramp.costs.machine import Machine
from offramp.policies.policy import ExitPolicy
from offramp.policies.rules.fixed import ORACLES, Never, Oracle
from offramp.tracing.trace import Trace
from offramp.tuning.floor import Floor
from offramp.tuning.halves import Halves, halves_of
from offramp.tuning.held_out import measure
from offramp.tuning.judging import choose
from offramp.tuning.losses import make_floor
from offramp.tuning.pool import Pool, Scored
from offramp.tuning.pricing import Pricing, pricing_of
from offramp.tuning.results import LeagueEntry

FULL_MODEL = "full model"


def league(
    trace: Trace,
    machine: Machine | None,
    floors: tuple[float, ...] = (0.99, 0.95, 0.90),
    seed: int = 0,
    *,
    halves: Halves | None = None,
) -> tuple[LeagueEntry, ...]:
    """Per floor on agreement and family its fastest member, by net speedup; oracles and the full model too.

    machine: seconds are counted on it, bytes moved without one. A family is listed at a floor if one of its
    members reaches it on the half that chooses. halves: the trace's, if they were searched before.

    Raises InputError for a floor outside (0, 1), a trace that cannot be halved or lacks exits below L.
    """
    checked = [make_floor({"agreement": floor}) for floor in floors]
    pricing, halves = pricing_of(trace, machine), halves or halves_of(trace, seed)
    entries: list[LeagueEntry] = []
    for floor in checked:
        pool = halves.searched(floor, pricing)
        best = pool.fastest_of_families(floor.risk)
        chosen = choose(pool, floor).policy
        ranked = [(scored, rank) for rank, scored in enumerate(best, start=1)]
        fixed = [(scored, None) for scored in _fixed(pool)]
        judged = [_judged(halves, floor, pricing, scored, chosen, rank) for scored, rank in [*ranked, *fixed]]
        entries += sorted(judged, key=lambda entry: -(entry.net_speedup.value or 0.0))
    return tuple(entries)


def _fixed(pool: Pool) -> list[Scored]:
    """The full model, and the bounds that no policy reaches."""
    oracles: list[tuple[str, ExitPolicy]] = [
        (f"oracle: {name.replace('_', ' ')}", Oracle(name)) for name in ORACLES
    ]
    return [pool.score(family, policy) for family, policy in [(FULL_MODEL, Never()), *oracles]]


def _judged(
    halves: Halves, floor: Floor, pricing: Pricing, scored: Scored, chosen: ExitPolicy, rank: int | None
) -> LeagueEntry:
    held = measure(halves.judging, scored.policy, pricing, floor, halves.seed)
    return LeagueEntry(
        family=scored.family,
        policy=str(scored.policy),
        reachable=scored.policy.reachable,
        floor=floor.value,
        agreement=held.agreement,
        skip_ratio=held.skip_ratio,
        net_speedup=held.net_speedup,
        seconds_per_token=pricing.plain if held.cost.value is None else held.cost.value,
        probe_share=held.probe_share,
        probe_seconds=held.probe_cost,
        parts=pricing.parts(held.counts),
        chosen=scored.policy == chosen,
        reference_agreement=held.reference_agreement,
        gain=held.gain,
        full_depth=scored.policy.full_depth,
        rank=rank,
    )
