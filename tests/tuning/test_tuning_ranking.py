"""What early exit is credited with: beside the best decoder without it, and never by luck."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tuning_traces import easy_and_hard

from offramp.costs.machine_registry import find_machine
from offramp.errors import InputError
from offramp.policies.cost_breakdown import Gain
from offramp.policies.figures import PLAIN_DECODING
from offramp.policies.grammar import parse_policy
from offramp.policies.rules.fixed import StaticExit
from offramp.scoring.estimate import Estimate
from offramp.tracing.trace import Trace
from offramp.tuning.floor import make_floor
from offramp.tuning.pool import Pool
from offramp.tuning.pricing import pricing_of
from offramp.tuning.ranking import RankedPolicy, ReplayedCredit, machine_answers, ranking, replayed_credit
from offramp.tuning.replayed_verdicts import halves_of, judge
from offramp.tuning.search import search_pool

SHORT = "shortlist:policy=[never],at=all"


@pytest.fixture(scope="module")
def listed() -> Trace:
    """A trace with a short list that loses nothing."""
    trace = easy_and_hard(40)
    return Trace.from_facts(
        {**{name: trace.fact(name) for name in trace.fact_names}, "restricted_top1": trace.fact("top1")},
        document=trace.document,
        shape=trace.shape,
        exits=trace.exits,
        position=trace.position,
    )


@pytest.fixture(scope="module")
def entries(listed: Trace) -> tuple[RankedPolicy, ...]:
    return ranking(listed, find_machine("h100"), (0.95,))


def test_the_ranking_lists_every_family_with_its_bounds(
    listed: Trace, entries: tuple[RankedPolicy, ...]
) -> None:
    families = {entry.family: entry for entry in entries}
    assert {"full model", "oracle: first match", "oracle: saturation", "max_prob, 1 exit"} <= set(families)
    assert not families["oracle: saturation"].reachable
    assert families["full model"].net_speedup.value == 1.0
    speeds = [entry.net_speedup.value or 0 for entry in entries]
    assert speeds == sorted(speeds, reverse=True)
    [chosen] = [entry for entry in entries if entry.chosen]
    assert chosen.policy == judge(listed, (0.95,), machine=find_machine("h100"))[0].policy
    for entry in entries:
        assert sum(entry.parts.values()) == pytest.approx(entry.seconds_per_token.value)
        assert entry.parts.get("probe", 0.0) >= entry.probe_seconds - 1e-12
        assert entry.gain is not None
        assert entry.gain.total == pytest.approx(1.0 - 1.0 / (entry.net_speedup.value or 0.0), abs=1e-9)
    best = families["max_prob, 1 exit"]
    assert best.probe_seconds == pytest.approx(best.probe_share * best.seconds_per_token.value)
    assert best.probe_seconds > 0


def test_a_ranking_ranks_its_families_and_holds_the_short_list(entries: tuple[RankedPolicy, ...]) -> None:
    families = {one.family: one for one in entries}
    assert [families[name].rank for name in ("full model", "oracle: saturation")] == [None, None]
    ranks = sorted(one.rank for one in entries if one.rank is not None)
    assert ranks == list(range(1, len(ranks) + 1))
    short = families["short list at full depth"]
    assert short.full_depth
    assert (str(short.policy), short.skip_ratio.value, short.agreement.value) == (SHORT, 0.0, 1.0)
    assert short.gain is not None
    assert (short.gain.layers, short.gain.probes) == (0.0, 0.0)
    credit = replayed_credit(entries, 0.95)
    assert credit.without_speedup == max(1.0, short.net_speedup.value or 0.0)
    assert credit.exits is not None
    assert not credit.exits.full_depth


def test_machines_answer_for_themselves() -> None:
    machines = [find_machine("h100"), find_machine("l4")]
    answers = machine_answers(easy_and_hard(40), machines, (1, 16), 0.95)
    assert [(answer.machine, answer.batch) for answer in answers] == [
        ("h100", 1),
        ("h100", 16),
        ("l4", 1),
        ("l4", 16),
    ]
    for answer in answers:
        assert answer.plain == (answer.net_speedup.value == 1.0)
        assert answer.source
    assert answers[0].decision == "inconclusive"  # a replay never says more
    never = [answer for answer in answers if answer.plain]
    assert all(answer.decision == "does not pay" for answer in never)


def test_a_verdict_on_a_machine_counts_its_seconds() -> None:
    verdict = judge(easy_and_hard(40), floors=(0.95,), machine=find_machine("h100"))[0]
    assert verdict.basis == "h100"
    assert "in seconds on h100" in verdict.reason
    assert judge(easy_and_hard(40), floors=(0.95,))[0].basis == "bytes moved"


def test_verdict_ranking_and_machines_choose_the_same_policy() -> None:
    trace, floors = easy_and_hard(40), (0.99, 0.9)
    machine = find_machine("h100")
    alone = judge(trace, floors, machine=machine)
    halves = halves_of(trace)
    assert judge(trace, floors, machine=machine, halves=halves) == alone
    ranked = ranking(trace, machine, floors, halves=halves)
    assert ranked == ranking(trace, machine, floors)
    for verdict in alone:
        pool = halves.searched(make_floor({"agreement": verdict.floor}), pricing_of(trace, machine))
        assert verdict.policy == pool.fastest_of_families(1.0 - verdict.floor)[0].policy
        [same] = [one for one in ranked if (one.floor, one.policy) == (verdict.floor, verdict.policy)]
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


def entry(
    policy: str, speed: float, rank: int | None, *, agreement: float = 0.97, floor: float = 0.95
) -> RankedPolicy:
    decides = parse_policy(policy)
    return RankedPolicy(
        family=policy,
        policy=decides,
        kv="propagate",
        reachable=decides.reachable,
        floor=floor,
        quality=Estimate(agreement),
        agreement=Estimate(agreement),
        skip_ratio=Estimate(0.0),
        net_speedup=Estimate(speed),
        seconds_per_token=Estimate(1.0 / speed),
        plain_seconds_per_token=1.0,
        probe_share=0.0,
        probe_seconds=0.0,
        full_depth=decides.full_depth,
        rank=rank,
    )


@pytest.mark.parametrize(
    ("gain", "low", "high", "gains"),
    [
        (Gain(layers=0.005, head=0.146, probes=0.0), 1.16, 1.19, False),  # a large vocabulary: the list alone
        (Gain(layers=0.03, head=0.1, probes=-0.002), 1.16, 1.19, True),
        (Gain(layers=0.03, head=0.1, probes=-0.03), 1.16, 1.19, False),  # its checks cost what it saves
        (Gain(layers=0.005, head=0.146, probes=0.0), None, None, True),
        (None, 1.16, 1.19, True),  # nobody split it
    ],
)
def test_what_layers_do_not_save_is_no_gain_of_exits(
    gain: Gain | None, low: float | None, high: float | None, gains: bool
) -> None:
    found = replace(entry("static:exit=17", 1.174, 1), gain=gain, net_speedup=Estimate(1.174, low, high))
    assert found.exits_early
    assert found.gains_by_exits is gains
    assert not replace(found, full_depth=True).gains_by_exits


PLAIN, ORACLE = entry("never", 1.0, None, agreement=1.0), entry("oracle:which=saturation", 2.0, None)


def test_a_short_list_that_early_exit_rides_on_is_not_its_merit() -> None:
    both = entry("shortlist:policy=[static:exit=5],at=all", 1.056, 1)
    alone, exits = entry(SHORT, 1.05, 2), entry("static:exit=5", 1.001, 3)
    found = replayed_credit([PLAIN, ORACLE, exits, alone, both], 0.95)
    assert found == ReplayedCredit(0.95, both.policy, 1.056, alone.policy, 1.05)
    assert found.ratio == pytest.approx(1.056 / 1.05)
    assert replayed_credit([PLAIN, exits], 0.95).ratio == pytest.approx(1.001)


def test_who_breaks_the_floor_does_not_count() -> None:
    broken = entry(SHORT, 1.3, 1, agreement=0.94)
    exits = entry("static:exit=5", 1.1, 2)
    assert replayed_credit([broken, exits], 0.95) == ReplayedCredit(
        0.95, exits.policy, 1.1, PLAIN_DECODING, 1.0
    )
    assert replayed_credit([broken, exits], 0.9) == ReplayedCredit(0.9, None, None, PLAIN_DECODING, 1.0)
    assert replayed_credit([PLAIN], 0.95).ratio is None


def test_the_half_that_chose_picks_who_is_compared() -> None:
    lucky = entry("static:exit=4", 1.5, 2)
    assert replayed_credit([lucky, entry("static:exit=5", 1.1, 1)], 0.95).exits == StaticExit(5)


def test_what_is_slower_than_plain_decoding_is_no_alternative_to_it() -> None:
    found = replayed_credit([entry(SHORT, 0.9, 1), entry("static:exit=5", 0.8, 2)], 0.95)
    assert (found.without, found.ratio) == (PLAIN_DECODING, 0.8)


def test_a_seed_below_zero_is_refused() -> None:
    with pytest.raises(InputError, match="seed"):
        ranking(easy_and_hard(), None, (0.9,), -1)
