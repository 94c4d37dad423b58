"""Every rule's exits are those of the rule written out token by token in plain Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scalar_policies as scalar
from hypothesis import assume, given
from hypothesis import strategies as st
from rule_examples import (
    CONFIDENCES,
    EXITS,
    LAYERS,
    LENGTHS,
    MANY_EXITS,
    PLAIN,
    SEEDS,
    VALUES,
    by_document,
    few,
    must_equal,
    random_trace,
    text,
)

from offramp.errors import PolicyError
from offramp.policies.decisions import replay_decisions
from offramp.policies.grammar import parse_policy
from offramp.policies.rules.around import Filtered
from offramp.policies.rules.fixed import Schedule
from offramp.policies.rules.learning import agreement_thresholds, betas
from offramp.policies.rules.threshold import Threshold, Thresholds
from offramp.policies.signals import SIGNALS

# What each rule's parameters are drawn from; exits as lists, as the plain references take them.
CHECKS = {"signal": PLAIN, "value": VALUES, "exits": EXITS}
RULES: dict[str, dict[str, Any]] = {
    "decaying": {**CHECKS, "decay": st.floats(0.1, 9), "length": st.integers(1, 20)},
    "dynamic": {
        **CHECKS,
        "signal": st.sampled_from(("margin", "entropy", "restricted_margin", "logit_gap")),
        "complexity": st.sampled_from(("position", "running_entropy", "prompt_entropy")),
        "slope": st.sampled_from((-0.7, -0.1, 0.0, 0.05, 0.3)),
        "centre": st.sampled_from((0.0, 0.6, 3.0)),
    },
    "adaptive": {
        "signal": CONFIDENCES,
        "target": st.sampled_from((0.3, 0.5, 0.6, 0.8, 0.95)),
        "warmup": st.integers(1, 4),
        "exits": EXITS,
    },
    "bandit": {
        **CHECKS,
        "signal": CONFIDENCES,
        "cost": st.sampled_from((0.0, 0.5, 1.3)),
        "exploration": st.sampled_from((0.0, 0.1, 1.0)),
    },
    "patience": {
        "times": st.integers(1, 3),
        "exits": MANY_EXITS,
        "fact": st.sampled_from(("top1", "restricted_top1")),
    },
    "sustained": {
        "signal": st.sampled_from(("margin", "entropy", "kl_to_previous")),
        "value": VALUES,
        "times": st.integers(1, 3),
        "exits": MANY_EXITS,
    },
    "monotone": CHECKS,
    "oracle": {"which": st.sampled_from(("first_match", "saturation"))},
}


@pytest.mark.parametrize("kind", RULES)
@few
@given(seed=SEEDS, data=st.data())
def test_a_rule_is_what_its_plain_reference_says(kind: str, seed: int, data: st.DataObject) -> None:
    parameters = data.draw(st.fixed_dictionaries(RULES[kind]))
    trace = random_trace(seed, exits=parameters.get("exits"))
    expected = by_document(trace, getattr(scalar, kind), **parameters)
    given = ",".join(f"{name}={text(value)}" for name, value in parameters.items())
    policy = f"monotone:policy=[threshold:{given}]" if kind == "monotone" else f"{kind}:{given}"
    if kind == "oracle":  # which nothing can decode with
        np.testing.assert_array_equal(replay_decisions(parse_policy(policy), trace).exits, expected)
    else:
        must_equal(policy, trace, expected)


@few
@given(seed=SEEDS, signal=st.sampled_from(sorted(SIGNALS)), exits=EXITS, same=st.booleans(), data=st.data())
def test_threshold_and_thresholds(
    seed: int, signal: str, exits: list[int], same: bool, data: st.DataObject
) -> None:
    assume(len(exits) > SIGNALS[signal].opens)
    values = data.draw(st.lists(VALUES, min_size=len(exits), max_size=len(exits)))
    values = [min(value, SIGNALS[signal].high) for value in (values[:1] * len(exits) if same else values)]
    trace = random_trace(seed, exits=exits, candidate_exit=exits[0])
    expected = by_document(trace, scalar.thresholds, signal=signal, values=values, exits=exits)
    must_equal(Thresholds(signal, tuple(values), tuple(exits)), trace, expected)
    if same:
        must_equal(Threshold(signal, values[0], tuple(exits)), trace, expected)


@few
@given(seed=SEEDS, by=PLAIN, limit=VALUES, at=st.integers(1, 3), signal=CONFIDENCES, value=VALUES)
def test_behind_a_filter_only_what_passes_is_asked_about(
    seed: int, by: str, limit: float, at: int, signal: str, value: float
) -> None:
    trace, exits = random_trace(seed), [at + 1, 5]
    inner = {"signal": signal, "value": value, "exits": exits}
    expected = by_document(trace, scalar.filtered, filter=(by, limit, at), **inner)
    policy = Filtered(by, limit, at, Threshold(signal, value, tuple(exits)))
    must_equal(policy, trace, expected)
    decisions = replay_decisions(policy, trace)
    assert list(decisions.needs) == [at, *exits]
    assert decisions.probed_at(0).all()
    column = trace.fact(SIGNALS[by].fact)[:, at - 1]
    np.testing.assert_array_equal(decisions.probed_at(1), SIGNALS[by].fires(column, limit))


def test_without_its_check_a_filter_lets_all_through() -> None:
    trace, inner = random_trace(3), "threshold:signal=max_prob,value=0.5,exits=3+5"
    filtered = f"filtered:signal=margin,value=0.99,exit=1,policy=[{inner}]"
    found, alone, behind = (
        replay_decisions(parse_policy(text), trace).exits
        for text in (f"minimum:exit=2,policy=[{filtered}]", inner, filtered)
    )
    np.testing.assert_array_equal(found, alone)
    assert (behind != alone).any()


def test_tokens_leave_where_something_lets_them_go() -> None:
    filtered = "filtered:signal=margin,value=0.9,exit=2,policy=[static:exit=4]"
    for policy, exits in (
        ("threshold:signal=margin,value=0.9,exits=2+4", (2, 4)),
        (filtered, (4,)),
        (f"shortlist:policy=[monotone:policy=[{filtered}]]", (4,)),
        ("minimum:exit=3,policy=[threshold:signal=margin,value=0.9,exits=2+4]", (4,)),
        (f"votes:need=any,of=[{filtered}]+[static:exit=3]", (3, 4)),
        (f"votes:need=2,of=[{filtered}]+[threshold:signal=margin,value=0.9,exits=2+4]", (4,)),
    ):
        assert parse_policy(policy).leaves_at(6) == exits, policy


def test_a_filter_that_spares_nothing_is_refused() -> None:
    inner = "[threshold:signal=margin,value=0.9,exits=2+4]"
    with pytest.raises(PolicyError, match="asks at exit 2, and the check at exit 2 comes before"):
        parse_policy(f"filtered:signal=correctness,value=0.3,exit=2,policy={inner}").needs(6)
    with pytest.raises(PolicyError, match="must be one that reads a single exit, not 'kl_to_previous'"):
        parse_policy(f"filtered:signal=kl_to_previous,value=0.3,exit=1,policy={inner}")
    with pytest.raises(PolicyError, match="one that correctness has, 0 to 1"):
        parse_policy(f"filtered:signal=correctness,value=3,exit=1,policy={inner}")


def test_no_decoder_follows_an_oracle() -> None:
    oracle = parse_policy("oracle:which=saturation")
    assert not oracle.reachable
    with pytest.raises(PolicyError, match="nothing can decode with it"):
        oracle.decider(6, 1)
    with pytest.raises(PolicyError, match="looks nothing up"):
        parse_policy("never").exits_of(random_trace(0))


@pytest.mark.parametrize("name", sorted(name for name, signal in SIGNALS.items() if signal.opens))
@pytest.mark.parametrize(
    "kind", ["threshold:signal={}", "decaying:signal={}", "dynamic:complexity=position,slope=0,signal={}"]
)
def test_a_comparison_with_nothing_to_compare_is_refused(kind: str, name: str) -> None:
    policy = parse_policy(kind.format(name) + ",value=0.5,exits=3")
    with pytest.raises(PolicyError, match=f"{name} compares two checks, and there is one exit"):
        policy.needs(LAYERS)
    assert parse_policy(kind.format(name) + ",value=0.5,exits=3+4").checked_exits(LAYERS) == (3, 4)


@few
@given(seed=SEEDS, value=VALUES, exits=EXITS, data=st.data())
def test_minimum(seed: int, value: float, exits: list[int], data: Any) -> None:
    lowest = data.draw(st.integers(1, exits[-1]))
    trace = random_trace(seed)
    kept = [exit for exit in exits if exit >= lowest]
    values = [value] * len(kept)
    expected = by_document(trace, scalar.thresholds, signal="margin", values=values, exits=kept)
    inner = f"[threshold:signal=margin,value={value},exits={text(exits)}]"
    policy = parse_policy(f"minimum:exit={lowest},policy={inner}")
    must_equal(policy, trace, expected)
    assert policy.checked_exits(LAYERS) == tuple(kept)


@few
@given(first=st.integers(1, LAYERS), data=st.data(), length=st.integers(2, 20))
def test_schedule(first: int, data: Any, length: int) -> None:
    last = data.draw(st.integers(1, first))
    expected = np.concatenate(
        [scalar.schedule(tokens, first=first, last=last, length=length) for tokens in LENGTHS]
    )
    must_equal(f"schedule:first={first},last={last},length={length}", random_trace(0), expected)


def test_a_schedule_asks_only_where_it_leaves() -> None:
    assert list(Schedule(9, 3, 3).needs(12)) == [3, 6, 9]
    assert list(Schedule(12, 3, 1_000_000_000).needs(12)) == list(range(3, 12))
    assert Schedule(12, 12, 5).needs(12) == {}


@few
@given(
    seed=SEEDS,
    need=st.sampled_from(("all", "any", "1", "2", "3")),
    low=VALUES,
    high=VALUES,
    here=EXITS,
    times=st.integers(1, 2),
)
def test_votes(seed: int, need: str, low: float, high: float, here: list[int], times: int) -> None:
    exits = list(range(1, LAYERS))
    trace = random_trace(seed)
    of = [("margin", low, exits), ("entropy", high, here)]
    count = {"all": 3, "any": 1}.get(need) or int(need)
    expected = by_document(trace, scalar.votes, need=count, voters=of, times=times, exits=exits)
    voters = [f"[threshold:signal={signal},value={value},exits={text(asked)}]" for signal, value, asked in of]
    must_equal(f"votes:need={need},of={'+'.join(voters)}+[patience:times={times},exits=all]", trace, expected)


def test_a_vote_charges_all_that_vote() -> None:
    policy = parse_policy(
        "votes:need=1,of=[threshold:signal=margin,value=0.9,exits=2+4]+[patience:times=1,exits=2+3]"
    )
    assert policy.needs(6) == {2: ("margin", "top1"), 3: ("top1",), 4: ("margin",)}


TASKS = "tasks:names=code+txt,policies=[static:exit=2]+[threshold:signal=margin,value=0.5,exits=3]"


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("code", "static:exit=2"),
        ("txt", "threshold:signal=margin,value=0.5,exits=3"),
        ("txt:notes.txt", "threshold:signal=margin,value=0.5,exits=3"),
        ("continued:32+64:code", "static:exit=2"),
        ("continued:8:txt:notes.txt", "threshold:signal=margin,value=0.5,exits=3"),
        ("prose", "never"),
        ("continued:8:prose", "never"),
        (None, "never"),
    ],
)
def test_tasks_choose_by_workload_class(task: str | None, expected: str) -> None:
    policy = parse_policy(TASKS)
    assert str(policy.for_task(task)) == expected
    trace = random_trace(1)
    trace.provenance = {"request": {"workload": {"name": task}}}
    np.testing.assert_array_equal(
        replay_decisions(policy, trace).exits, replay_decisions(parse_policy(expected), trace).exits
    )


def test_tasks_reach_into_other_policies() -> None:
    policy = parse_policy(f"votes:need=any,of=[minimum:exit=1,policy=[{TASKS}]]+[never]")
    assert policy.tasks == ("code", "txt")
    assert str(policy.for_task("code")) == "votes:need=any,of=[minimum:exit=1,policy=[static:exit=2]]+[never]"
    with pytest.raises(PolicyError, match="exit 3 is the full model"):
        parse_policy(TASKS).needs(3)


@pytest.mark.parametrize(
    ("policy", "layers", "what"),
    [
        ("patience:times=3,exits=1+2+3", 6, "3 unchanged predictions need at least 4 checks; there are 3"),
        ("patience:times=3,exits=all", 4, "3 unchanged predictions need at least 4 checks; there are 3"),
        (
            "sustained:signal=kl_to_previous,value=0.1,times=2,exits=2+3",
            6,
            "2 passed checks need at least 3 checks; there are 2",
        ),
        ("minimum:exit=4,policy=[threshold:signal=margin,value=0.5,exits=2+3]", 6, "drops every check"),
        ("minimum:exit=7,policy=[never]", 6, "exit 7 is beyond the model"),
        (
            "minimum:exit=3,policy=[threshold:signal=kl_to_previous,value=0.5,exits=2+3+4]",
            6,
            "kl_to_previous compares with a check below the minimum exit 3",
        ),
        ("schedule:first=9,last=2,length=4", 6, "exit 9 is beyond the model"),
        (
            "votes:need=2,of=[threshold:signal=margin,value=0.9,exits=2]+[patience:times=1,exits=3+4]",
            6,
            "at most 1 of the policies ask at the same exit, but 2 must agree",
        ),
        ("thresholds:signal=margin,values=0.9+0.8,exits=2+6", 6, "exit 6 is the full model"),
        ("bandit:signal=margin,value=0.9,exits=2+8", 6, "exit 8 is beyond the model"),
    ],
)
def test_a_policy_that_does_not_fit_a_model_says_so(policy: str, layers: int, what: str) -> None:
    with pytest.raises(PolicyError, match=what):
        parse_policy(policy).needs(layers)


def test_a_minimum_that_drops_nothing_may_compare_exits() -> None:
    policy = parse_policy("minimum:exit=2,policy=[threshold:signal=kl_to_previous,value=0.5,exits=2+3+4]")
    assert policy.needs(6) == {2: ("top1",), 3: ("kl_to_previous",), 4: ("kl_to_previous",)}


def test_following_the_entropy_of_earlier_tokens_is_charged_for_a_full_head() -> None:
    following = "dynamic:signal=restricted_margin,value=0.5,exits=2+4,complexity={},slope=0.1"
    running = parse_policy(following.format("running_entropy"))
    assert running.needs(6) == {2: ("restricted_margin", "entropy"), 4: ("restricted_margin", "entropy")}
    assert running.remembers
    assert running.final_facts == ("entropy",)
    by_position = parse_policy(following.format("position"))
    assert by_position.needs(6) == {2: ("restricted_margin",), 4: ("restricted_margin",)}
    assert not by_position.remembers
    assert parse_policy(following.format("prompt_entropy")).document_facts == ("prompt_entropy",)


def test_the_adaptive_threshold_finds_the_posterior_of_known_distributions() -> None:
    from scipy.stats import beta

    generator = np.random.default_rng(5)
    right, wrong = generator.beta(8, 2, 30_000), generator.beta(2, 5, 10_000)
    sums = np.array([[[len(seen), seen.sum(), (seen**2).sum()] for seen in (wrong, right)]])
    np.testing.assert_allclose(np.stack(betas(sums))[:, 0], [[2, 8], [5, 2]], rtol=0.05)
    for target in (0.5, 0.9, 0.99):
        (threshold,) = agreement_thresholds(sums, target)
        chance = 3 * beta.pdf(threshold, 8, 2)
        assert chance / (chance + beta.pdf(threshold, 2, 5)) == pytest.approx(target, abs=0.03)
    # Where wrong checks are as sure as right ones, nothing but their share counts.
    same = np.array([[sums[0, 1] / 9, sums[0, 1]]])
    assert agreement_thresholds(same, 0.89)[0] == 1 / 200
    assert agreement_thresholds(same, 0.91)[0] == np.inf
