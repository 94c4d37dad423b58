"""What would have to change for early exit to pay: the price of a probe, the head, a layer or K,V repair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from offramp.costs.probes import FULL_HEAD
from offramp.costs.token import TokenCosts
from offramp.kit.numbers import Number, Positive
from offramp.policies.decisions import Decisions, replay_decisions, task_of
from offramp.policies.grammar import parse_policy
from offramp.policies.policy import ExitPolicy
from offramp.policies.prices import check_price, gives_output
from offramp.tracing.trace import Trace
from offramp.tuning.pricing import Pricing

TARGET = 1.05
"""The net speedup from which on early exit is worth its trouble."""

ROUNDING = 1e-13
"""Share of a step's cost that sums of its prices may be off by for their rounding."""
VANISHING = 1e-30
"""A price below this share of a step's cost is none."""

AS_GIVEN = ("the price list", "as given")

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
    now: Number
    needed: Number | None
    factor: Positive | None
    target: Number
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
    trace: Trace, policy: ExitPolicy | str, costs: TokenCosts, target: Positive = TARGET
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
    policy = parse_policy(policy) if isinstance(policy, str) else policy
    decisions = replay_decisions(policy, trace)
    pricing = Pricing(costs, *AS_GIVEN).paid_by(policy.for_task(task_of(trace)))
    rows = [_probe_row(str(policy), decisions, pricing, target)] if decisions.needs else []
    return (*rows, *(_row(str(policy), lever, decisions, pricing, target) for lever in LEVERS))


def tokens_to_pay_back(spent: float, plain: float, saved: float, without: float = 0.0) -> float | None:
    """Generated tokens after which seconds that were spent once are saved again; None if they never are.

    plain: seconds of a token of plain decoding. saved: share of them that is saved. without: the share that
    would be saved had nothing been spent. n = spent / (plain (saved - without)).
    """
    gained = plain * (saved - without)
    return spent / gained if gained > 0.0 else None


def checked_at_one_price(
    costs: TokenCosts, decisions: Decisions, price: float
) -> tuple[TokenCosts, Decisions]:
    """The same decisions with all checks by a probe of this price that gives no output; with its prices."""
    silent: dict[int, tuple[str, ...]] = dict.fromkeys(decisions.needs, (SILENT_FACT,))
    return replace(costs, probes=dict.fromkeys(costs.probes, price)), replace(decisions, needs=silent)


def _probe_row(policy: str, decisions: Decisions, pricing: Pricing, target: float) -> BreakEven:
    costs, free = pricing.costs, pricing.without_probes(decisions)
    one_each, silent = checked_at_one_price(costs, decisions, 1.0)
    per_unit = Pricing(one_each, *AS_GIVEN).of_decisions(silent) - free
    needed = (pricing.plain / target - free) / per_unit if per_unit > 0.0 else -1.0
    now, faster = _mean_check(costs, decisions), f"{target:g} times as fast as the full model."
    if needed < 0.0:
        said = f"Even free checks would not make the policy {faster}"
        return BreakEven(policy, "probe", now, None, None, target, said)
    head = any(gives_output(facts, short_list=costs.short_list) for facts in decisions.needs.values())
    beside = ", the head's product beside where a token leaves" if head else ""
    said = f"A check costs {amount(now, costs.unit)}; at {amount(needed, costs.unit)} or less{beside}, the "
    factor = needed / now if now > 0.0 else None
    return BreakEven(policy, "probe", now, needed, factor, target, f"{said}policy would be {faster}")


def _mean_check(costs: TokenCosts, decisions: Decisions) -> float:
    """Today's mean price of a check, over all checks made: of a step if it holds one token of each row."""
    made = np.array([np.count_nonzero(decisions.probed_at(place)) for place in range(len(decisions.needs))])
    prices = np.array([check_price(costs, facts) for facts in decisions.needs.values()])
    weights = made if made.any() else np.ones(len(made))
    return float(np.average(prices, weights=weights))


def _row(policy: str, lever: Lever, decisions: Decisions, pricing: Pricing, target: float) -> BreakEven:
    now, plain, unit = lever.now(pricing.listed), pricing.plain, pricing.costs.unit

    def margin(factor: float) -> float:
        """P - target C with the price times a factor: at least zero where the policy reaches the target."""
        costs, full = (lever.scaled(listed, factor) for listed in (pricing.costs, pricing.listed))
        scaled = replace(pricing, costs=costs, full=full)
        return scaled.plain - target * scaled.of_decisions(decisions)

    # Between no price and one as large as a whole step: what a small one changes drowns in rounding.
    stretch = plain / now if now > VANISHING * plain else 0.0
    free = margin(0.0)
    free = 0.0 if abs(free) <= 10.0 * ROUNDING * plain else free
    rise = margin(stretch) - free
    part, faster = lever.part, f"{target:g} times as fast as the full model"
    if abs(rise) <= ROUNDING * plain or free * rise > 0.0:
        always = f"The policy is {faster} whatever {part} costs."
        never = f"No price of {part} would make the policy {faster}."
        said = always if free >= 0.0 else never
        return BreakEven(policy, lever.name, now, None, None, target, said)
    factor = abs(free / rise) * stretch
    said = (
        f"{part[0].upper()}{part[1:]} costs {amount(now, unit)}; at {amount(factor * now, unit)} "
        f"or {'more' if rise > 0.0 else 'less'} ({factor:.3g} times today's) the policy would be {faster}."
    )
    return BreakEven(policy, lever.name, now, factor * now, factor, target, said)


def amount(value: float, unit: str) -> str:
    """A price in words, three digits with a prefix that suits its size: 3.1 ms, 2.16 MB."""
    symbol = SYMBOLS.get(unit, unit)
    largest, prefix = next(
        (scale for scale in PREFIXES if abs(value) >= scale[0]), PREFIXES[-1] if value else (1.0, "")
    )
    return f"{value / largest:.3g} {prefix}{symbol}"
