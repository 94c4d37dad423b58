"""A policy found by evolution: what genes mean, cost and lose; that it beats one signal for all exits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from offramp.costs.machine_registry import find_machine
from offramp.errors import InputError
from offramp.policies.signals import SIGNALS
from offramp.tracing.trace import Trace
from offramp.tuning.evolution import FAMILY, Searched, evolve
from offramp.tuning.floor import make_floor
from offramp.tuning.pool import Pool
from offramp.tuning.pricing import pricing_of
from offramp.tuning.search import add_exact, targets_around
from offramp.tuning.threshold_family import ThresholdFamily
from offramp.tuning.tune import tune
from policy_traces import make_shape, make_trace

RISK = 0.1
MODEL = {"name": "tiny", "fingerprint": "m1"}


def two_signals(seed: int = 0) -> Trace:
    """A cheap signal that knows exit 2 and nothing of exit 4, and a dear one of which the reverse is true."""
    rng = np.random.default_rng(seed)
    tokens, documents = 1200, 24
    agrees = rng.random((tokens, 6)) < np.array([0.1, 0.45, 0.5, 0.8, 0.85, 1.0])
    noise = rng.random((tokens, 6))
    known = {"correctness": 1, "max_prob": 3}
    facts = {
        name: np.where(np.arange(6) == exit, 0.7 * agrees + 0.3 * noise, noise).astype(np.float32)
        for name, exit in known.items()
    }
    return make_trace(
        tokens=tokens,
        documents=documents,
        shape=make_shape(head=2000),
        top1=np.where(agrees, 7, 1).astype(np.int32),
        **facts,
    )


def searched_pool(trace: Trace) -> tuple[Pool, dict[str, ThresholdFamily]]:
    pool = Pool(trace, make_floor({"agreement": 1 - RISK}), pricing_of(trace, None))
    return pool, add_exact(pool, targets_around(RISK))


def test_a_rule_costs_and_loses_what_its_policy_does_when_it_is_replayed() -> None:
    pool, families = searched_pool(two_signals())
    searched = Searched.of(pool, families, RISK)
    assert searched is not None
    rng = np.random.default_rng(2)
    kinds = set()
    for _ in range(12):
        low, high = np.array([[0.0, -0.3], [len(searched.families), 1.0]])
        rule = searched.rule(rng.uniform(low, high, size=(len(searched.exits), 2)).ravel())
        scored = pool.score("a rule", searched.policy(rule))
        cost, risk = searched.outcome(rule)
        assert cost == pytest.approx(scored.cost, rel=1e-12)
        assert risk == pytest.approx(scored.risk, rel=1e-9, abs=1e-12)
        kinds.add(searched.policy(rule).kind)
    assert "votes" in kinds
    assert searched.policy({2: (0, 5), 4: (0, 9)}).kind == "thresholds"
    assert searched.outcome({}) == (pytest.approx(pool.pricing.plain), 0.0)
    assert str(searched.policy({})) == "never"


def test_it_starts_from_the_fastest_rule_and_gives_each_exit_the_signal_that_knows_it() -> None:
    pool, families = searched_pool(two_signals())
    searched = Searched.of(pool, families, RISK)
    assert searched is not None
    start = searched.outcome(searched.rule(searched.starting_genes))
    scored = pool.score("the start", searched.start)
    assert start == (pytest.approx(scored.cost, rel=1e-12), pytest.approx(scored.risk, abs=1e-12))
    fastest = pool.fastest(RISK)
    found = evolve(pool, families, RISK, seed=0)
    assert fastest is not None
    assert found is not None
    assert found.family == FAMILY
    assert found.risk <= RISK + 1e-9
    assert found.cost < 0.99 * fastest.cost
    assert found.policy == getattr(evolve(pool, families, RISK, seed=0), "policy", None)
    needs = found.policy.needs(6)
    assert needs[2] == (SIGNALS["correctness"].fact,)


def test_nothing_is_found_where_no_threshold_keeps_the_floor_or_steps_wait_for_each_other() -> None:
    wrong = np.tile([1, 1, 1, 1, 1, 7], (200, 1)).astype(np.int32)
    equal = np.full((200, 6), 0.5, dtype=np.float32)  # all leave, or none does
    facts = dict.fromkeys(("max_prob", "margin", "entropy", "hidden_cosine_to_previous"), equal)
    pool, families = searched_pool(make_trace(tokens=200, documents=4, top1=wrong, **facts))
    assert evolve(pool, families, RISK, seed=0) is None
    trace = two_signals()
    batched = Pool(trace, make_floor({"agreement": 1 - RISK}), pricing_of(trace, find_machine("h100"), 4))
    assert evolve(batched, add_exact(batched, targets_around(RISK)), RISK, seed=0) is None


def test_tuning_takes_what_evolution_found_where_it_is_asked_to() -> None:
    trace = two_signals()
    trace.provenance["request"] = {"model": MODEL, "workload": {"name": "texts", "fingerprint": "w1"}}
    options: dict[str, Any] = {"hardware": None, "method": "naive"}
    plain, evolved = (
        tune(trace, {"agreement": 1 - RISK}, search=search, **options) for search in ("families", "evolution")
    )
    fastest = [
        min(point.seconds_per_token for point in one.front if point.risk <= RISK) for one in (plain, evolved)
    ]
    assert fastest[1] < 0.99 * fastest[0]
    assert any(str(point.policy).startswith("votes:need=any") for point in evolved.front)
    assert not any(str(point.policy).startswith("votes:need=any") for point in plain.front)
    with pytest.raises(InputError, match="'luck'"):
        tune(trace, {"agreement": 1 - RISK}, search="luck", **options)
