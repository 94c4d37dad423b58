"""A trace's documents in two halves, one to choose policies on and one to judge them on."""

from __future__ import annotations

from dataclasses import dataclass, field

from offramp.errors import InputError
from offramp.tracing.trace import Trace
from offramp.tuning.evidence import Evidence
from offramp.tuning.floor import Floor
from offramp.tuning.pool import Pool, require_policies
from offramp.tuning.pricing import Pricing
from offramp.tuning.searching import search_pool
from offramp.tuning.splits import split_documents


@dataclass
class Halves:
    """Documents for choosing and for judging, and the searches made on the former.

    Verdict, league and machines choose from the same searches, so that they cannot contradict each other;
    what does not depend on prices is computed once for all of them.
    """

    choosing: Trace
    judging: Trace
    seed: int
    _evidence: list[Evidence] = field(init=False, repr=False, default_factory=list)
    _pools: list[Pool] = field(init=False, repr=False, default_factory=list)

    def searched(self, floor: Floor, pricing: Pricing) -> Pool:
        """Every family's fastest members around a floor, on the documents for choosing."""
        for pool in self._pools:
            if pool.floor == floor and pool.pricing.same_prices(pricing):
                return pool
        pool = Pool(self.choosing, floor, pricing, self._evidence_for(floor))
        search_pool(pool, floor.risk)
        self._pools.append(pool)
        return pool

    def _evidence_for(self, floor: Floor) -> Evidence:
        for evidence in self._evidence:
            if evidence.serves(floor):
                return evidence
        self._evidence.append(Evidence(self.choosing, floor))
        return self._evidence[-1]


def halves_of(trace: Trace, seed: int = 0) -> Halves:
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
    return Halves(trace.subset(choosing), trace.subset(judging), seed)
