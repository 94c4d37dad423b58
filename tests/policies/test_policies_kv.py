"""What K and V of skipped layers cost; what is run is never reported as skipped; checks at L are paid for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rule_examples import LAYERS, random_trace

from offramp.errors import InputError, PolicyError
from offramp.policies.cost_breakdown import CostBreakdown, Usage
from offramp.policies.decisions import Decisions, replay_decisions
from offramp.policies.frontier import frontier
from offramp.policies.grammar import parse_policy
from offramp.policies.kv import STRATEGIES, PolicyRun
from offramp.policies.policy import ExitPolicy
from offramp.policies.prices import (
    costs_of,
    decision_costs,
    exit_costs_without_probes,
    layers_executed,
    prices_at,
    prices_by_rows,
)
from offramp.policies.replay import replay
from offramp.policies.rules.fixed import Never, StaticExit
from offramp.policies.rules.threshold import Threshold
from policy_traces import make_shape, make_trace, timed, with_states

CHECKS = "threshold:signal=margin,value=0.5,exits=1+3+5"


def part(breakdown: CostBreakdown, name: str) -> float:
    return sum(line.total for line in breakdown.lines if line.part == name)


def run_of(exits: list[int], documents: list[int], policy: ExitPolicy | None = None) -> PolicyRun:
    trace = make_trace(tokens=len(exits), layers=4)
    trace.document = np.array(documents, dtype=np.int32)
    return PolicyRun(trace, policy or Never(), Decisions(np.array(exits), {}), np.arange(len(exits)), 4)


def test_recomputing_by_hand() -> None:
    # Exits 1 and 2 before a token at 3; then one at 2 that no later token overtakes; another document.
    usage = STRATEGIES["recompute"].charge(run_of([1, 2, 3, 2, 4, 1], [0, 0, 0, 0, 1, 1]))
    layers = {(item.place, item.rows): count for item, count in usage.items() if item.part == "layers"}
    # In the first document the second token takes the first one through layer 2, the third both through layer
    # 3; layer 4 is never run there. In the second one nobody waits for a token that goes deeper.
    assert layers == {(1, 1): 6, (2, 2): 1, (2, 1): 3, (3, 3): 1, (3, 1): 1, (4, 1): 1}
    assert not any(item.part == "K,V projection" for item in usage)


def test_a_recomputed_layer_costs_a_row_more_in_bytes_and_a_whole_layer_in_flops() -> None:
    trace = make_trace()
    result = replay(trace, CHECKS, kv="recompute")
    lines = [line for line in result.breakdown.lines if line.part == "layers"]
    waited = sum(line.count * (line.rows - 1) for line in lines)
    attended = float(trace.position.mean()) + 1
    alone = float(prices_at(trace, "bytes")(1).layers[0])
    # A row more reads and writes K,V of its own: 10 elements a position, 2 bytes each.
    assert waited > 0
    assert part(result.breakdown, "layers") == pytest.approx(
        sum(line.count for line in lines) * alone + waited * 2 * 10 * (attended + 1)
    )
    flops, one = prices_at(trace, "flops")(2).layers, prices_at(trace, "flops")(1).layers
    np.testing.assert_allclose(flops - one, one)
    # In FLOPs nothing is saved but what no later token needs.
    assert result.predicted_speedup_flops < replay(trace, CHECKS).predicted_speedup_flops


@pytest.mark.parametrize(
    "policy", [Never(), StaticExit(3), f"monotone:policy=[{CHECKS}]", "schedule:first=6,last=2,length=5"]
)
def test_monotone_policies_repair_nothing(policy: ExitPolicy | str) -> None:
    trace = make_trace()
    result, propagated = replay(trace, policy, kv="monotone"), replay(trace, policy)
    repair = part(propagated.breakdown, "K,V projection")
    assert part(result.breakdown, "K,V projection") == 0.0
    assert propagated.breakdown.total - result.breakdown.total == pytest.approx(repair)


def test_a_policy_that_may_go_deeper_is_refused() -> None:
    trace = make_trace()
    with pytest.raises(PolicyError, match=r"lets tokens go deeper(.|\n)*in document 0 one leaves at exit"):
        replay(trace, CHECKS, kv="monotone")
    # Nor is one that happens not to on this trace.
    still = "threshold:signal=margin,value=0,exits=3"
    assert (replay(trace, still).exits == 3).all()
    with pytest.raises(PolicyError, match="lets tokens go deeper than those before them\n"):
        replay(trace, still, kv="monotone")


BANDIT = "bandit:signal={},value=0.5,exits=1+3+5"


def test_a_layer_that_runs_later_is_not_skipped() -> None:
    trace = make_trace(tokens=90, documents=3)
    result = replay(trace, CHECKS, kv="recompute")
    below = 0
    for place, exit in enumerate(result.exits):
        later = (trace.document == trace.document[place]) & (np.arange(len(result.exits)) > place)
        below += max([int(exit), *result.exits[later].tolist()])
    assert result.skip_ratio == pytest.approx(1 - below / (90 * 6))
    assert result.skip_ratio < replay(trace, CHECKS).skip_ratio


def test_verified_drafts_skip_nothing() -> None:
    trace = make_trace()
    result = replay(trace, CHECKS, kv="speculate")
    assert (result.exits < 6).any()
    assert result.skip_ratio <= 0.0
    assert replay(trace, "never", kv="speculate").skip_ratio == 0.0
    # With drafts that always agree each layer runs once for each token: nothing saved, nothing wasted.
    agreeing = make_trace(top1=np.full((60, 6), 7, dtype=np.int32))
    assert replay(agreeing, "static:exit=2", kv="speculate").skip_ratio == pytest.approx(0.0)


def test_a_recurrent_layer_is_not_skipped() -> None:
    shape = with_states(make_shape(), 1, 4)
    np.testing.assert_array_equal(layers_executed(shape), [3, 3, 4, 5, 5, 6])
    trace = make_trace(shape=shape)
    assert replay(trace, "static:exit=1").skip_ratio == pytest.approx(0.5)
    assert replay(trace, "static:exit=4").skip_ratio == pytest.approx(1 / 6)
    boldest = frontier(trace, "margin", (1, 4))
    assert boldest.skip_ratio[-1] == pytest.approx(0.5)
    middle = len(boldest.threshold) // 2
    policy = Threshold("margin", float(boldest.threshold[middle]), (1, 4))
    assert boldest.skip_ratio[middle] == pytest.approx(replay(trace, policy).skip_ratio)


@pytest.mark.parametrize("kv", ["recompute", "speculate"])
def test_a_recurrent_layer_shares_no_step_among_tokens_of_one_document(kv: str) -> None:
    used = {}
    for shape in (make_shape(6), with_states(make_shape(), 1, 4)):
        trace = make_trace(shape=shape)
        policy = parse_policy(CHECKS)
        run = PolicyRun(trace, policy, replay_decisions(policy, trace), np.arange(60), 3)
        used[shape] = STRATEGIES[kv].charge(run)
    dense, mixed = used.values()
    for layer in range(1, 7):
        one, other = rows_of(dense, layer), rows_of(mixed, layer)
        assert sum(one.values()) == sum(other.values())
        if layer in (2, 5):
            assert list(other) == [("layers", 1)]
        else:
            assert other == one
    assert list(rows_of(dense, 5)) != [("layers", 1)]


def rows_of(usage: Usage, layer: int) -> Counter[tuple[str, int]]:
    """How many tokens a layer runs for, by how they are charged and with how many others."""
    found: Counter[tuple[str, int]] = Counter()
    for item, count in usage.items():
        if item.place == layer and item.part == "layers":
            found[item.part, item.rows] += count * item.rows
    return found


@pytest.mark.parametrize("signal", ["restricted_margin", "restricted_max_prob"])
def test_a_bandit_pays_for_what_it_reads_at_the_last_exit(signal: str) -> None:
    trace = random_trace(3)
    decisions = replay_decisions(parse_policy(BANDIT.format(signal)), trace)
    through = decisions.exits == LAYERS
    assert 0 < through.sum() < len(through)
    assert decisions.needs[LAYERS] == (signal,)
    np.testing.assert_array_equal(decisions.probed_at(3), through)
    costs = costs_of(trace, "bytes")
    checks = sum(decisions.probed_at(place).astype(int) for place in range(3))
    expected = exit_costs_without_probes(costs)[decisions.exits - 1]
    expected = expected + (checks + through) * costs.probes["restricted head"]
    np.testing.assert_allclose(decision_costs(costs, decisions), expected)
    result = replay(trace, BANDIT.format(signal))
    (line,) = [line for line in result.breakdown.lines if line.part == "probe" and line.places == (LAYERS,)]
    assert line.count == through.sum()
    assert result.breakdown.total == pytest.approx(expected.sum())


@pytest.mark.parametrize("policy", [BANDIT.format("margin"), BANDIT.format("correctness")])
def test_what_the_full_head_tells_at_the_last_exit_is_at_hand(policy: str) -> None:
    assert list(replay_decisions(parse_policy(policy), random_trace(3)).needs) == [1, 3, 5]


def test_a_number_missing_at_the_last_exit_is_refused() -> None:
    margin = np.full((60, 6), 0.1, dtype=np.float32)
    margin[17, -1] = np.nan
    with pytest.raises(InputError, match="margin is not a number for 1 tokens at the last exit"):
        replay_decisions(parse_policy(BANDIT.format("margin")), make_trace(margin=margin))


@pytest.mark.parametrize(
    ("options", "untimed"),
    [
        ({}, None),
        ({"kv": "recompute"}, "2, 3"),
        ({"batch": 4}, None),
        ({"batch": 6}, "6"),
        ({"kv": "speculate", "draft_length": 2}, "2, 3"),
    ],
)
def test_prices_at_batch_sizes_that_were_not_timed_are_said_to_be(
    options: Mapping[str, Any], untimed: str | None
) -> None:
    # Equal documents, so that all steps of a batch have as many rows.
    trace = make_trace(documents=12)
    notes = replay(trace, CHECKS, machine=timed(), **options).notes
    if untimed is None:
        assert notes == ()
    else:
        (note,) = notes
        assert note.startswith(f"bench was timed at batch 1, 4, not at {untimed}: there it is read off")
    assert replay(trace, CHECKS, machine="h100", **options).notes == ()


def test_more_waiting_rows_than_timings_reach_are_charged_as_several_steps() -> None:
    at = prices_by_rows(timed(), make_shape(), 3.0)
    # At batch 1 and 4 each part takes 1 s and 2 s; two sizes reach up to 16 rows, and there take 6 s.
    assert (at(1).head, at(4).head, at(16).head) == (1.0, 2.0, pytest.approx(6.0))
    assert at(33).batch == 33
    for part in ("head", "exit_head", "overhead"):
        assert getattr(at(33), part) == pytest.approx(2 * 6.0 + 1.0)
    np.testing.assert_allclose(at(33).layers, 13.0)
    np.testing.assert_allclose(at(33).key_value, 13.0)
    assert at(33).probes["cosine"] == pytest.approx(13.0)
    # Forty tokens in a row that leave, and one that does not and takes them along.
    margin = np.tile((np.arange(41) < 40)[:, None], 6).astype(np.float32)
    trace = make_trace(tokens=41, documents=1, margin=margin)
    result = replay(trace, "threshold:signal=margin,value=0.5,exits=2", machine=timed(), kv="recompute")
    assert max(line.rows for line in result.breakdown.lines) == 41
    with pytest.raises(InputError, match="no timings for batch size 17"):
        replay(make_trace(documents=20), CHECKS, machine=timed(), batch=17)


def test_seconds_are_charged_at_the_position_that_is_asked_for() -> None:
    trace = make_trace(documents=2)
    machine = replace(timed(), layer_seconds_per_position=0.5 * np.ones((2, 6)))
    near, far = (replay(trace, "static:exit=2", machine=machine, position=at) for at in (0.0, 10.0))
    assert near.seconds_per_token is not None
    assert far.seconds_per_token == pytest.approx(near.seconds_per_token + 2 * 0.5 * 10)
