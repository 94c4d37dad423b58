from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from offramp.costs.machine_registry import find_machine
from offramp.errors import InputError, PolicyError
from offramp.policies.charge import Units, run_of
from offramp.policies.grammar import parse_policy
from offramp.policies.policy import ExitPolicy
from offramp.policies.prices import costs_of, prices_at
from offramp.policies.replay import replay, replay_intervals
from offramp.policies.rules.fixed import Never, StaticExit
from offramp.policies.rules.short_list import ShortList, read_short, with_short_head
from offramp.policies.rules.threshold import Threshold
from offramp.policies.signals import SIGNALS
from offramp.tracing.trace import Trace
from offramp.tuning.break_even import break_even
from offramp.tuning.certificate import policy_losses
from offramp.tuning.floor import make_floor, token_losses
from offramp.tuning.held_out import measure, measure_in_lockstep
from offramp.tuning.pool import Pool
from offramp.tuning.pricing import Pricing, pricing_of
from offramp.tuning.search import search_pool
from offramp.tuning.threshold_family import ThresholdFamily
from policy_traces import make_shape, make_trace

SHAPE = make_shape(head=1_000_000)
CHEAP = Threshold("hidden_cosine", 0.6, (2, 4))
FLOOR = make_floor({"agreement": 0.8})


def short_trace(**given: object) -> Trace:
    """A trace whose short list lacks the full model's token for two tokens of five."""
    plain = make_trace(tokens=200, documents=40, shape=SHAPE)
    listed = np.where((np.arange(200) % 5 < 3)[:, None], plain.fact("top1"), 5).astype(np.int32)
    return make_trace(tokens=200, documents=40, shape=SHAPE, **{"restricted_top1": listed, **given})


def agreement_by_hand(trace: Trace, exits: np.ndarray, *, head: bool = False) -> np.ndarray:
    """Against the full model's token of the whole vocabulary. head: the list is read at the last exit too."""
    final = trace.fact("top1")[:, -1]
    said = [
        final[row] if exit == trace.layers and not head else trace.fact("restricted_top1")[row, exit - 1]
        for row, exit in enumerate(exits)
    ]
    return np.array(said) == final


@pytest.mark.parametrize("inner", [CHEAP, StaticExit(3)])
def test_below_the_last_exit_the_short_list_answers_and_is_paid_for(inner: ExitPolicy) -> None:
    trace = short_trace()
    result, whole = replay(trace, ShortList(inner)), replay(trace, inner)
    np.testing.assert_array_equal(result.exits, whole.exits)
    left = np.count_nonzero(result.exits < trace.layers)
    assert left == trace.token_count if inner != CHEAP else 0 < left < trace.token_count
    assert result.agreement == pytest.approx(agreement_by_hand(trace, result.exits).mean())
    assert result.agreement < whole.agreement
    assert np.isnan(result.nll_increase)
    assert np.isnan(result.kl)
    costs = costs_of(trace, "bytes")
    saved = left * (costs.exit_head - costs.probes["restricted head"])
    assert saved != 0
    assert result.breakdown.total == pytest.approx(whole.breakdown.total - saved)
    assert result.breakdown.plain == whole.breakdown.plain


def test_a_probe_of_the_list_that_lets_a_token_leave_is_its_output() -> None:
    """Behind the list its product is paid once; without the list the whole head's comes beside."""
    listed = short_trace(restricted_max_prob=confidence(200))
    inner = Threshold("restricted_max_prob", 0.6, (2, 4))
    result, whole = replay(listed, ShortList(inner)), replay(listed, inner)
    costs, exits = costs_of(listed, "bytes"), result.exits
    left = exits < listed.layers
    assert 0 < left.sum() < listed.token_count
    probes = np.where(exits == 2, 1, 2).sum() * costs.probes["restricted head"]
    layers = (costs.overhead + costs.until_exit)[exits - 1].sum()
    final = (~left).sum() * costs.head
    assert result.breakdown.total == pytest.approx(layers + probes + final)
    assert whole.breakdown.total == pytest.approx(layers + probes + final + left.sum() * costs.exit_head)
    pool = Pool(listed, FLOOR, pricing_of(listed, None).paid_by(ShortList(inner)))
    assert pool.score("", inner).cost * listed.token_count == pytest.approx(result.breakdown.total)
    family = ThresholdFamily(pool, SIGNALS["restricted_max_prob"], (0.5,))
    curve = family.curve_of((2, 4))
    point = int(np.argmin(np.abs(family.grid.values - 0.6)))
    again = pool.score("", family.policy_at((2, 4), point))
    assert family.costs_of((2, 4), curve.shares)[point] == pytest.approx(again.cost)


def confidence(tokens: int) -> np.ndarray:
    """Random shares of the list's softmax, surer at deeper exits."""
    drawn = np.random.default_rng(3).random((tokens, len(SHAPE.layers)))
    return np.clip(drawn + 0.05 * np.arange(len(SHAPE.layers)), 0, 1).astype(np.float32)


@pytest.mark.parametrize("inner", [Never(), CHEAP, StaticExit(3)])
@pytest.mark.parametrize("lens", [False, True])
def test_a_short_head_answers_and_costs_the_list_everywhere(inner: ExitPolicy, lens: bool) -> None:
    trace = short_trace()
    if lens:
        trace.provenance["request"] = {"heads": {"lens": True}}
    result, whole = replay(trace, ShortList(inner, "all")), replay(trace, inner)
    np.testing.assert_array_equal(result.exits, whole.exits)
    assert result.agreement == pytest.approx(agreement_by_hand(trace, result.exits, head=True).mean())
    assert result.agreement < 0.7
    costs = prices_at(trace, "bytes")(1)
    left = np.count_nonzero(result.exits < trace.layers)
    short = costs.probes["restricted head"]  # behind the lens, which exit L has none of
    saved = left * (costs.exit_head - short) + (trace.token_count - left) * (
        costs.head - (short - (costs.exit_head - costs.head))
    )
    assert result.breakdown.total == pytest.approx(whole.breakdown.total - saved)
    assert result.breakdown.plain == whole.breakdown.plain
    assert {line.part for line in result.breakdown.lines} & {"exit head", "final head"} == set()
    assert result.gain.head == pytest.approx(saved / whole.breakdown.plain + whole.gain.head)
    assert result.skip_ratio == whole.skip_ratio
    assert np.isnan(result.nll_increase)
    assert np.isnan(result.kl)


def test_an_output_off_the_list_waits_for_no_decision_of_its_own() -> None:
    """On a card a check waits until the host knows its answer; an output does so once, whatever its head."""
    trace, machine = short_trace(), find_machine("h100")
    costs = costs_of(trace, machine)
    assert costs.decision > 0
    assert costs.short_head == pytest.approx(costs.probes["restricted head"] - costs.decision)
    result = replay(trace, ShortList(Never(), "all"), machine=machine)
    assert result.seconds_per_token == pytest.approx(costs.plain - costs.head + costs.short_head)


def test_agreement_with_the_untransformed_model_is_that_of_the_list() -> None:
    trace = short_trace()
    other = Trace.from_facts(
        {name: trace.fact(name) for name in trace.fact_names},
        document=trace.document,
        shape=trace.shape,
        reference_top1=np.full(trace.token_count, 5, dtype=np.int32),
    )
    result = replay(other, ShortList(Never(), "all"))
    assert result.reference_agreement == pytest.approx(np.mean(other.fact("restricted_top1")[:, -1] == 5))
    assert result.agreement == replay(trace, ShortList(Never(), "all")).agreement


def test_what_is_seen_through_a_short_head_is_held_against_the_full_model() -> None:
    trace = short_trace()
    seen = read_short(trace, head=True)
    again = read_short(read_short(trace, head=True).subset(np.arange(10)), head=True)
    for view, whole in ((seen, trace), (again, trace.subset(np.arange(10)))):
        np.testing.assert_array_equal(view.full_top1, whole.fact("top1")[:, -1])
        listed = whole.fact("restricted_top1") == whole.fact("top1")[:, -1:]
        np.testing.assert_array_equal(view.agreement, listed)
        np.testing.assert_array_equal(token_losses(view, FLOOR), ~listed)
    assert not seen.agreement[:, -1].all()
    np.testing.assert_array_equal(read_short(trace).agreement[:, -1], True)


@pytest.mark.parametrize(
    "policy", [ShortList(CHEAP), CHEAP, ShortList(CHEAP, "all"), ShortList(Never(), "all")]
)
def test_tuning_measures_what_replay_says(policy: ExitPolicy) -> None:
    trace = short_trace()
    pricing = pricing_of(trace, None)
    held, result = measure(trace, policy, pricing, FLOOR, 0), replay(trace, policy)
    assert held.agreement.value == pytest.approx(result.agreement)
    assert held.net_speedup.value == pytest.approx(result.predicted_speedup)
    assert 1.0 - policy_losses(trace, policy, FLOOR).mean() == pytest.approx(result.agreement)
    assert held.plain_seconds_per_token == pytest.approx(result.breakdown.plain / trace.token_count)
    assert held.gain is not None
    assert vars(held.gain) == pytest.approx(vars(result.gain))
    intervals = replay_intervals(trace, policy)
    assert intervals.agreement.value == pytest.approx(result.agreement)
    assert intervals.net_speedup.value == pytest.approx(result.predicted_speedup)


def test_a_search_finds_short_lists_with_their_own_risk_and_cost() -> None:
    plain = make_trace(tokens=200, documents=40, shape=SHAPE)
    trace = short_trace(
        restricted_top1=plain.fact("top1"), hidden_cosine_to_previous=plain.fact("margin")
    )  # the list costs no agreement, so it must win
    pool = Pool(trace, FLOOR, pricing_of(trace, None))
    search_pool(pool, FLOOR.risk)
    best = pool.fastest(FLOOR.risk)
    assert best is not None
    assert isinstance(best.policy, ShortList)
    families = {scored.family.partition(":")[0] for scored in pool.found if scored.policy.short_list}
    assert families == {"short list at full depth", "short list", "short list everywhere"}
    for scored in [best, *(one for one in pool.found if one.policy.short_list)][::7]:
        result = replay(trace, scored.policy)
        assert scored.risk == pytest.approx(1.0 - result.agreement)
        assert scored.cost == pytest.approx(result.breakdown.total / trace.token_count)
        assert parse_policy(str(scored.policy)) == scored.policy
        assert scored.family.startswith("short list everywhere") == (
            scored.policy.short_head and not scored.policy.full_depth
        )


def test_a_search_leaves_out_what_needs_the_whole_head() -> None:
    plain = make_trace(tokens=200, documents=40, shape=SHAPE)
    request = {"request": {"heads": {"candidate_exit": 2}}}
    trace = short_trace(candidate_score=plain.fact("margin"), js_to_previous=plain.fact("entropy"))
    trace.provenance.update(request)
    pool = Pool(trace, FLOOR, pricing_of(trace, None))
    search_pool(pool, FLOOR.risk)
    short = [scored.policy for scored in pool.found if scored.policy.short_list]
    assert short
    assert any("candidate_score" in str(scored.policy) for scored in pool.found)
    for policy in short:
        assert all(facts for facts in policy.needs(trace.layers).values()) or "static" in str(policy)
        assert "candidate_score" not in str(policy)


def test_no_short_list_under_a_floor_in_nats_or_without_the_list() -> None:
    floor = make_floor({"kl": 0.2})
    for trace, asked in ((short_trace(), floor), (make_trace(tokens=200, documents=40, shape=SHAPE), FLOOR)):
        pool = Pool(trace, asked, pricing_of(trace, None))
        search_pool(pool, asked.risk)
        assert pool.found
        assert not any(scored.policy.short_list for scored in pool.found)
    with pytest.raises(InputError, match="not a number"):
        policy_losses(short_trace(), ShortList(CHEAP), floor)


def test_lockstep_reads_the_list_too() -> None:
    trace, machine = short_trace(), find_machine("cpu-2core")
    for at in ("exits", "all"):
        policy = ShortList(CHEAP, at)
        units = Units.of(run_of(trace, policy, batch=4, seed=0))
        held = measure_in_lockstep(units, policy, machine, FLOOR, 0)
        said = agreement_by_hand(trace, units.run.decisions.exits, head=at == "all")
        assert held.agreement.value == pytest.approx(said.mean())
        result = replay(trace, policy, machine=machine, batch=4)
        assert held.seconds_per_token.value == pytest.approx(result.seconds_per_token)
        assert held.plain_seconds_per_token == pytest.approx(result.plain_seconds_per_token)
        assert held.gain is not None
        assert vars(held.gain) == pytest.approx(vars(result.gain))


def test_what_cannot_be_read_off_a_short_list_is_refused() -> None:
    with pytest.raises(PolicyError, match="restricted_top1"):
        parse_policy("shortlist:policy=[patience:times=1,exits=1+2+3]").needs(6)
    with pytest.raises(PolicyError, match="voter"):
        parse_policy("votes:need=1,of=[shortlist:policy=[static:exit=2]]")
    for policy in (ShortList(CHEAP), ShortList(Never(), "all")):
        with pytest.raises(InputError, match="restricted"):
            replay(make_trace(), policy)
    learning = "bandit:signal=margin,value=0.5,exits=1+2"
    assert parse_policy(f"shortlist:policy=[{learning}]").needs(6)
    with pytest.raises(PolicyError, match="learns from margin at exit 6"):
        parse_policy(f"shortlist:policy=[{learning}],at=all").needs(6)
    with pytest.raises(PolicyError, match="verifies drafts"):
        replay(short_trace(), ShortList(CHEAP, "all"), kv="speculate")
    assert read_short(short_trace()).subset(np.array([0])).agreement[:, -1].all()
    assert dataclasses.replace(ShortList(CHEAP), policy=StaticExit(2)).never_deepens


@pytest.mark.parametrize(("inner", "target"), [(Never(), 1.5), (CHEAP, 10.0)])
def test_a_break_even_of_a_short_head_is_held_against_the_whole_one(inner: ExitPolicy, target: float) -> None:
    trace, policy = short_trace(), ShortList(inner, "all")
    costs = prices_at(trace, "bytes")(1)
    for row in break_even(trace, policy, costs, target):
        if row.lever != "layer" or row.factor is None:
            continue
        dearer = dataclasses.replace(costs, layers=row.factor * costs.layers)
        held = measure(trace, policy, Pricing(dearer, "bytes moved", "a test"), FLOOR, 0)
        assert held.net_speedup.value == pytest.approx(target)
        break
    else:
        pytest.fail("no price of a layer was found")


def test_the_short_head_of_a_policy_is_cut_once() -> None:
    everywhere = ShortList(CHEAP, "all")
    assert with_short_head(CHEAP) == with_short_head(ShortList(CHEAP)) == everywhere
    assert with_short_head(everywhere) is everywhere
    around = parse_policy(f"monotone:policy=[{everywhere}]")
    assert around.short_head
    assert with_short_head(around) is around
    assert [policy.full_depth for policy in (Never(), ShortList(Never(), "all"), CHEAP, everywhere)] == [
        True,
        True,
        False,
        False,
    ]
