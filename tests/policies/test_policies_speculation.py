"""Self-speculation: rounds and their cost by hand, and against a decoder played token by token."""

from __future__ import annotations

from typing import Any

import numpy as np
from breakdown_examples import lines
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.policies.cost_breakdown import Item
from offramp.policies.decisions import Decisions
from offramp.policies.steps import count_rounds, find_rounds

LAYERS = 4
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


def test_the_row_after_a_full_draft_is_asked_and_runs_to_the_end() -> None:
    # It would leave at exit 3: both probes up to there are paid, but no exit head.
    decisions = Decisions(np.array([1, 3, 1]), MARGIN)
    rounds = find_rounds(decisions.exits, np.ones(3, bool), np.zeros(3, np.int32), LAYERS, 1)
    assert list(zip(rounds.start.tolist(), rounds.closed.tolist(), strict=True)) == [(0, True), (2, False)]
    assert lines(count_rounds(decisions, rounds, LAYERS)) == [
        ("overhead", "", 1, 3, 7.0),
        ("overhead", "", 2, 1, 8.0),
        ("layers", "layer 1", 1, 3, 100.0),
        ("layers", "layer 2", 1, 1, 110.0),
        ("layers", "layer 3", 1, 1, 120.0),
        ("layers", "layer 4", 1, 1, 130.0),
        ("layers", "layer 2", 2, 1, 115.0),
        ("layers", "layer 3", 2, 1, 125.0),
        ("layers", "layer 4", 2, 1, 135.0),
        ("probe", "exit 1", 1, 3, 1007.0),
        ("probe", "exit 3", 1, 1, 2.0),
        ("final head", "exit 4", 1, 1, 1000.0),
        ("final head", "exit 4", 2, 1, 1020.0),
    ]


def test_the_last_drafts_of_a_document_are_verified_by_a_step_of_their_own() -> None:
    decisions = Decisions(np.array([2, 2]), {})
    rounds = find_rounds(decisions.exits, np.ones(2, bool), np.zeros(2, np.int32), LAYERS, 4)
    assert lines(count_rounds(decisions, rounds, LAYERS)) == [
        ("overhead", "", 1, 2, 7.0),
        ("overhead", "", 2, 1, 8.0),
        ("layers", "layer 1", 1, 2, 100.0),
        ("layers", "layer 2", 1, 2, 110.0),
        ("layers", "layer 3", 2, 1, 125.0),
        ("layers", "layer 4", 2, 1, 135.0),
        ("exit head", "exit 2", 1, 2, 1100.0),
        ("final head", "exit 4", 2, 1, 1020.0),
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


@settings(deadline=None, max_examples=150)
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
