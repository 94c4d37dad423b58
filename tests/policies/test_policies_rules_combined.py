from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scalar_policies as scalar
from hypothesis import given
from hypothesis import strategies as st
from rule_examples import (
    DOCUMENT,
    EXITS,
    LAYERS,
    LENGTHS,
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
from offramp.policies.rules.fixed import Schedule


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
@given(seed=SEEDS, signal=PLAIN, value=VALUES, exits=EXITS)
def test_monotone(seed: int, signal: str, value: float, exits: list[int]) -> None:
    trace = random_trace(seed)
    expected = by_document(trace, scalar.monotone_threshold, signal=signal, value=value, exits=exits)
    must_equal(
        f"monotone:policy=[threshold:signal={signal},value={value},exits={text(exits)}]", trace, expected
    )
    assert (np.diff(expected)[np.diff(DOCUMENT) == 0] <= 0).all()


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
    expected = by_document(trace, scalar.votes, need=count, of=of, times=times, exits=exits)
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
        ("prose", "never"),
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
