"""How cheap one check of a signal would have to be for its best policy to pay, for every recorded signal.

    python benchmarks/check_prices.py TRACE --hardware l4 [--floor 0.95] [--target 1.05]

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import offramp
from offramp.costs.token import TokenCosts
from offramp.policies.parameter_types import Exits
from offramp.policies.prices import check_price, costs_of
from offramp.policies.rules.threshold import signal_needs
from offramp.policies.signals import Signal
from offramp.tracing.trace import Trace
from offramp.tuning.break_even import TARGET
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

    Raises InputError for a floor out of range.
    """
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


def main() -> None:
    """Print a line for each signal, dearest check first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--hardware", required=True)
    parser.add_argument("--floor", type=float, default=0.95, help="on agreement; %(default)s")
    parser.add_argument("--target", type=float, default=TARGET)
    asked = parser.parse_args()
    trace = offramp.Trace.load(asked.trace)
    costs = costs_of(trace, offramp.find_machine(asked.hardware))
    rows = break_even_by_signal(trace, costs, {"agreement": asked.floor}, asked.target)
    for row in rows:
        print(f"{row.signal}: {row.sentence}")
    print(json.dumps([{**asdict(row), "floor": str(row.floor)} for row in rows]))


if __name__ == "__main__":
    main()
