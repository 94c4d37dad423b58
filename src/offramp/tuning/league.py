"""The policy league: per family the fastest member at each floor, chosen on one half, judged on the other."""

from __future__ import annotations

from dataclasses import dataclass

from offramp.costs.machine import Machine
from offramp.errors import InputError
from offramp.policies.policy import ExitPolicy
from offramp.policies.rules.fixed import Never
from offramp.policies.rules.oracle import ORACLES, Oracle
from offramp.tracing.trace import Trace
from offramp.tuning.held_out import measure
from offramp.tuning.losses import make_floor
from offramp.tuning.pool import Pool, Scored, require_policies
from offramp.tuning.pricing import Pricing, pricing_of
from offramp.tuning.results import Floor, LeagueEntry
from offramp.tuning.searching import search_pool
from offramp.tuning.verdict import split_documents

FULL_MODEL = "full model"


@dataclass(frozen=True)
class Halves:
    """A trace's documents in two halves: for choosing and for judging."""

    choosing: Trace
    judging: Trace


def halves_of(trace: Trace, seed: int) -> Halves:
    """The two halves, documents that exit heads were fitted on left out.

    Raises PolicyError for a trace without exits below L, InputError for fewer than two documents.
    """
    require_policies(trace)
    choosing, judging = split_documents(trace, seed)
    if not len(choosing):
        raise InputError(
            "one document cannot both choose policies and judge them",
            where=str(trace.folder or "the trace"),
            fix="trace at least 40 documents",
        )
    return Halves(trace.subset(choosing), trace.subset(judging))


def league(
    trace: Trace,
    machine: Machine | None,
    floors: tuple[float, ...] = (0.99, 0.95, 0.90),
    seed: int = 0,
    *,
    thorough: bool = True,
) -> tuple[LeagueEntry, ...]:
    """Per floor on agreement and family its fastest member, by net speedup; oracles and the full model too.

    machine: seconds are counted on it, bytes moved without one. A family is listed at a floor if one of its
    members reaches it on the half that chooses. thorough: as in `offramp.tuning.searching.search_pool`.

    Raises InputError for a floor outside (0, 1), a trace that cannot be halved or lacks exits below L.
    """
    checked = [make_floor({"agreement": floor}) for floor in floors]
    pricing, halves = pricing_of(trace, machine), halves_of(trace, seed)
    entries: list[LeagueEntry] = []
    for floor in checked:
        pool = Pool(halves.choosing, floor, pricing)
        search_pool(pool, floor.risk, thorough=thorough)
        best = best_of_families(pool, floor)
        judged = [_judged(halves, floor, pricing, scored, seed) for scored in [*best, *_fixed(pool)]]
        entries += sorted(judged, key=lambda entry: -(entry.net_speedup.value or 0.0))
    return tuple(entries)


def best_of_families(pool: Pool, floor: Floor) -> list[Scored]:
    """The fastest member of every family within the floor, the fastest family first."""
    families = dict.fromkeys(scored.family for scored in pool.found)
    best = [pool.fastest(floor.risk, family) for family in families]
    return sorted((scored for scored in best if scored is not None), key=lambda scored: scored.cost)


def _fixed(pool: Pool) -> list[Scored]:
    """The full model, and the bounds that no policy reaches."""
    oracles: list[tuple[str, ExitPolicy]] = [
        (f"oracle: {name.replace('_', ' ')}", Oracle(name)) for name in ORACLES
    ]
    return [pool.score(family, policy) for family, policy in [(FULL_MODEL, Never()), *oracles]]


def _judged(halves: Halves, floor: Floor, pricing: Pricing, chosen: Scored, seed: int) -> LeagueEntry:
    held = measure(halves.judging, chosen.policy, pricing, floor, seed)
    return LeagueEntry(
        family=chosen.family,
        policy=str(chosen.policy),
        reachable=chosen.policy.reachable,
        floor=floor.value,
        agreement=held.agreement,
        skip_ratio=held.skip_ratio,
        net_speedup=held.net_speedup,
        seconds_per_token=pricing.plain if held.cost.value is None else held.cost.value,
        probe_share=held.probe_share,
        probe_seconds=held.probe_cost,
    )
