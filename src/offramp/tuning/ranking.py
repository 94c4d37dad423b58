"""Policies ranked: the fastest of each family at a floor, the best on each machine, what early exit adds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from offramp.costs.machine import Machine
from offramp.kit.defaults import FLOORS, SEED, WORTH
from offramp.kit.numbers import Count, Proportion
from offramp.policies.cost_breakdown import Gain, saved_error
from offramp.policies.policy import ExitPolicy
from offramp.policies.policy_cost import price_notes
from offramp.policies.rules.fixed import ORACLES, Never, Oracle
from offramp.scoring.estimate import Estimate
from offramp.tracing.trace import Trace
from offramp.tuning.floor import Floor, make_floor
from offramp.tuning.held_out import measure, speed_over
from offramp.tuning.judging import Halves, choose, decide_replayed, halves_of
from offramp.tuning.pool import Pool, Scored
from offramp.tuning.pricing import Pricing, pricing_of
from offramp.tuning.verdict import Decision


@dataclass(frozen=True)
class RankedPolicy:
    """One family of policies at one floor: its fastest member, chosen on one half of the documents.

    family: "max_prob, all exits", "restricted_margin, 3 exits", "patience", ... reachable: False for an
    oracle. agreement, skip_ratio, net_speedup, reference_agreement (as a verdict's): on the other half.
    probe_share: probes' share of the policy's seconds; probe_seconds: of one token. parts: seconds of one
    token by part (the names of `offramp.policies.cost_breakdown.PARTS`), summing to
    seconds_per_token; empty where not kept. chosen: whether it was the fastest early exit on the half that
    chose (the full model if none beat what leaves no layer out), and so is the verdict's policy; the fastest
    on the other half may be another by luck. gain: what each part of a step saves on the other half, None
    where not kept. full_depth: whether it leaves no layer out: what it gains, plain decoding could gain.
    rank: its place among the families by speed on the half that chose, from 1; None for oracles and the full
    model, which nobody chose.
    """

    family: str
    policy: str
    reachable: bool
    floor: float
    agreement: Estimate
    skip_ratio: Estimate
    net_speedup: Estimate
    seconds_per_token: float
    probe_share: Proportion
    probe_seconds: float
    parts: Mapping[str, float] = field(default_factory=dict)
    chosen: bool = False
    reference_agreement: Estimate | None = None
    gain: Gain | None = None
    full_depth: bool = False
    rank: Count | None = None

    @property
    def exits_early(self) -> bool:
        """Whether its policy leaves layers out: plain decoding with a smaller head does not."""
        return self.policy != "never" and not self.full_depth

    @property
    def gains_by_exits(self) -> bool:
        """Whether the layers that it leaves out save more than the error of its speed, checks charged.

        If not, what it gains is the shorter head's, and not to be called early exit's.
        """
        speed, gain = self.net_speedup, self.gain
        return self.exits_early and (gain is None or gain.by_exits > saved_error(speed.low, speed.high))


@dataclass(frozen=True)
class MachineAnswer:
    """The best policy at one floor on one machine and batch size, judged on unseen documents.

    decision, reference_agreement: as a verdict's. source: where the machine's numbers come from.
    plain_seconds_per_token: of the full model there. without: as a verdict's.
    """

    machine: str
    source: str
    batch: Count
    floor: float
    policy: str
    decision: Decision
    net_speedup: Estimate
    agreement: Estimate
    plain_seconds_per_token: float
    reference_agreement: Estimate | None = None
    without: str = "never"


FULL_MODEL = "full model"


def ranking(
    trace: Trace,
    machine: Machine | None,
    floors: tuple[float, ...] = FLOORS,
    seed: int = SEED,
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
) -> RankedPolicy:
    held = measure(halves.judging, scored.policy, pricing, floor, halves.seed)
    return RankedPolicy(
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
        _answer(halves, pricing_of(trace, machine, batch), source, checked, worth)
        for machine in machines
        for source in ["; ".join((machine.source, *price_notes(machine, trace, sizes)))]
        for batch in sizes
    )


def _answer(halves: Halves, pricing: Pricing, source: str, floor: Floor, worth: float) -> MachineAnswer:
    choice = choose(halves.searched(floor, pricing), floor)
    policy = choice.policy
    held = measure(halves.judging, policy, pricing, floor, halves.seed)
    credit = speed_over(halves.judging, policy, choice.without, pricing, halves.seed)
    return MachineAnswer(
        machine=pricing.machine,
        source=source,
        batch=pricing.batch,
        floor=floor.value,
        policy=str(policy),
        decision=decide_replayed(policy, credit, pricing.machine, worth),
        net_speedup=held.net_speedup,
        agreement=held.agreement,
        plain_seconds_per_token=pricing.plain,
        reference_agreement=held.reference_agreement,
        without=str(choice.without),
    )


@dataclass(frozen=True)
class ReplayedCredit:
    """The fastest early exit at a floor beside the fastest decoder that leaves no layer out, in replay.

    A proposal: nothing was executed or timed. Credit itself is measured (`BenchResult.credit`).
    exits, without: their policies. speedup, without_speedup: of each over the full model. Without any early
    exit that holds the floor, exits and speedup are None.
    """

    READ_OFF: ClassVar[tuple[str, ...]] = ("ratio",)

    floor: float
    exits: str | None
    speedup: float | None
    without: str
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
    held = sorted(
        (entry.rank, entry.policy, entry.net_speedup.value, entry.full_depth)
        for entry in entries
        if entry.floor == floor and entry.rank is not None and entry.net_speedup.value is not None
        if entry.agreement.value is not None and entry.agreement.value >= floor
    )
    exits = next(((policy, speed) for _, policy, speed, full in held if not full), None)
    without = next(((policy, speed) for _, policy, speed, full in held if full and speed > 1.0), None)
    policy, speedup = exits or (None, None)
    baseline, baseline_speedup = without or ("never", 1.0)
    return ReplayedCredit(floor, policy, speedup, baseline, baseline_speedup)
