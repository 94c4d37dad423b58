"""Cost breakdowns: every line worked out by hand, and sums that equal token-by-token charging."""

from __future__ import annotations

import math

import numpy as np
import pytest
from breakdown_examples import LAYERS, at, decisions_of, lines
from hypothesis import given, settings

from offramp.costs.token import TokenCosts
from offramp.policies.cost_breakdown import Item, Usage, break_down
from offramp.policies.decisions import Decisions
from offramp.policies.policy_cost import decision_costs
from offramp.policies.replay import replay
from offramp.policies.steps import count_plain, count_steps
from policy_traces import make_trace


def test_a_hand_worked_breakdown() -> None:
    # Exits 1, 3 and 4, probed with a full head at 1 and with a cosine at 3.
    decisions = Decisions(np.array([1, 3, 4]), {1: ("margin",), 3: ("hidden_cosine_to_previous",)})
    assert lines(count_steps(decisions, np.arange(3), LAYERS, repair=True)) == [
        ("overhead", "", 1, 3, 7.0),
        ("layers", "layer 1", 1, 3, 100.0),
        ("layers", "layer 2", 1, 2, 110.0),
        ("layers", "layer 3", 1, 2, 120.0),
        ("layers", "layer 4", 1, 1, 130.0),
        ("K,V projection", "layer 2", 1, 1, 11.0),
        ("K,V projection", "layer 3", 1, 1, 12.0),
        ("K,V projection", "layer 4", 1, 2, 13.0),
        ("probe", "exit 1", 1, 3, 1007.0),
        ("probe", "exit 3", 1, 2, 2.0),
        # The first token's probe is its output; the second pays its exit's head, a lens included.
        ("exit head", "exit 3", 1, 1, 1100.0),
        ("final head", "exit 4", 1, 1, 1000.0),
    ]


def test_the_full_models_breakdown() -> None:
    assert lines(count_plain(np.arange(3), LAYERS))[0] == ("overhead", "", 1, 3, 7.0)
    breakdown = break_down(count_plain(np.arange(3), LAYERS), count_plain(np.arange(3), LAYERS), at, 3)
    assert breakdown.total == breakdown.plain == 3 * (7 + 460 + 1000)
    assert breakdown.speedup == 1.0


def test_lines_of_one_price_are_one_line_and_name_their_layers() -> None:
    def flat(rows: int) -> TokenCosts:
        return TokenCosts("flops", np.full(9, 3.0), 8.0, 8.0, {}, np.full(9, 1.0))

    usage = Usage({Item("layers", layer): 10 - layer for layer in (1, 2, 3, 5, 8, 9)})
    (line,) = break_down(usage, usage, flat, 1).lines
    assert (line.where, line.count, line.total) == ("layers 1-3, 5, 8-9", 32, 96.0)
    assert line.places == (1, 2, 3, 5, 8, 9)


def cost_of_one_token(decisions: Decisions, token: int) -> float:
    """The cost of one token, added up one thing after the other."""
    price, exit = at(1), int(decisions.exits[token])
    total = price.overhead + sum(price.layers[:exit]) + sum(price.key_value[exit:])
    answered = False
    for place, (checked, facts) in enumerate(decisions.needs.items()):
        if decisions.probed_at(place)[token]:
            for kind in (
                {"margin": "full head", "hidden_cosine_to_previous": "cosine"}[facts[0]],
                *(["cosine"] if len(facts) > 1 else []),
            ):
                total += price.probes[kind]
                answered |= kind == "full head" and checked == exit
    if not answered:
        total += price.head if exit == LAYERS else price.exit_head
    return float(total)


@settings(deadline=None)
@given(decisions=decisions_of())
def test_a_breakdown_is_the_sum_of_its_tokens(decisions: Decisions) -> None:
    tokens = len(decisions.exits)
    one_by_one = [cost_of_one_token(decisions, token) for token in range(tokens)]
    np.testing.assert_allclose(decision_costs(at(1), decisions), one_by_one, rtol=1e-12)
    steps = np.arange(tokens)
    breakdown = break_down(
        count_steps(decisions, steps, LAYERS, repair=True), count_plain(steps, LAYERS), at, tokens
    )
    assert breakdown.total == pytest.approx(math.fsum(one_by_one), rel=1e-12)


@pytest.mark.parametrize("kv", ["propagate", "recompute", "speculate"])
@pytest.mark.parametrize("machine", [None, "rtx4090"])
def test_the_lines_are_what_is_charged(kv: str, machine: str | None) -> None:
    result = replay(make_trace(), "threshold:signal=margin,value=0.5,exits=1+3", kv=kv, machine=machine)
    breakdown = result.breakdown
    assert math.fsum(line.count * line.price for line in breakdown.lines) == breakdown.total
    assert breakdown.plain / breakdown.total == result.predicted_speedup
    assert breakdown.unit == ("bytes" if machine is None else "seconds")
    if machine is not None:
        assert result.seconds_per_token == breakdown.total / 60
    shown = breakdown.to_json()
    assert math.fsum(line["total"] for line in shown["lines"]) == shown["total"] == breakdown.total
    probes = math.fsum(line.total for line in breakdown.lines if line.part == "probe")
    assert probes > 0
