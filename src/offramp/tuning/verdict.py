"""The verdict at a quality floor: chosen on one half of the documents, judged on the other."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from offramp.costs.machine import Machine
from offramp.errors import InputError
from offramp.policies.charging import prices_of
from offramp.policies.policy import ExitPolicy
from offramp.policies.rules.fixed import Never
from offramp.scoring.bootstrap import DOCUMENTS_NEEDED
from offramp.scoring.estimate import Estimate
from offramp.tracing.trace import Trace
from offramp.tuning import bounds
from offramp.tuning.halves import Halves, halves_of
from offramp.tuning.held_out import HeldOut, measure, speed_over
from offramp.tuning.losses import make_floor
from offramp.tuning.pool import Pool
from offramp.tuning.pricing import BYTES, Pricing, pricing_of
from offramp.tuning.results import Decision, Floor, Verdict
from offramp.tuning.splits import split_documents

WORTH = 0.05
"""The gain in speed from which on early exit is worth its trouble."""


def judge(
    trace: Trace,
    floors: tuple[float, ...] = (0.99, 0.95, 0.90),
    worth: float = WORTH,
    delta: float = 0.1,
    seed: int = 0,
    machine: Machine | None = None,
    *,
    halves: Halves | None = None,
) -> tuple[Verdict, ...]:
    """Whether early exit pays at each floor on agreement, at batch 1: seconds on a machine, else bytes moved.

    The policy is the fastest that `offramp.tuning.searching.search_pool` finds on one half of the documents
    (split by `seed`; halves: the trace's, if they were searched before); it is judged on the other, with 95 %
    bootstrap intervals over documents. It is credited only with what it adds to the fastest decoder at that
    floor which leaves no layer out: the full model, or the full model with its output head cut to the short
    list. "pays": the lower limit of its speed over that exceeds 1 + worth and the interval of agreement does
    not lie wholly below the floor; "does not pay": the upper limit stays below 1 + worth, or nothing beat
    that decoder; else, and for a policy with under 20 documents to judge it on, "too close to call".

    Raises InputError for a floor or delta outside (0, 1), a negative worth, or a trace without tokens.
    """
    for name, share in (*(("floor", floor) for floor in floors), ("delta", delta)):
        if not 0.0 < share < 1.0:
            raise InputError(f"a {name} of {share} is no share", fix="choose a number between 0 and 1")
    if not (math.isfinite(worth) and worth >= 0.0):
        raise InputError(
            f"a worth of {worth} is no gain", fix="choose 0 or more; 0.05 asks for 5 % more speed"
        )
    pricing = pricing_of(trace, machine)
    seed = seed if halves is None else halves.seed
    in_flops = Pricing(prices_of(trace).flops, "FLOPs", "counted from the model's shape, batch 1")
    fit, report = split_documents(trace, seed)
    documents = (len(fit), len(report))
    unjudged = _why_unjudged(trace, len(fit))
    if unjudged is not None:
        nothing = Estimate(None, undefined=unjudged)
        reference = None if trace.reference_top1 is None else nothing
        undecided = [_undecided(floor, delta, unjudged, documents, pricing.machine) for floor in floors]
        return tuple(replace(verdict, reference_agreement=reference) for verdict in undecided)
    halves = halves or halves_of(trace, seed)
    verdicts = []
    for floor in floors:
        checked = make_floor({"agreement": floor})
        choice = choose(halves.searched(checked, pricing), checked)
        policy, without = choice.policy, choice.without
        held = measure(halves.judging, policy, pricing, checked, seed)
        flops = measure(halves.judging, policy, in_flops, checked, seed).net_speedup
        credit = speed_over(halves.judging, policy, without, pricing, seed)
        decision = decide(policy, credit, held.agreement, floor, worth)
        verdicts.append(
            Verdict(
                floor=floor,
                decision=decision,
                reason=_reason(floor, worth, choice, held, credit, documents, pricing.machine),
                policy=str(policy),
                agreement=held.agreement,
                skip_ratio=held.skip_ratio,
                net_speedup=held.net_speedup,
                net_speedup_flops=flops,
                fit_agreement=1.0 - choice.risk,
                fit_documents=documents[0],
                report_documents=documents[1],
                documents_needed=documents_needed(floor, delta),
                floor_held=_value(held.agreement) >= floor,
                basis=pricing.machine,
                reference_agreement=held.reference_agreement,
                gain=held.gain,
                without=str(without),
                credit=credit,
            )
        )
    return tuple(verdicts)


def documents_needed(floor: float, delta: float) -> int:
    """Documents without a loss that a certificate of this floor at risk `delta` needs at least.

    The smallest n with floor^n <= delta: ceil(ln delta / ln floor), 230 for 0.99 at 0.1.
    """
    return bounds.documents_needed(1.0 - floor, delta)


@dataclass(frozen=True)
class Choice:
    """What a search chose within a floor.

    policy: the fastest early exit, the full model if none beats what can be had without one; its mean loss is
    `risk`. without: the fastest policy that leaves no layer out: the full model, or its head cut to the short
    list.
    """

    policy: ExitPolicy
    risk: float
    without: ExitPolicy


def choose(pool: Pool, floor: Floor) -> Choice:
    """The fastest early exit of a search within a floor, credited only with what it adds to the rest."""
    without, cost = pool.fastest(floor.risk, full_depth=True), pool.pricing.plain
    cut = without is not None and without.cost < cost
    baseline: ExitPolicy = without.policy if without is not None and cut else Never()
    cost = without.cost if without is not None and cut else cost
    best = pool.fastest(floor.risk, full_depth=False)
    if best is None or best.cost >= cost:
        return Choice(Never(), 0.0, baseline)
    return Choice(best.policy, best.risk, baseline)


def decide(
    policy: ExitPolicy, speedup: Estimate, agreement: Estimate, floor: float, worth: float
) -> Decision:
    """The decision on a policy that was judged on unseen documents (see `judge`).

    speedup: over the fastest decoder that leaves no layer out.
    """
    if isinstance(policy, Never):
        return "does not pay"
    if speedup.low is None or speedup.high is None or agreement.high is None:
        return "too close to call"
    if speedup.high < 1.0 + worth:
        return "does not pay"
    # Speed bought with more disagreement than allowed is not what was asked for.
    return "pays" if speedup.low > 1.0 + worth and agreement.high >= floor else "too close to call"


def _reason(
    floor: float,
    worth: float,
    choice: Choice,
    held: HeldOut,
    credit: Estimate,
    documents: tuple[int, int],
    basis: str,
) -> str:
    """Why it was decided so, in a few sentences."""
    cut = not isinstance(choice.without, Never)
    if isinstance(choice.policy, Never):
        few = f" So few documents say little: {DOCUMENTS_NEEDED} are needed for an interval."
        return (
            f"On {documents[0]} documents, no policy of any family that keeps {_percent(floor)} "
            f"agreement {_better(basis, CUT if cut else 'the full model')} once every probe is charged."
        ) + (few if documents[1] < DOCUMENTS_NEEDED else "")
    speedup, agreement = held.net_speedup, held.agreement
    quality = _quality(floor, agreement)
    unit = "in bytes moved" if basis == BYTES else f"in seconds on {basis}"
    gain = f"Predicted net speedup, {unit}: {_value(speedup):.3f} on {documents[1]} unseen documents"
    if speedup.low is None or speedup.high is None or agreement.high is None:
        return (
            f"{gain}; fewer than {DOCUMENTS_NEEDED} allow no interval, so chance is not ruled out. {quality}"
        )
    gain += f" (95 % interval {speedup.low:.3f} to {speedup.high:.3f}"
    gain += ")." if cut else f"; worth it above {1 + worth:.2f})."
    low = speedup.low if credit.low is None else credit.low
    if cut:
        gain += f" Over {CUT}: {_value(credit):.3f} ({low:.3f} to {credit.high:.3f}; worth it above "
        gain += f"{1 + worth:.2f})."
    missed = low > 1.0 + worth and agreement.high < floor
    return f"{gain} {'Fast enough, but the floor was missed. ' if missed else ''}{quality}"


CUT = "the full model with its output head cut to the short list"


def _better(basis: str, baseline: str) -> str:
    """How a policy would have beaten what can be had without early exit."""
    return f"moves fewer bytes than {baseline}" if basis == BYTES else f"is faster than {baseline} on {basis}"


def _quality(floor: float, agreement: Estimate) -> str:
    """Whether the floor held on the unseen documents, in words."""
    value = _value(agreement)
    said = f"Agreement there is {_percent(value)}"
    if agreement.low is not None and agreement.high is not None:
        said += f" (95 % interval {_percent(agreement.low)} to {_percent(agreement.high)})"
    if value >= floor:
        return f"{said}, which holds the floor of {_percent(floor)}."
    allowed = agreement.high is not None and agreement.high >= floor
    doubt = "; the interval still allows it" if allowed else ""
    return f"{said}, which misses the floor of {_percent(floor)}{doubt}."


def _percent(share: float) -> str:
    """A share in percent, rounded down, so that 98.999 % never reads as a floor of 99 % reached."""
    return f"{math.floor(share * 1e4 + 1e-6) / 100:g} %"


def _value(estimate: Estimate) -> float:
    """The value of a figure that is always defined here: the held-out half has tokens."""
    return math.nan if estimate.value is None else estimate.value


def _why_unjudged(trace: Trace, fit_documents: int) -> str | None:
    """Why no policy can be chosen and judged on this trace, None if one can."""
    if not fit_documents:
        return "one document cannot both choose a policy and judge it; trace at least 40"
    if len(trace.exits) == 1 and trace.layers > 1:
        return "no exit before the last was traced, so no policy could be replayed; trace more exits"
    return None


def _undecided(floor: float, delta: float, why: str, documents: tuple[int, int], basis: str) -> Verdict:
    """The answer for a trace on which nothing can be judged."""
    undefined = Estimate(None, undefined=why)
    return Verdict(
        floor=floor,
        decision="too close to call",
        reason=f"Nothing was judged: {why}.",
        policy="never",
        agreement=undefined,
        skip_ratio=undefined,
        net_speedup=undefined,
        net_speedup_flops=undefined,
        fit_agreement=math.nan,
        fit_documents=documents[0],
        report_documents=documents[1],
        documents_needed=documents_needed(floor, delta),
        floor_held=False,
        basis=basis,
    )
