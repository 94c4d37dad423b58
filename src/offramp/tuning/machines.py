"""Machines side by side: the best policy on each, at each batch size, judged on unseen documents."""

from __future__ import annotations

from collections.abc import Iterable

from offramp.costs.machine import Machine
from offramp.policies.policy_cost import untimed_notes
from offramp.tracing.trace import Trace
from offramp.tuning.floor import Floor
from offramp.tuning.halves import Halves, halves_of
from offramp.tuning.held_out import measure, speed_over
from offramp.tuning.judging import choose, decide_replayed
from offramp.tuning.losses import make_floor
from offramp.tuning.pricing import Pricing, pricing_of
from offramp.tuning.results import MachineAnswer
from offramp.tuning.verdict import WORTH


def machine_answers(
    trace: Trace,
    machines: Iterable[Machine],
    batches: Iterable[int] = (1, 8, 32),
    floor: float = 0.99,
    seed: int = 0,
    *,
    worth: float = WORTH,
    halves: Halves | None = None,
) -> tuple[MachineAnswer, ...]:
    """For every machine and batch size the policy that is fastest there at a floor on agreement.

    The policy is chosen on one half of the documents and judged on the other, as a verdict is. Batches run in
    lockstep (see `offramp.tuning.pricing.Pricing`); an answer's source says which of them were not timed.
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
        for source in ["; ".join((machine.source, *untimed_notes(machine, sizes)))]
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
