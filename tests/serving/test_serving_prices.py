"""Prices of a step against those that replays are charged, for every way of leaving."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from offramp.costs.machine_registry import find_machine
from offramp.policies.cost_breakdown import price_of
from offramp.policies.decisions import Decisions
from offramp.policies.prices import prices_by_rows
from offramp.policies.steps import count_steps, in_lockstep
from offramp.serving.contenders import contenders_of
from offramp.serving.prices import MachinePrices, StepPrices
from offramp.serving.simulator import run_steps
from policy_traces import make_shape, make_trace

ROWS = 5


class Always(StepPrices):
    """Everybody is asked, and leaves where they want to."""

    worth_asking = np.ones((9, ROWS + 1), dtype=np.bool_)  # type: ignore[assignment]

    def leave(self, rule: Any, place: int, rows: Any, leaving: Any, gone: Any, at: Any) -> Any:
        return leaving > 0


@pytest.mark.parametrize(
    "policy",
    [
        "threshold:signal=max_prob,value=0.55,exits=2+4",
        "static:exit=4",
        "shortlist:policy=[threshold:signal=restricted_max_prob,value=0.3,exits=2+4]",
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_a_step_is_charged_as_a_replay_charges_it(policy: str, together: bool) -> None:
    """All leave where they want to (a gain that is never refused) or together, item by item."""
    draw = np.random.default_rng(3)
    extra = {
        name: draw.random((200, 3)).astype(np.float32)
        for name in ("restricted_max_prob", "restricted_margin")
    } | {"restricted_top1": draw.integers(0, 9, (200, 3)).astype(np.int32)}
    trace = make_trace(tokens=200, documents=10, exits=[2, 4, 6], shape=make_shape(6, head=60_000), **extra)
    one = contenders_of(trace, [policy])[-1]
    machine = find_machine("h100")
    found = MachinePrices(machine, trace).step_prices(one, ROWS, 64)
    places = draw.integers(0, 200, (ROWS, 30))
    own = one.rungs[0].exits[places]
    context = np.full(30, 32.0)
    asks = np.ones((len(one.stops), ROWS), dtype=np.bool_)
    if not together:
        found = Always(**{field.name: getattr(found, field.name) for field in fields(found)})
    seconds, exits = run_steps(found, "lockstep" if together else "gain", own, asks, context)
    needs = dict(one.rungs[0].needs)
    own_policy = one.rungs[0].policy
    at = prices_by_rows(machine, trace.shape, 32.0)
    head = {"short_list": own_policy.short_list, "short_head": own_policy.short_head}
    for step in range(30):
        alone = Decisions(own[:, step], needs, **head)
        steps = np.zeros(ROWS, dtype=np.int64)
        decisions = in_lockstep(alone, steps) if together else alone
        assert exits[:, step].tolist() == decisions.exits.tolist()
        if together:  # rows that were let go are not asked again here
            decisions = Decisions(decisions.exits, {}, **head)
        usage = count_steps(decisions, steps, 6, repair=True)
        expected = sum(count * price_of(item, at) for item, count in usage.items())
        if together:
            expected += checks(own[:, step], needs, at, one, decisions.exits)
        assert seconds[step] == pytest.approx(expected, rel=1e-9)


def checks(own: np.ndarray, needs: dict, at, one, exits: np.ndarray) -> float:  # type: ignore[no-untyped-def, type-arg]
    """What asking those takes who were not let go before; an output that the last check gives is no head."""
    from offramp.policies.prices import check_price, gives_output
    from offramp.policies.rules.short_list import costs_for

    policy = one.rungs[0].policy
    total, left = 0.0, int(exits[0])
    for exit in one.stops:
        asked = int((own >= exit).sum())
        if exit <= left and asked:
            total += check_price(at(asked), needs.get(exit, ()))
    if left < 6:
        before = int((own < left).sum())
        costs = costs_for(policy, at(ROWS))
        unread = before if gives_output(needs.get(left, ()), short_list=policy.short_list) else ROWS
        total += costs_for(policy, at(unread)).exit_head if unread else 0.0
        total -= costs.exit_head
    return total


def test_prompts_cost_more_behind_a_longer_past_and_pieces_more_than_the_whole() -> None:
    prices = MachinePrices(find_machine("h100"), make_trace(shape=make_shape(6, head=60_000)))
    whole = prices.prompt(256, 0)
    assert prices.prompt(128, 0) + prices.prompt(128, 128) >= whole
    assert prices.prompt(128, 4096) > prices.prompt(128, 0)


def test_what_is_not_worth_asking() -> None:
    """Where checks outweigh all that could be saved nobody is asked; where they are free everybody is."""
    from dataclasses import replace

    from slow_server import prices

    usual = prices((2, 4))
    assert replace(usual, probe=0 * usual.probe).worth_asking[:, 1:].all()
    assert not replace(usual, probe=1e3 + 0 * usual.probe).worth_asking.any()
    assert not replace(usual, rates=(0.0, 0.0)).worth_asking.any()
