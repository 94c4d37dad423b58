"""What would have to change for early exit to pay: the price of a probe, the head, a layer or K,V repair."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from offramp.costs.probes import FULL_HEAD
from offramp.costs.token import TokenCosts
from offramp.errors import InputError
from offramp.policies.decisions import Decisions, replay_decisions, task_of
from offramp.policies.grammar import parse_policy
from offramp.policies.parameters import Exits
from offramp.policies.policy import ExitPolicy
from offramp.policies.policy_cost import check_price, gives_output
from offramp.policies.rules.threshold import signal_needs
from offramp.policies.signals import Signal
from offramp.records.numbers import LARGEST_NUMBER, SMALLEST_NUMBER
from offramp.tracing.trace import Trace
from offramp.tuning.floor import Floor, make_floor
from offramp.tuning.pool import Pool
from offramp.tuning.pricing import Pricing
from offramp.tuning.threshold_family import (
    ThresholdFamily,
    exit_sets,
    firing_exits,
    fitting_sets,
    recorded_signals,
)

TARGET = 1.05
"""The net speedup from which on early exit is worth its trouble."""

ROUNDING = 1e-13
"""Share of a step's cost that sums of its prices may be off by for their rounding."""
VANISHING = 1e-30
"""A price below this share of a step's cost is none."""

# A fact whose probe gives no output: a token that leaves by it pays its exit's head beside.
SILENT_FACT = "hidden_cosine_to_previous"


SYMBOLS = {"seconds": "s", "bytes": "B", "flops": "FLOPs"}
PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))


@dataclass(frozen=True)
class BreakEven:
    """What would have to change for one policy to pay.

    lever: "probe", "head", "layer" or "key and value repair". now: today's seconds of one such part (of one
    layer, one probe, ...). needed: the seconds at which the net speedup reaches the target, None if no value
    does. factor: needed / now. sentence: in plain words.
    """

    policy: str
    lever: str
    now: float
    needed: float | None
    factor: float | None
    target: float
    sentence: str


@dataclass(frozen=True)
class Lever:
    """A price that might change by a factor.

    part: what it is the price of, in words. now: today's. scaled: the price list with it times a factor.
    """

    name: str
    part: str
    now: Callable[[TokenCosts], float]
    scaled: Callable[[TokenCosts, float], TokenCosts]


def scaled_head(costs: TokenCosts, factor: float) -> TokenCosts:
    """The price list with every product of the whole head, at exits and as a probe, times a factor."""
    return replace(
        costs,
        head=factor * costs.head,
        exit_head=costs.exit_head if costs.short_list else factor * costs.exit_head,
        probes={name: price * (factor if name == FULL_HEAD else 1.0) for name, price in costs.probes.items()},
    )


LEVERS: tuple[Lever, ...] = (
    Lever("head", "the output head", lambda costs: costs.head, scaled_head),
    Lever(
        "layer",
        "a layer",
        lambda costs: float(np.mean(costs.layers)),
        lambda costs, factor: replace(costs, layers=factor * costs.layers),
    ),
    Lever(
        "key and value repair",
        "K,V repair of a skipped layer",
        lambda costs: float(np.mean(costs.key_value)),
        lambda costs, factor: replace(costs, key_value=factor * costs.key_value),
    ),
)


def break_even(
    trace: Trace, policy: ExitPolicy | str, costs: TokenCosts, target: float = TARGET
) -> tuple[BreakEven, ...]:
    """For each part of the cost, the price at which the policy's net speedup reaches the target.

    costs: prices of one step; `now` and `needed` are in its unit, of a whole step.

    The plain cost P and the policy's mean cost C are linear in every price. With one price times f,
    P(f) - target C(f) = g(0) + (f / s) (g(s) - g(0)), whatever s, vanishes at f = s g(0) / (g(0) - g(s)). The
    first row is the price x of one check, all checks alike, made by a probe that gives no output (a token
    then pays its exit's head): with C0 the policy's cost without probes and n its checks per token,
    x = (P / target - C0) / n; a policy without probes has no such row.

    Raises InputError for a target that is not positive, PolicyError if the policy does not fit the trace.
    """
    require_target(target)
    policy = parse_policy(policy) if isinstance(policy, str) else policy
    decisions = replay_decisions(policy, trace)
    pricing = _pricing(costs).paid_by(policy.for_task(task_of(trace)))
    rows = [] if not decisions.needs else [_probe_row(str(policy), decisions, pricing, target)]
    return (*rows, *(_row(str(policy), lever, decisions, pricing, target) for lever in LEVERS))


def tokens_to_pay_back(spent: float, plain: float, saved: float, without: float = 0.0) -> float | None:
    """Generated tokens after which seconds that were spent once are saved again; None if they never are.

    plain: seconds of a token of plain decoding. saved: share of them that is saved. without: the share that
    would be saved had nothing been spent. n = spent / (plain (saved - without)).
    """
    gained = plain * (saved - without)
    return spent / gained if gained > 0.0 else None


def require_target(target: float) -> None:
    """Raise InputError unless a target speedup is a positive number."""
    if not SMALLEST_NUMBER <= target <= LARGEST_NUMBER:
        raise InputError(
            f"a target of {target} is no speedup",
            fix="choose a positive number; 1.05 asks for 5 % more speed",
        )


def checked_at_one_price(
    costs: TokenCosts, decisions: Decisions, price: float
) -> tuple[TokenCosts, Decisions]:
    """The same decisions with all checks by a probe of this price that gives no output; with its prices."""
    silent: Mapping[int, tuple[str, ...]] = dict.fromkeys(decisions.needs, (SILENT_FACT,))
    return replace(costs, probes=dict.fromkeys(costs.probes, price)), replace(decisions, needs=dict(silent))


def net_speedup(costs: TokenCosts, decisions: Decisions) -> float:
    """Plain cost over the policy's mean cost."""
    pricing = _pricing(costs)
    return pricing.plain / pricing.of_decisions(decisions)


def _pricing(costs: TokenCosts) -> Pricing:
    return Pricing(costs, "the price list", "as given")


def _margin(pricing: Pricing, decisions: Decisions, target: float) -> float:
    """P - target C: at least zero exactly where the policy reaches the target."""
    return pricing.plain - target * pricing.of_decisions(decisions)


def _scaled(pricing: Pricing, lever: Lever, factor: float) -> Pricing:
    """One price times a factor, for the policy and for the full model."""
    full = None if pricing.full is None else lever.scaled(pricing.full, factor)
    return replace(pricing, costs=lever.scaled(pricing.costs, factor), full=full)


def _probe_row(name: str, decisions: Decisions, pricing: Pricing, target: float) -> BreakEven:
    costs, free = pricing.costs, pricing.without_probes(decisions)
    one_each, silent = checked_at_one_price(costs, decisions, 1.0)
    per_unit = _pricing(one_each).of_decisions(silent) - free
    needed = (pricing.plain / target - free) / per_unit if per_unit > 0.0 else -1.0
    now = _mean_check(costs, decisions)
    if needed < 0.0:
        sentence = f"Even free checks would not make the policy {target:g} times as fast as the full model."
        return BreakEven(name, "probe", now, None, None, target, sentence)
    unit = costs.unit
    head = any(gives_output(facts, short_list=costs.short_list) for facts in decisions.needs.values())
    beside = ", the head's product beside where a token leaves" if head else ""
    sentence = (
        f"A check costs {amount(now, unit)}; at {amount(needed, unit)} or less{beside}, the policy would be "
        f"{target:g} times as fast as the full model."
    )
    return BreakEven(name, "probe", now, needed, needed / now if now > 0.0 else None, target, sentence)


def _mean_check(costs: TokenCosts, decisions: Decisions) -> float:
    """Today's mean price of a check, over all checks made: of a step if it holds one token of each row."""
    made = np.array([np.count_nonzero(decisions.probed_at(place)) for place in range(len(decisions.needs))])
    prices = np.array([check_price(costs, facts) for facts in decisions.needs.values()])
    weights = made if made.any() else np.ones(len(made))
    return float(np.average(prices, weights=weights))


def _row(name: str, lever: Lever, decisions: Decisions, pricing: Pricing, target: float) -> BreakEven:
    now, unit, plain = lever.now(pricing.listed), pricing.costs.unit, pricing.plain
    # Between no price and one as large as a whole step: what a small one changes drowns in rounding.
    stretch = plain / now if now > VANISHING * plain else 0.0
    free = _margin(_scaled(pricing, lever, 0.0), decisions, target)
    free = 0.0 if abs(free) <= 10.0 * ROUNDING * plain else free
    rise = _margin(_scaled(pricing, lever, stretch), decisions, target) - free
    flat = abs(rise) <= ROUNDING * plain
    factor = None if flat or free * rise > 0.0 else abs(free / rise) * stretch
    part, faster = lever.part, f"{target:g} times as fast as the full model"
    now_text = amount(now, unit)
    if factor is None:
        sentence = (
            f"The policy is {faster} whatever {part} costs."
            if free >= 0.0
            else f"No price of {part} would make the policy {faster}."
        )
        return BreakEven(name, lever.name, now, None, None, target, sentence)
    needed = factor * now
    bound = "or more" if rise > 0.0 else "or less"
    sentence = (
        f"{part[0].upper()}{part[1:]} costs {now_text}; at {amount(needed, unit)} {bound} "
        f"({factor:.3g} times today's) the policy would be {faster}."
    )
    return BreakEven(name, lever.name, now, needed, factor, target, sentence)


def amount(value: float, unit: str) -> str:
    """A price in words, three digits with a prefix that suits its size: 3.1 ms, 2.16 MB."""
    symbol = SYMBOLS.get(unit, unit)
    largest, prefix = next(
        (one for one in PREFIXES if abs(value) >= one[0]), PREFIXES[-1] if value else (1.0, "")
    )
    return f"{value / largest:.3g} {prefix}{symbol}"


@dataclass(frozen=True)
class SignalBreakEven:
    """How cheap one check of a signal would have to be for its best policy to pay at a floor.

    now: today's price of one check, in layers (of the mean layer). needed: the price, in layers, at which the
    net speedup of the best `policy` reaches the target; None if even free checks do not suffice, the policy
    then being the fastest with free checks (None if no threshold holds the floor). free_speedup: net speedup
    of the fastest policy at that floor if checks were free. sentence: in plain words.
    """

    signal: str
    floor: Floor
    target: float
    policy: str | None
    now: float
    needed: float | None
    free_speedup: float | None
    sentence: str


@dataclass(frozen=True)
class _Best:
    """The most a check may cost, in the price list's unit, and the policy it may cost it with.

    free_cost: mean cost of a token with free checks.
    """

    price: float
    free_cost: float
    policy: str


def break_even_by_signal(
    trace: Trace, costs: TokenCosts, floor: Floor | Mapping[str, float], target: float = TARGET
) -> tuple[SignalBreakEven, ...]:
    """The break-even price of a check for every recorded signal, dearest first.

    costs: prices of one step. floor: mean loss over this trace's documents at most (nothing is certified).

    Among all thresholds of the signal on single exits and on the usual sets that hold the floor, the largest
    x = (P / target - C0) / n, with P the full model's cost of a token, C0 the policy's with free checks (a
    token that leaves pays its exit's head) and n its checks per token. A check that only opens a comparison
    is charged at today's price within C0. Exact where a signal has at most 4,096 distinct values, else on as
    many quantiles of it.

    Raises InputError for a floor out of range or a target that is not positive.
    """
    require_target(target)
    pool = Pool(trace, make_floor(floor), Pricing(costs, "the price list", "as given"))
    rows = [_signal_row(pool, signal, target) for signal in recorded_signals(trace)]
    return tuple(
        sorted(rows, key=lambda row: (-(row.needed or -1.0), -(row.free_speedup or 0.0), row.signal))
    )


def _signal_row(pool: Pool, signal: Signal, target: float) -> SignalBreakEven:
    layer = float(np.mean(pool.pricing.costs.layers))
    now = check_price(pool.pricing.costs, (signal.fact,)) / layer
    found = _cheap_enough(pool, signal, target)
    if not found:
        sentence = f"No threshold of {signal.name} holds {pool.floor}."
        return SignalBreakEven(signal.name, pool.floor, target, None, now, None, None, sentence)
    best = max(found, key=lambda one: (one.price, -one.free_cost, one.policy))
    fastest = min(found, key=lambda one: (one.free_cost, one.policy))
    free_speedup = pool.pricing.plain / fastest.free_cost
    if best.price < 0.0:
        sentence = (
            f"Even if checks of {signal.name} were free, {pool.floor} would allow {free_speedup:.3g} times "
            f"the full model's speed, less than {target:g}."
        )
        return SignalBreakEven(
            signal.name, pool.floor, target, fastest.policy, now, None, free_speedup, sentence
        )
    needed = best.price / layer
    sentence = (
        f"A check of {signal.name} costs {now:.3g} layers; at {needed:.3g} or less, a policy that holds "
        f"{pool.floor} would be {target:g} times as fast as the full model."
    )
    return SignalBreakEven(signal.name, pool.floor, target, best.policy, now, needed, free_speedup, sentence)


def _cheap_enough(pool: Pool, signal: Signal, target: float) -> list[_Best]:
    """On each set of exits, the threshold that may pay most for a check, and the fastest with free checks."""
    family = ThresholdFamily(pool, signal, ())
    sets = dict.fromkeys([*((exit,) for exit in pool.evidence.below), *exit_sets(pool.evidence.below)])
    found = []
    if family.grid.points:
        for exits in fitting_sets(pool.trace, signal, sets):
            found += _best_of_set(family, exits, target)
    return found


def _best_of_set(family: ThresholdFamily, exits: Exits, target: float) -> list[_Best]:
    pool, signal = family.pool, family.signal
    curve = family.curve_of(exits)
    allowed = np.flatnonzero(curve.risk <= pool.floor.risk + 1e-12)
    if not allowed.size:
        return []
    opening = {exits[0]: signal_needs(signal, exits)[exits[0]]} if signal.opens else {}
    firing = firing_exits(signal, exits)
    taken = np.array([*firing, pool.trace.layers]) - 1
    shares = curve.shares[allowed]
    free = pool.pricing.mean(pool.pricing.at_exits(opening)[taken], shares)
    # Checks of a token that leaves at each firing exit, or at exit L.
    checks = np.array([*range(1, len(firing) + 1), len(firing)], dtype=np.float64)
    made = pool.pricing.mean(checks, shares) / pool.pricing.batch
    price = (pool.pricing.plain / target - free) / made
    places = dict.fromkeys((int(np.argmax(price)), int(np.argmin(free))))
    return [
        _Best(float(price[place]), float(free[place]), str(family.policy_at(exits, int(allowed[place]))))
        for place in places
    ]
