"""Batches: steps grouped from documents, in lockstep and rebatched, against plain loops and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from breakdown_examples import LAYERS, decisions_of, lines
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.errors import PolicyError
from offramp.policies.cost_breakdown import Item
from offramp.policies.decisions import Decisions
from offramp.policies.replay import replay
from offramp.policies.steps import (
    BATCHINGS,
    count_rounds,
    count_steps,
    find_rounds,
    group_into_steps,
)
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


MARGIN = {1: ("margin",), 3: ("hidden_cosine_to_previous",)}
KINDS = {"margin": "full head", "hidden_cosine_to_previous": "cosine"}


def rounds_of(exits: list[int], agrees: list[bool], lengths: list[int], draft_length: int = 4) -> list[Any]:
    document = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
    found = find_rounds(np.array(exits), np.array(agrees), document, LAYERS, draft_length)
    columns = (found.start.tolist(), found.drafts.tolist(), found.closed.tolist())
    return list(zip(*columns, strict=True))


def test_rounds_by_hand() -> None:
    right = [True] * 8
    # Two drafts, closed by the token that does not leave.
    assert rounds_of([1, 2, 4, 4], right[:4], [4]) == [(0, 2, True), (3, 0, True)]
    # A full draft takes the next token along, whether it would leave or not.
    assert rounds_of([1] * 5, right[:5], [5], 2) == [(0, 2, True), (3, 2, False)]
    # The second draft is wrong: it gets the full model's output, the third is drafted again.
    wrong = [True, False, True, True]
    assert rounds_of([1, 1, 1, 4], wrong, [4]) == [(0, 3, True), (2, 1, True)]
    # Documents end rounds; their last drafts are verified alone.
    assert rounds_of([1, 1, 1, 4], right[:4], [2, 2]) == [(0, 2, False), (2, 1, True)]
    # A token that does not leave is the full model's, whatever else the trace says of it.
    assert rounds_of([4, 1], [False, True], [2]) == [(0, 0, True), (1, 1, False)]


def test_a_breakdown_by_hand() -> None:
    # One round: drafts leave at 1 (full head) and 3 (cosine, then the head), the third token goes through.
    decisions = Decisions(np.array([1, 3, 4]), MARGIN)
    rounds = find_rounds(decisions.exits, np.ones(3, bool), np.zeros(3, np.int32), LAYERS, 4)
    assert lines(count_rounds(decisions, rounds, LAYERS)) == [
        ("overhead", "", 1, 2, 7.0),
        ("overhead", "", 3, 1, 9.0),
        # Layer 1 once for each; layers 2 and 3 for both drafts as the second runs, then for the third token.
        ("layers", "layer 1", 1, 3, 100.0),
        ("layers", "layer 2", 1, 1, 110.0),
        ("layers", "layer 3", 1, 1, 120.0),
        ("layers", "layer 2", 2, 1, 115.0),
        ("layers", "layer 3", 2, 1, 125.0),
        # Layer 4 for all three, in the step of the token that closes the round.
        ("layers", "layer 4", 3, 1, 140.0),
        ("probe", "exit 1", 1, 3, 1007.0),
        ("probe", "exit 3", 1, 2, 2.0),
        ("exit head", "exit 3", 1, 1, 1100.0),
        ("final head", "exit 4", 3, 1, 1040.0),
    ]


def decode(decisions: Decisions, agrees: Any, document: Any, draft_length: int) -> dict[Item, int]:
    """A decoder that drafts and verifies, played token by token with a set of what each row still lacks."""
    usage: dict[Item, int] = {}

    def pay(part: str, place: int, rows: int, probe: str = "") -> None:
        item = Item(part, place, rows, probe)
        usage[item] = usage.get(item, 0) + 1

    def run(layer: int, row: int | None, lacking: dict[int, set[int]]) -> None:
        together = [other for other, layers in lacking.items() if layer in layers]
        for other in together:
            lacking[other].discard(layer)
        pay("layers", layer, len(together) + (row is not None))

    def check(token: int, exit: int) -> None:
        answered = False
        for place, (checked, facts) in enumerate(decisions.needs.items()):
            if decisions.probed_at(place)[token]:
                for kind in sorted({KINDS[fact] for fact in facts}):
                    pay("probe", checked, 1, kind)
                answered |= "margin" in facts and checked == exit
        if exit < LAYERS and not answered:
            pay("exit head", exit, 1)

    token = 0
    while token < len(decisions.exits):
        end = token + int((document[token:] == document[token]).sum())
        lacking: dict[int, set[int]] = {}
        row = token
        while row < end and len(lacking) < draft_length and decisions.exits[row] < LAYERS:
            exit = int(decisions.exits[row])
            for layer in range(1, exit + 1):
                run(layer, row, lacking)
            check(row, exit)
            pay("overhead", 0, 1)
            lacking[row] = set(range(exit + 1, LAYERS + 1))
            row += 1
        drafts = list(lacking)
        closing = row < end
        if closing:
            check(row, LAYERS)
        for layer in range(1, LAYERS + 1):
            if closing or any(layer in layers for layers in lacking.values()):
                run(layer, row if closing else None, lacking)
        pay("overhead", 0, len(drafts) + closing)
        pay("final head", LAYERS, len(drafts) + closing)
        assert not any(lacking.values())
        wrong = [draft for draft in drafts if not agrees[draft]]
        token = wrong[0] + 1 if wrong else row + closing
    return usage


@settings(deadline=None, max_examples=80)
@given(seed=st.integers(0, 9999), draft_length=st.integers(1, 6), some=st.booleans())
def test_counted_rounds_are_those_of_a_played_decoder(seed: int, draft_length: int, some: bool) -> None:
    generator = np.random.default_rng(seed)
    tokens = int(generator.integers(1, 25))
    exits = generator.choice([1, 2, 3, 3, 4], tokens)
    document = np.sort(generator.integers(0, 4, tokens)).astype(np.int32)
    agrees = generator.random(tokens) < 0.7
    probed = (exits[:, None] >= np.array([1, 3])) & (generator.random((tokens, 2)) < 0.7)
    decisions = Decisions(exits, MARGIN, probed if some else None)
    rounds = find_rounds(exits, agrees, document, LAYERS, draft_length)
    counted = count_rounds(decisions, rounds, LAYERS)
    assert {item: count for item, count in counted.items() if count} == decode(
        decisions, agrees, document, draft_length
    )
