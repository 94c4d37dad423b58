"""Batches: steps grouped from documents, in lockstep and rebatched, against plain loops and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from breakdown_examples import LAYERS, at, decisions_of, lines
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.errors import PolicyError
from offramp.policies.cost_breakdown import Item, break_down
from offramp.policies.decisions import Decisions
from offramp.policies.replay import replay
from offramp.policies.steps import BATCHINGS, count_plain, count_steps, group_into_steps, in_lockstep
from policy_traces import make_trace

# Two steps of two rows: exits 1 and 3, then 4 and 2.
STEPS = np.array([0, 1, 0, 1])
DECISIONS = Decisions(np.array([1, 4, 3, 2]), {1: ("margin",), 3: ("hidden_cosine_to_previous",)})


def test_rebatch_by_hand() -> None:
    assert lines(count_steps(DECISIONS, STEPS, LAYERS, repair=True)) == [
        ("overhead", "", 2, 2, 8.0),
        # Layers 3 and 4 run for the first step's second row and the second step's first.
        ("layers", "layer 2", 1, 1, 110.0),
        ("layers", "layer 3", 1, 2, 120.0),
        ("layers", "layer 4", 1, 1, 130.0),
        ("layers", "layer 1", 2, 2, 105.0),
        ("layers", "layer 2", 2, 1, 115.0),
        ("K,V projection", "layer 2", 1, 1, 11.0),
        ("K,V projection", "layer 3", 1, 2, 12.0),
        ("K,V projection", "layer 4", 1, 1, 13.0),
        ("K,V projection", "layer 4", 2, 1, 14.0),
        ("probe", "exit 3", 1, 2, 2.0),
        ("probe", "exit 1", 2, 2, 1028.0),
        ("exit head", "exits 2-3", 1, 2, 1100.0),
        ("final head", "exit 4", 1, 1, 1000.0),
    ]


def test_lockstep_by_hand() -> None:
    aligned = in_lockstep(DECISIONS, STEPS)
    np.testing.assert_array_equal(aligned.exits, [3, 4, 3, 4])
    assert lines(count_steps(aligned, STEPS, LAYERS, repair=True)) == [
        ("overhead", "", 2, 2, 8.0),
        ("layers", "layer 1", 2, 2, 105.0),
        ("layers", "layer 2", 2, 2, 115.0),
        ("layers", "layer 3", 2, 2, 125.0),
        ("layers", "layer 4", 2, 1, 135.0),
        ("K,V projection", "layer 4", 2, 1, 14.0),
        ("probe", "exit 1", 2, 2, 1028.0),
        # Checked for all rows as long as one of them has not left.
        ("probe", "exit 3", 2, 2, 4.0),
        ("exit head", "exit 3", 2, 1, 1120.0),
        ("final head", "exit 4", 2, 1, 1020.0),
    ]


def test_steps_are_the_nth_tokens_of_a_group_of_documents() -> None:
    document = np.repeat([0, 1, 2, 3, 4], [3, 1, 2, 5, 4]).astype(np.int32)
    index = np.concatenate([np.arange(n) for n in (3, 1, 2, 5, 4)])
    for seed in range(5):
        steps = group_into_steps(document, 2, seed)
        groups: dict[int, set[int]] = {}
        for step in np.unique(steps):
            rows = steps == step
            assert len(set(index[rows])) == 1
            assert len(set(document[rows])) == rows.sum() <= 2
            for own in document[rows]:
                groups.setdefault(int(own), set()).update(document[rows].tolist())
        # Documents that ever meet are those of one group, and no other.
        assert all(len(met) <= 2 for met in groups.values())
        assert len({frozenset(met) for met in groups.values() if len(met) == 2}) == 2
        np.testing.assert_array_equal(steps, group_into_steps(document, 2, seed))
        assert list(np.unique(steps)) == list(range(steps.max() + 1))
    np.testing.assert_array_equal(group_into_steps(document, 1, 0), np.arange(15))
    with pytest.raises(PolicyError, match="a batch of 6 needs as many documents, the trace has 5"):
        group_into_steps(document, 6, 0)


def usage_step_by_step(decisions: Decisions, steps: Any, batching: str) -> dict[Item, int]:
    """Every step run in a plain loop, row by row and layer by layer."""
    usage: dict[Item, int] = {}

    def pay(part: str, place: int, rows: int, probe: str = "") -> None:
        if rows:
            item = Item(part, place, rows, probe)
            usage[item] = usage.get(item, 0) + 1

    kinds = {"margin": "full head", "hidden_cosine_to_previous": "cosine"}
    for step in sorted(set(steps.tolist())):
        rows = [token for token in range(len(steps)) if steps[token] == step]
        own = {token: int(decisions.exits[token]) for token in rows}
        last = max(own.values())
        leaves = {token: last if batching == "lockstep" else own[token] for token in rows}
        answered: set[int] = set()
        pay("overhead", 0, len(rows))
        for layer in range(1, LAYERS + 1):
            running = [token for token in rows if leaves[token] >= layer]
            pay("layers", layer, len(running))
            pay("K,V projection", layer, len(rows) - len(running))
            if layer in decisions.needs:
                place = list(decisions.needs).index(layer)
                asked = [token for token in running if decisions.probed_at(place)[token]]
                if batching == "lockstep" and asked:
                    asked = running
                for kind in sorted({kinds[fact] for fact in decisions.needs[layer]}):
                    pay("probe", layer, len(asked), kind)
                if "margin" in decisions.needs[layer]:
                    answered |= {token for token in asked if leaves[token] == layer}
            going = [token for token in running if leaves[token] == layer and token not in answered]
            pay("final head" if layer == LAYERS else "exit head", layer, len(going))
    return usage


@settings(deadline=None, max_examples=60)
@given(
    decisions=decisions_of(),
    size=st.integers(1, 5),
    seed=st.integers(0, 99),
    batching=st.sampled_from(list(BATCHINGS)),
)
def test_counted_steps_are_those_of_a_plain_loop(
    decisions: Decisions, size: int, seed: int, batching: str
) -> None:
    steps = np.unique(
        np.random.default_rng(seed).integers(0, 1 + len(decisions.exits) // size, len(decisions.exits)),
        return_inverse=True,
    )[1]
    counted = count_steps(BATCHINGS[batching](decisions, steps), steps, LAYERS, repair=True)
    assert dict(counted) == usage_step_by_step(decisions, steps, batching)


@settings(deadline=None, max_examples=30)
@given(decisions=decisions_of(), seed=st.integers(0, 99))
def test_rows_that_wait_for_others_never_cost_less_layers(decisions: Decisions, seed: int) -> None:
    steps = np.unique(np.random.default_rng(seed).integers(0, 5, len(decisions.exits)), return_inverse=True)[
        1
    ]
    plain = count_plain(steps, LAYERS)
    totals = {}
    for name, batching in BATCHINGS.items():
        usage = count_steps(batching(decisions, steps), steps, LAYERS, repair=False)
        breakdown = break_down(usage, plain, at, len(steps))
        totals[name] = sum(line.total for line in breakdown.lines if line.part == "layers")
    assert totals["lockstep"] >= totals["rebatch"]
    assert (in_lockstep(decisions, steps).exits >= decisions.exits).all()


def test_a_replayed_batch_gives_what_the_steps_give() -> None:
    trace = make_trace(seed=5)
    text = "threshold:signal=margin,value=0.4,exits=1+3"
    own = replay(trace, text)
    for batching in BATCHINGS:
        result = replay(trace, text, batch=3, batching=batching, seed=1)
        steps = group_into_steps(trace.document, 3, 1)
        deepest = [own.exits[steps == step].max() for step in steps]
        expected = deepest if batching == "lockstep" else own.exits
        np.testing.assert_array_equal(result.exits, expected)
        columns = np.asarray(expected) - 1
        agreement = trace.agreement[np.arange(60), columns].mean()
        assert result.agreement == pytest.approx(agreement)
        assert result.skip_ratio == pytest.approx(1 - np.mean(expected) / 6)
    assert replay(trace, text, batch=3).skip_ratio < own.skip_ratio
