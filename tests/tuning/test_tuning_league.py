from __future__ import annotations

import pytest
from tuning_traces import easy_and_hard

from offramp.costs.hardware import find_machine
from offramp.policies.grammar import parse_policy
from offramp.policies.rules.fixed import Never
from offramp.tuning.floor import make_floor
from offramp.tuning.judging import halves_of, judge
from offramp.tuning.pool import Pool
from offramp.tuning.pricing import pricing_of
from offramp.tuning.ranking import machine_answers, ranking
from offramp.tuning.search import search_pool


def test_the_league_lists_every_family_with_its_bounds() -> None:
    machine = find_machine("h100")
    entries = ranking(easy_and_hard(80), machine, (0.95,))
    families = {entry.family: entry for entry in entries}
    assert {"full model", "oracle: first match", "oracle: saturation", "max_prob, 1 exit"} <= set(families)
    assert not families["oracle: saturation"].reachable
    assert families["full model"].net_speedup.value == 1.0
    speeds = [entry.net_speedup.value or 0 for entry in entries]
    assert speeds == sorted(speeds, reverse=True)
    [chosen] = [entry for entry in entries if entry.chosen]
    assert chosen.policy == judge(easy_and_hard(80), (0.95,), machine=machine)[0].policy
    for entry in entries:
        assert sum(entry.parts.values()) == pytest.approx(entry.seconds_per_token)
        assert entry.parts.get("probe", 0.0) >= entry.probe_seconds - 1e-12
    best = families["max_prob, 1 exit"]
    assert best.probe_seconds == pytest.approx(best.probe_share * best.seconds_per_token)
    assert best.probe_seconds > 0


def test_machines_answer_for_themselves() -> None:
    machines = [find_machine("h100"), find_machine("l4")]
    answers = machine_answers(easy_and_hard(80), machines, (1, 16), 0.95)
    assert [(answer.machine, answer.batch) for answer in answers] == [
        ("h100", 1),
        ("h100", 16),
        ("l4", 1),
        ("l4", 16),
    ]
    for answer in answers:
        assert (answer.policy == "never") == (answer.net_speedup.value == 1.0)
        assert answer.source
    assert answers[0].decision == "too close to call"  # a replay never says more
    never = [answer for answer in answers if parse_policy(answer.policy) == Never()]
    assert all(answer.decision == "does not pay" for answer in never)


def test_a_verdict_on_a_machine_counts_its_seconds() -> None:
    verdict = judge(easy_and_hard(80), floors=(0.95,), machine=find_machine("h100"))[0]
    assert verdict.basis == "h100"
    assert "in seconds on h100" in verdict.reason
    assert judge(easy_and_hard(80), floors=(0.95,))[0].basis == "bytes moved"


def test_verdict_league_and_machines_choose_the_same_policy() -> None:
    trace, floors = easy_and_hard(80), (0.99, 0.9)
    machine = find_machine("h100")
    alone = judge(trace, floors, machine=machine)
    halves = halves_of(trace)
    assert judge(trace, floors, machine=machine, halves=halves) == alone
    entries = ranking(trace, machine, floors, halves=halves)
    assert entries == ranking(trace, machine, floors)
    for verdict in alone:
        pool = halves.searched(make_floor({"agreement": verdict.floor}), pricing_of(trace, machine))
        assert verdict.policy == str(pool.fastest_of_families(1.0 - verdict.floor)[0].policy)
        [same] = [one for one in entries if (one.floor, one.policy) == (verdict.floor, verdict.policy)]
        assert same.net_speedup == verdict.net_speedup
        [answer] = machine_answers(trace, [machine], (1,), verdict.floor, halves=halves)
        assert (answer.policy, answer.decision) == (verdict.policy, verdict.decision)
        assert answer.net_speedup == verdict.net_speedup


def test_a_search_is_made_once_for_each_floor_and_price_list() -> None:
    trace = easy_and_hard(40)
    halves, floor = halves_of(trace), make_floor({"agreement": 0.9})
    first = halves.searched(floor, pricing_of(trace, find_machine("h100")))
    assert halves.searched(floor, pricing_of(trace, find_machine("h100"))) is first
    others = [
        halves.searched(floor, pricing_of(trace, find_machine("h100"), 8)),
        halves.searched(floor, pricing_of(trace, find_machine("l4"))),
        halves.searched(make_floor({"agreement": 0.95}), pricing_of(trace, find_machine("h100"))),
    ]
    for pool in others:
        assert pool is not first
        assert pool.evidence is first.evidence
        # What is lent does not change what is found.
        alone = Pool(halves.choosing, pool.floor, pool.pricing)
        search_pool(alone, pool.floor.risk)
        assert alone.found == pool.found
    # Losses in nats are other losses.
    nats = halves.searched(make_floor({"kl": 0.1}), first.pricing)
    assert nats.evidence is not first.evidence
