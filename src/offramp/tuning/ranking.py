"""Policies ranked: the fastest of each family at a floor, the best on each machine, what early exit adds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from offramp.costs.machine import Machine
from offramp.defaults import FLOORS, SEED, WORTH
from offramp.kit.arguments import checked
from offramp.kit.numbers import Count, NotNegative, Number, Whole
from offramp.policies.cost_breakdown import saved_error
from offramp.policies.figures import PLAIN_DECODING, shared_fields
from offramp.policies.policy import ExitPolicy
from offramp.policies.prices import price_notes
from offramp.policies.rules.fixed import ORACLES, Oracle
from offramp.policies.whole_request import of_request, request_of
from offramp.tracing.trace import Trace
from offramp.tuning.floor import Floor, make_floor
from offramp.tuning.held_out import HeldOut, measure, measure_parts, speed_over
from offramp.tuning.pool import FULL_MODEL, Pool, ScoredPolicy
from offramp.tuning.pricing import Pricing, pricing_of
from offramp.tuning.replayed_verdicts import Halves, choose, halves_of
from offramp.tuning.verdict import Decision, decide_replayed, decision_of


@dataclass(frozen=True, kw_only=True)
class RankedPolicy(HeldOut):
    """One family of policies at one floor: its fastest member, chosen on one half of the documents.

    Its figures are of the other half.
    """

    family: str
    """ "max_prob, all exits", "restricted_margin, 3 exits", "patience", ..."""
    floor: Number
    probe_seconds: NotNegative
    """Of a token, for its probes."""
    parts: Mapping[str, Number] = field(default_factory=dict)
    """Seconds of one token by part (the names of `offramp.policies.cost_breakdown.PARTS`), whose sum is
    seconds_per_token; empty where not kept."""
    chosen: bool = False
    """Whether it was the fastest early exit on the half that chose (the full model if none beat what leaves
    no layer out), and so is the verdict's policy; the fastest on the other half may be another by luck."""
    full_depth: bool = False
    """Whether it leaves no layer out: what it gains, plain decoding could gain."""
    rank: Count | None = None
    """Its place among the families by speed on the half that chose, from 1; None for oracles and the full
    model, which nobody chose."""

    @property
    def exits_early(self) -> bool:
        """Whether its policy leaves layers out: plain decoding with a smaller head does not."""
        return not self.plain and not self.full_depth

    @property
    def gains_by_exits(self) -> bool:
        """Whether the layers that it leaves out save more than the error of its speed, checks charged.

        If not, what it gains is the shorter head's, and not to be called early exit's.
        """
        speed, gain = self.net_speedup, self.gain
        return self.exits_early and (gain is None or gain.by_exits > saved_error(speed.low, speed.high))


@dataclass(frozen=True, kw_only=True)
class MachineAnswer(HeldOut):
    """The best policy at one floor on one machine and batch size, judged on unseen documents."""

    machine: str
    source: str
    """Where the machine's numbers come from."""
    batch: Count
    floor: Number
    decision: Decision
    without: str = "never"
    """As a verdict's."""


@checked
def ranking(
    trace: Trace,
    machine: Machine | None,
    floors: tuple[float, ...] = FLOORS,
    seed: Whole = SEED,
    *,
    halves: Halves | None = None,
) -> tuple[RankedPolicy, ...]:
    """Per floor on agreement and family its fastest member, by net speedup; oracles and the full model too.

    machine: seconds are counted on it, bytes moved without one. A family is listed at a floor if one of its
    members reaches it on the half that chooses. halves: the trace's, if they were searched before.

    Raises InputError for a floor outside (0, 1), a trace that cannot be halved or lacks exits below L.
    """
    checked = [make_floor({"agreement": floor}) for floor in floors]
    pricing, halves = pricing_of(trace, machine), halves or halves_of(trace, seed)
    entries: list[RankedPolicy] = []
    for floor in checked:
        pool = halves.searched(floor, pricing)
        best = pool.fastest_of_families(floor.risk)
        chosen = choose(pool, floor)[0].policy
        ranked = [(scored, rank) for rank, scored in enumerate(best, start=1)]
        fixed = [(scored, None) for scored in _fixed(pool)]
        judged = [_judged(halves, floor, pricing, scored, chosen, rank) for scored, rank in [*ranked, *fixed]]
        entries += sorted(judged, key=lambda entry: -(entry.net_speedup.value or 0.0))
    return tuple(entries)


def _fixed(pool: Pool) -> list[ScoredPolicy]:
    """The full model, and the bounds that no policy reaches."""
    oracles: list[tuple[str, ExitPolicy]] = [
        (f"oracle: {name.replace('_', ' ')}", Oracle(name)) for name in ORACLES
    ]
    return [pool.score(family, policy) for family, policy in [(FULL_MODEL, PLAIN_DECODING), *oracles]]


def _judged(
    halves: Halves, floor: Floor, pricing: Pricing, scored: ScoredPolicy, chosen: ExitPolicy, rank: int | None
) -> RankedPolicy:
    held, probe_seconds, parts = measure_parts(halves.judging, scored.policy, pricing, floor, halves.seed)
    return RankedPolicy(
        **shared_fields(held, HeldOut),
        family=scored.family,
        floor=floor.value,
        probe_seconds=probe_seconds,
        parts=parts,
        chosen=scored.policy == chosen,
        full_depth=scored.policy.full_depth,
        rank=rank,
    )


def machine_answers(
    trace: Trace,
    machines: Iterable[Machine],
    batches: Iterable[int] = (1, 8, 32),
    floor: float = 0.99,
    seed: int = SEED,
    *,
    worth: float = WORTH,
    halves: Halves | None = None,
) -> tuple[MachineAnswer, ...]:
    """For every machine and batch size the policy that is fastest there at a floor on agreement.

    The policy is chosen on one half of the documents and judged on the other, as a verdict is. Batches run in
    lockstep (see `offramp.tuning.pricing.Pricing`); an answer's source says what its
    prices rest on.
    halves: the trace's, if they were searched before.

    Raises InputError for a floor outside (0, 1), a batch below 1, a machine that cannot price the model, or a
    trace that cannot be halved or lacks exits below L.
    """
    checked = make_floor({"agreement": floor})
    halves = halves or halves_of(trace, seed)
    sizes = tuple(batches)
    return tuple(
        _answer(halves, machine, pricing_of(trace, machine, batch), source, checked, worth)
        for machine in machines
        for source in ["; ".join((machine.source, *price_notes(machine, trace, sizes)))]
        for batch in sizes
    )


def _answer(
    halves: Halves, machine: Machine, pricing: Pricing, source: str, floor: Floor, worth: float
) -> MachineAnswer:
    best, without = (scored.policy for scored in choose(halves.searched(floor, pricing), floor))
    held = measure(halves.judging, best, pricing, floor, halves.seed)
    credit = speed_over(halves.judging, best, without, pricing, halves.seed)
    credit = of_request(request_of(halves.judging, machine, pricing.batch), credit, held.net_speedup.value)
    return MachineAnswer(
        **shared_fields(held, HeldOut),
        machine=pricing.machine,
        source=source,
        batch=pricing.batch,
        floor=floor.value,
        decision=decision_of(decide_replayed(best, credit, pricing.machine, worth)),
        without=str(without),
    )


@dataclass(frozen=True)
class ReplayedCredit:
    """The fastest early exit at a floor beside the fastest decoder that leaves no layer out, in replay.

    A proposal: nothing was executed or timed. Credit itself is measured (`BenchResult.credit`).
    """

    READ_OFF: ClassVar[tuple[str, ...]] = ("ratio",)

    floor: float
    exits: ExitPolicy | None
    """The early exit; None, with its speedup, where none holds the floor."""
    speedup: float | None
    """Over the full model, as the other's."""
    without: ExitPolicy
    without_speedup: float

    @property
    def ratio(self) -> float | None:
        """How many times as fast early exit is as the best without it, as predicted."""
        return None if self.speedup is None else self.speedup / self.without_speedup


def replayed_credit(entries: Iterable[RankedPolicy], floor: float) -> ReplayedCredit:
    """What early exit would be credited with at a floor if decoding did as replay does, from a ranking there.

    Those count that hold the floor on the half that judges them (its value, not its interval). Of early exits
    and of the others the one that was faster on the half that chose is taken, and its speed on the other, so
    that luck there picks nobody. The full model always holds the floor, with a speedup of 1.
    """
    held = [
        (entry.policy, entry.net_speedup.value, entry.full_depth)
        for entry in sorted(entries, key=lambda entry: entry.rank or 0)
        if entry.floor == floor and entry.rank is not None and entry.net_speedup.value is not None
        if entry.agreement.value is not None and entry.agreement.value >= floor
    ]
    exits = next(((policy, speed) for policy, speed, full in held if not full), None)
    without = next(((policy, speed) for policy, speed, full in held if full and speed > 1.0), None)
    policy, speedup = exits or (None, None)
    baseline, baseline_speedup = without or (PLAIN_DECODING, 1.0)
    return ReplayedCredit(floor, policy, speedup, baseline, baseline_speedup)
